"""Binds and listens on one descriptor and accepts on a duplicate that was made before."""
import socket

from common import new, serve

one = new(socket.AF_INET, socket.SOCK_STREAM, socket.SO_REUSEADDR)
duplicate = one.dup()
one.bind(("127.0.0.1", 28400))
one.listen(64)
one.close()
serve(duplicate)
