"""Binds, forks, and the child listens and accepts on what the parent bound."""
import socket

from common import attempt, exchange, in_child, new

bound = new(socket.AF_INET, socket.SOCK_STREAM, socket.SO_REUSEADDR)
bound.bind(("127.0.0.1", 28201))


def child():
    attempt("child listens", bound.listen, 5)
    exchange("child", bound, ("127.0.0.1", 28201))


in_child(child)
exchange("parent accepts on the same socket", bound, ("127.0.0.1", 28201))
bound.close()
