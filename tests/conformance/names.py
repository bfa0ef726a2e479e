"""getsockname of everything, at every stage."""
import os
import socket

from common import attempt, new

INET, INET6, UNIX = socket.AF_INET, socket.AF_INET6, socket.AF_UNIX
STREAM, DGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
for family, kind, address in (
    (INET, STREAM, ("127.0.0.1", 28260)),
    (INET, STREAM, ("0.0.0.0", 28261)),
    (INET, STREAM, ("127.0.0.77", 28262)),
    (INET, DGRAM, ("127.0.0.1", 28263)),
    (INET6, STREAM, ("::1", 28264)),
    (INET6, STREAM, ("::", 28265)),
    (INET6, STREAM, ("::ffff:127.0.0.1", 28266)),
    (INET6, DGRAM, ("::1", 28267)),
    (UNIX, STREAM, "name.sock"),
    (UNIX, STREAM, os.path.abspath("absolute.sock")),
    (UNIX, STREAM, "./dotted.sock"),
    (UNIX, DGRAM, "datagram.sock"),
):
    one = new(family, kind)
    shown = [one.getsockname()]
    attempt(f"{family.name} {kind.name}: bind", one.bind, address)
    shown.append(one.getsockname())
    if kind == STREAM:
        attempt("listen", one.listen, 5)
        shown.append(one.getsockname())
        client = socket.socket(family)
        attempt("connect", client.connect, one.getsockname())
        accepted, _ = one.accept()
        shown += [accepted.getsockname(), client.getpeername()]
    # The folder is a fresh one in each run.
    print([os.path.relpath(name) if isinstance(name, str) and name.startswith("/") else name for name in shown])
    print(one.family.name, one.type.name, one.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL),
          one.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN), one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
