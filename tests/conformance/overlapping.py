"""Addresses that overlap exclude each other as long as both are open, and no longer."""
import socket

from common import attempt, exchange, listener, new

PORT = 28287
one = listener(("127.0.0.1", PORT))
attempt("wildcard beside it", listener, ("0.0.0.0", PORT))
attempt("IPv6 wildcard beside it", lambda: listener(("::", PORT), family=socket.AF_INET6))
other = attempt("another address of the host", listener, ("127.0.0.2", PORT))
exchange("at the first", one, ("127.0.0.1", PORT))
exchange("at the second", other, ("127.0.0.2", PORT))
attempt("nobody at the third", lambda: socket.create_connection(("127.0.0.3", PORT), 5))
attempt("the same again", listener, ("127.0.0.1", PORT))
one.close()
attempt("wildcard beside the second", listener, ("0.0.0.0", PORT))
other.close()
wild = attempt("wildcard alone", listener, ("0.0.0.0", PORT))
wild and exchange("through the wildcard", wild, ("127.0.0.3", PORT))
attempt("an address beside the wildcard", listener, ("127.0.0.1", PORT))

# Two that are bound, with SO_REUSEADDR: the second listen is refused.
pair = [new(socket.AF_INET, socket.SOCK_STREAM, socket.SO_REUSEADDR) for _ in range(2)]
for index, each in enumerate(pair):
    attempt(f"bind {index}", each.bind, ("127.0.0.1", 28288))
for index, each in enumerate(pair):
    attempt(f"listen {index}", each.listen, 5)
exchange("at the first of two", pair[0], ("127.0.0.1", 28288))
pair[0].close()
attempt("listen 1 when the first is closed", pair[1].listen, 5)
exchange("at the second of two", pair[1], ("127.0.0.1", 28288))
