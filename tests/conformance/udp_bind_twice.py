"""The second bind of one UDP address is refused, unless both sockets have an option for it."""
import socket

from common import attempt, new

for port, first, second in (
    (28226, [], []),
    (28227, [socket.SO_REUSEADDR], []),
    (28228, [], [socket.SO_REUSEADDR]),
    (28229, [socket.SO_REUSEADDR], [socket.SO_REUSEADDR]),
    (28230, [socket.SO_REUSEPORT], [socket.SO_REUSEPORT]),
    (28231, [socket.SO_REUSEPORT], []),
    (28232, [], [socket.SO_REUSEPORT]),
):
    one = new(socket.AF_INET, socket.SOCK_DGRAM, *first)
    two = new(socket.AF_INET, socket.SOCK_DGRAM, *second)
    attempt(f"{port}: first", one.bind, ("127.0.0.1", port))
    attempt(f"{port}: second", two.bind, ("127.0.0.1", port))
    attempt("wildcard beside it", new(socket.AF_INET, socket.SOCK_DGRAM).bind, ("0.0.0.0", port))
    print("option of the first:", one.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT))
    one.close()
    attempt("after close", two.bind, ("127.0.0.1", port))
    two.close()
