"""A listening socket goes on over exec, under its number; one that is to be closed on exec is closed."""
import os
import socket
import sys

from common import attempt, exchange, listener

KEPT, CLOSED = ("127.0.0.1", 28313), ("127.0.0.1", 28314)
if len(sys.argv) == 1:
    kept, closed = listener(KEPT), listener(CLOSED)
    kept.set_inheritable(True)
    os.execv(sys.executable, [sys.executable, "-u", "-B", sys.argv[0], str(kept.fileno()), str(closed.fileno())])
kept = socket.socket(fileno=int(sys.argv[1]))
print(kept.getsockname())
exchange("kept", kept, KEPT)
attempt("the other number", os.fstat, int(sys.argv[2]))
attempt("the closed one's address", lambda: listener(CLOSED).close())
attempt("the kept one's address", listener, KEPT)
