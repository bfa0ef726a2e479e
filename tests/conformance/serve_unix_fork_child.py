"""A Unix path that a child listens on and accepts from."""
import os
import socket

from common import serve

one = socket.socket(socket.AF_UNIX)
one.bind("app.sock")
os.chmod("app.sock", 0o666)
if os.fork() == 0:
    one.listen(64)
    serve(one)
one.close()
os.wait()
