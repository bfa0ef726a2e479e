"""One dual-stack listener on `::`."""
import socket

from common import new, serve

one = new(socket.AF_INET6, socket.SOCK_STREAM, socket.SO_REUSEADDR)
one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
one.bind(("::", 28400))
one.listen(64)
serve(one)
