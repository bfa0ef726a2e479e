"""A dual-stack listener on `::` takes both families, and the IPv4 wildcard of its port with it."""
import socket

from common import attempt, exchange, listener, new

PORT = 28221
one = new(socket.AF_INET6, socket.SOCK_STREAM, socket.SO_REUSEADDR)
one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
one.bind(("::", PORT))
one.listen(5)
print(one.getsockname())
for address, family in ((("127.0.0.1", PORT), socket.AF_INET), (("::1", PORT), socket.AF_INET6)):
    peer = exchange(f"by {address[0]}", one, address, family)
    print("peer", peer and peer[0])
attempt("0.0.0.0", listener, ("0.0.0.0", PORT))
attempt("127.0.0.1", listener, ("127.0.0.1", PORT))
attempt("::1", lambda: listener(("::1", PORT), family=socket.AF_INET6))
