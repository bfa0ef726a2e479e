"""A fork made before bind: parent and child have one socket, whoever of them binds and listens."""
import os
import socket

from common import attempt, exchange, in_child, new

one = new(socket.AF_INET, socket.SOCK_STREAM, socket.SO_REUSEADDR)
in_child(lambda: attempt("child binds", one.bind, ("127.0.0.1", 28317)))
print("parent's name", one.getsockname())
attempt("parent listens", one.listen, 5)
exchange("parent", one, ("127.0.0.1", 28317))
two = socket.socket(socket.AF_UNIX)
in_child(lambda: (attempt("child binds the path", two.bind, "app.sock"), attempt("listens", two.listen, 5)))
print("parent's name", two.getsockname())
exchange("parent at the path", two, "app.sock", socket.AF_UNIX)
