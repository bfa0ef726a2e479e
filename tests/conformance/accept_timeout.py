"""A blocked accept keeps its own rules: a time-out set before bind, and a signal."""
import signal
import socket
import struct
import time

from common import attempt, name, new

one = new(socket.AF_INET, socket.SOCK_STREAM, socket.SO_REUSEADDR)
one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 1, 0))
one.bind(("127.0.0.1", 28360))
one.listen(5)
begun = time.monotonic()
attempt("accept", one.accept)
print("after a second:", 0.9 < time.monotonic() - begun < 3)


class Interrupted(Exception):
    pass


def handler(*_):
    raise Interrupted


signal.signal(signal.SIGALRM, handler)
two = new(socket.AF_INET, socket.SOCK_STREAM, socket.SO_REUSEADDR)
two.bind(("127.0.0.1", 28361))
two.listen(5)
signal.setitimer(signal.ITIMER_REAL, 0.3)
try:
    two.accept()
except Interrupted:
    print("interrupted")
except OSError as error:
    print(name(error))
