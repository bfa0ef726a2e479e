"""SO_REUSEPORT set after bind, or cleared after it: what a later socket may do follows the option as it is then."""
import socket

from common import attempt, new

for port, at_bind, later in ((28210, 0, 1), (28211, 1, 0)):
    one, two = new(), new(socket.AF_INET, socket.SOCK_STREAM, socket.SO_REUSEPORT)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, at_bind)
    attempt("first", one.bind, ("127.0.0.1", port))
    print("bound:", one.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT))
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, later)
    print("changed:", one.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT))
    attempt("second", two.bind, ("127.0.0.1", port))
plain = new()
plain.bind(("127.0.0.1", 28212))
print("a bound socket reads", plain.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT))
plain.listen(1)
print("listening: SO_REUSEPORT reads", plain.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT))
