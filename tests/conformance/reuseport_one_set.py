"""Two sockets at one address where only one has SO_REUSEPORT: the second is refused, in either order."""
import socket

from common import attempt, new

REUSEPORT = [socket.SO_REUSEPORT]
PORT = 28203
for first, second in (([], REUSEPORT), (REUSEPORT, []), ([], [])):
    for listening in (False, True):
        words = f"{'set' if first else 'unset'}, {'set' if second else 'unset'}, " \
                f"{'listening' if listening else 'bound'}"
        one = new(socket.AF_INET, socket.SOCK_STREAM, *first)
        two = new(socket.AF_INET, socket.SOCK_STREAM, *second)
        attempt(f"{words}: first", one.bind, ("127.0.0.1", PORT))
        if listening:
            attempt(f"{words}: first listens", one.listen, 5)
        attempt(f"{words}: second", two.bind, ("127.0.0.1", PORT))
        one.close()
        attempt(f"{words}: second after the first is closed", two.bind, ("127.0.0.1", PORT))
        two.close()
        PORT += 1
