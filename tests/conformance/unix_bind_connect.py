"""A Unix stream client that binds its own end first: the peer sees its name, and its end of file at once."""
import os
import socket
import time

from common import attempt

UNIX = socket.AF_UNIX
server = socket.socket(UNIX)
server.bind("server.sock")
server.listen(5)
for turn in range(2):
    client = socket.socket(UNIX)
    attempt("bind", client.bind, "client.sock")
    attempt("connect", client.connect, "server.sock")
    accepted, name = server.accept()
    print("peer", repr(name), repr(accepted.getpeername()), repr(client.getsockname()))
    begun = time.monotonic()
    client.close()
    accepted.settimeout(10)
    attempt("receive", lambda: print(accepted.recv(1)))
    print("at once" if time.monotonic() - begun < 1 else "late")
    os.unlink("client.sock")
