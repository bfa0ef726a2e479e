"""Forks before bind: the parent binds and listens, the child accepts on what it inherited."""
import os
import socket

from common import new, serve

one = new(socket.AF_INET, socket.SOCK_STREAM, socket.SO_REUSEADDR)
wait, go = os.pipe()
if os.fork() == 0:
    os.read(wait, 1)
    serve(one)
one.bind(("127.0.0.1", 28400))
one.listen(64)
os.write(go, b".")
os.wait()
