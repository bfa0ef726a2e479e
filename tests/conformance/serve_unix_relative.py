"""A Unix path relative to a folder that the program changes to."""
import os
import socket

from common import serve

os.makedirs("run", exist_ok=True)
os.chdir("run")
one = socket.socket(socket.AF_UNIX)
one.bind("../app.sock")
one.listen(64)
serve(one)
