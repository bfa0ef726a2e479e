"""Bound to a device."""
import socket

from common import new, serve

one = new(socket.AF_INET, socket.SOCK_STREAM, socket.SO_REUSEADDR)
one.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
one.bind(("127.0.0.1", 28400))
one.listen(64)
serve(one)
