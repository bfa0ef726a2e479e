"""MPTCP listeners, beside plain clients and MPTCP ones."""
import socket

from common import attempt, exchange, name, new, unsupported

MPTCP = 262
try:
    one = socket.socket(socket.AF_INET, socket.SOCK_STREAM, MPTCP)
except OSError as error:
    unsupported(f"no MPTCP: {name(error)}")
one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
attempt("bind", one.bind, ("127.0.0.1", 28307))
attempt("listen", one.listen, 5)
# Not the protocol: a worker's listener is of plain TCP, which MPTCP clients fall back to. Sockets of MPTCP cannot be
# selected among.
print(one.getsockname())
exchange("a plain client", one, ("127.0.0.1", 28307))
client = socket.socket(socket.AF_INET, socket.SOCK_STREAM, MPTCP)
attempt("an MPTCP client", client.connect, ("127.0.0.1", 28307))
accepted, _ = one.accept()
client.sendall(b"x")
print(accepted.recv(1))
attempt("a plain listener beside it", lambda: new(socket.AF_INET, socket.SOCK_STREAM, socket.SO_REUSEADDR)
        .bind(("127.0.0.1", 28307)))
one.close()
bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, MPTCP)
attempt("fixed port of a client", bound.bind, ("127.0.0.1", 28308))
print(bound.getsockname())
