"""A Unix path, unlinked before bind as most servers do."""
import os
import socket

from common import serve

try:
    os.unlink("app.sock")
except FileNotFoundError:
    pass
one = socket.socket(socket.AF_UNIX)
one.bind("app.sock")
one.listen(64)
serve(one)
