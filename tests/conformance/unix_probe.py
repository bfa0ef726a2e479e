"""What a client is told of a path: nothing there, stale, bound only, listening, closed, no socket at all."""
import os
import socket

from common import attempt, await_closed, connect

UNIX = socket.AF_UNIX
attempt("nothing there", connect, "missing.sock", UNIX)
one = socket.socket(UNIX)
one.bind("app.sock")
attempt("bound only", connect, "app.sock", UNIX)
one.listen(5)
attempt("listening", connect, "app.sock", UNIX)
one.close()
await_closed()
attempt("closed", connect, "app.sock", UNIX)
open("file", "w").close()
attempt("a file", connect, "file", UNIX)
# Stale, as after a crash: a probe finds nobody, the path is removed and bound again.
attempt("bind on it", socket.socket(UNIX).bind, "app.sock")
os.unlink("app.sock")
two = socket.socket(UNIX)
attempt("bind after unlink", two.bind, "app.sock")
attempt("bound only, again", connect, "app.sock", UNIX)
two.listen(0)
attempt("listening again", connect, "app.sock", UNIX)
datagram = socket.socket(UNIX, socket.SOCK_DGRAM)
attempt("another type", datagram.connect, "app.sock")
