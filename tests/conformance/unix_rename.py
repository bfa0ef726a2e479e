"""haproxy's way: bind beside the path, listen, rename over it, connect at the new name."""
import os
import socket

from common import attempt, await_closed, connect, exchange

UNIX = socket.AF_UNIX


def server():
    made = socket.socket(UNIX)
    made.bind("app.sock.tmp")
    made.listen(5)
    os.rename("app.sock.tmp", "app.sock")
    return made


first = server()
print(sorted(os.listdir(".")), first.getsockname())
exchange("at the new name", first, "app.sock", UNIX)
attempt("at the old name", connect, "app.sock.tmp", UNIX)
second = server()
print(sorted(os.listdir(".")))
exchange("second", second, "app.sock", UNIX)
first.close()
exchange("second, the first closed", second, "app.sock", UNIX)
os.rename("app.sock", "other.sock")
exchange("moved", second, "other.sock", UNIX)
attempt("where it was", connect, "app.sock", UNIX)
second.close()
await_closed()
attempt("closed", connect, "other.sock", UNIX)
os.unlink("other.sock")
print(os.listdir("."))
