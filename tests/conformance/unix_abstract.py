"""Abstract names: bound, taken, free at once after close; and a name that the kernel chooses."""
import socket

from common import attempt, await_closed, connect, exchange

UNIX, NAME = socket.AF_UNIX, b"\0conformance-abstract"
one, two = socket.socket(UNIX), socket.socket(UNIX)
attempt("bind", one.bind, NAME)
print(one.getsockname())
attempt("connect before listen", connect, NAME, UNIX)
one.listen(5)
exchange("connect", one, NAME, UNIX)
attempt("bind again", two.bind, NAME)
one.close()
attempt("bind after close", two.bind, NAME)
two.listen(5)
exchange("second", two, NAME, UNIX)
two.close()
await_closed()
attempt("connect after close", connect, NAME, UNIX)
three = socket.socket(UNIX)
attempt("name of the kernel's choice", three.bind, "")
print(len(three.getsockname()), three.getsockname()[:1])
three.listen(5)
exchange("at it", three, three.getsockname(), UNIX)
