"""A duplicate made before bind is the same socket after it."""
import socket

one = socket.socket()
one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
duplicate = one.dup()
one.bind(("127.0.0.1", 28102))
duplicate.listen(5)
print("dup's address", duplicate.getsockname())
try:
    socket.create_connection(("127.0.0.1", 28102), 2)
    print("connected")
except OSError as error:
    print("connect:", error)
