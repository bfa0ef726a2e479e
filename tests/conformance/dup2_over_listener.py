"""dup2 over a listening socket closes it; dup2 of one to another number keeps it."""
import os
import socket

from common import attempt, await_closed, connect, exchange, listener

ADDRESS = ("127.0.0.1", 28219)
one = listener(ADDRESS)
null = os.open("/dev/null", os.O_RDONLY)
os.dup2(null, one.fileno())
attempt("bind again at once", lambda: listener(ADDRESS).close())
await_closed()
attempt("connect after it was closed", connect, ADDRESS)
one.detach()

two = listener(("127.0.0.1", 28220))
moved = socket.socket()
os.dup2(two.fileno(), moved.fileno())
two.close()
exchange("on the other number", moved, ("127.0.0.1", 28220))
attempt("its address is still taken", listener, ("127.0.0.1", 28220))
await_closed()
exchange("later", moved, ("127.0.0.1", 28220))
