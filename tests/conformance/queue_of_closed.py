"""Connections that wait in the queue of a listener that is closed are reset; a new listener has a queue of its own."""
import socket

from common import attempt, connect, exchange, listener

ADDRESS = ("127.0.0.1", 28318)
one = listener(ADDRESS)
waiting = [connect(ADDRESS) for _ in range(3)]
one.close()
two = attempt("listen again at once", listener, ADDRESS)
exchange("the new one", two, ADDRESS)
two.setblocking(False)
attempt("nothing old in its queue", two.accept)
