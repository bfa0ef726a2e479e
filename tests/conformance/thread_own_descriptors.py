"""A thread with a descriptor table of its own: its number is another file in the first thread's table."""
import ctypes
import os
import socket
import threading

from common import attempt, exchange, new

CLONE_FILES = 0x400
libc = ctypes.CDLL(None, use_errno=True)
opened, taken, bound, closed = (threading.Event() for _ in range(4))
shared = {}


def serve():
    if libc.unshare(CLONE_FILES):
        raise SystemExit("unshare failed")
    one = new(socket.AF_INET, socket.SOCK_STREAM, socket.SO_REUSEADDR)
    shared["number"] = one.fileno()
    opened.set()
    taken.wait(10)
    attempt("bind", one.bind, ("127.0.0.1", 28301))
    attempt("listen", one.listen, 5)
    print("listens:", one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN), one.getsockname())
    exchange("thread", one, ("127.0.0.1", 28301))
    bound.set()
    closed.wait(10)
    exchange("thread, later", one, ("127.0.0.1", 28301))
    unix = socket.socket(socket.AF_UNIX)
    attempt("unix", unix.bind, "own.sock")
    attempt("unix listen", unix.listen, 5)
    exchange("thread at its path", unix, "own.sock", socket.AF_UNIX)


thread = threading.Thread(target=serve)
thread.start()
opened.wait(10)
# Under the thread's number there is another socket here, and it stays what it is.
other = new(socket.AF_INET, socket.SOCK_STREAM)
if other.fileno() != shared["number"]:
    os.dup2(other.fileno(), shared["number"])
before = os.fstat(shared["number"]).st_ino
taken.set()
bound.wait(10)
print("the first thread's file is untouched:", os.fstat(shared["number"]).st_ino == before)
mine = socket.socket(fileno=os.dup(shared["number"]))
print(mine.getsockname(), mine.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
os.close(shared["number"])
closed.set()
thread.join()
os._exit(0)
