"""Binds and passes the socket by SCM_RIGHTS to a process that listens and accepts."""
import os
import socket

from common import new, serve

left, right = socket.socketpair()
if os.fork() == 0:
    _, (fd,), _, _ = socket.recv_fds(right, 1, 1)
    received = socket.socket(fileno=fd)
    received.listen(64)
    serve(received)
one = new(socket.AF_INET, socket.SOCK_STREAM, socket.SO_REUSEADDR)
one.bind(("127.0.0.1", 28400))
socket.send_fds(left, [b"x"], [one.fileno()])
one.close()
os.wait()
