"""Binds, forks, and the child listens and accepts."""
import os
import socket

from common import new, serve

one = new(socket.AF_INET, socket.SOCK_STREAM, socket.SO_REUSEADDR)
one.bind(("127.0.0.1", 28400))
if os.fork() == 0:
    one.listen(64)
    serve(one)
one.close()
os.wait()
