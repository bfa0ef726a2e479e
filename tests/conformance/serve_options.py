"""Options that only a listener of one's own has: TCP_DEFER_ACCEPT, TCP_FASTOPEN, a small buffer, a filter."""
import socket

from common import new, serve

one = new(socket.AF_INET, socket.SOCK_STREAM, socket.SO_REUSEADDR)
one.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 3)
one.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 16)
one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
one.bind(("127.0.0.1", 28400))
one.listen(64)
serve(one)
