"""Two processes of one program each bind with SO_REUSEPORT; O_NONBLOCK of one is not that of the other."""
import os
import socket

from common import in_child, new

ADDRESS = ("127.0.0.1", 28213)


def server():
    made = new(socket.AF_INET, socket.SOCK_STREAM, socket.SO_REUSEPORT)
    made.bind(ADDRESS)
    made.listen(5)
    return made


parent = server()


def child():
    own = server()
    print("child at first:", os.get_blocking(own.fileno()), flush=True)
    os.set_blocking(own.fileno(), False)
    print("child:", os.get_blocking(own.fileno()), flush=True)
    try:
        own.accept()
    except BlockingIOError:
        print("child: would block", flush=True)


in_child(child)
print("parent:", os.get_blocking(parent.fileno()))
