"""A v6only `::` beside `0.0.0.0` on one port."""
import socket

from common import listener, new, serve_all

four = listener(("0.0.0.0", 28400))
six = new(socket.AF_INET6, socket.SOCK_STREAM, socket.SO_REUSEADDR)
six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
six.bind(("::", 28400))
six.listen(64)
serve_all(four, six)
