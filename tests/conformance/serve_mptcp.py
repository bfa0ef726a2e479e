"""An MPTCP listener, as newer Go programs have; TCP where the kernel has no MPTCP, as they do."""
import socket

from common import serve

try:
    one = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
except OSError:
    one = socket.socket()
one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
one.bind(("127.0.0.1", 28400))
one.listen(64)
serve(one)
