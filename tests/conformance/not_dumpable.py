"""A program that made itself not dumpable, as those that hold keys do, with few descriptors left."""
import ctypes
import os
import resource
import socket

from common import attempt, exchange, listener, new

PR_SET_DUMPABLE = 4
ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
# What the program was started with is not counted.
os.closerange(3, 64)
resource.setrlimit(resource.RLIMIT_NOFILE, (12, 12))
one = attempt("listen", listener, ("127.0.0.1", 28332))
exchange("listening", one, ("127.0.0.1", 28332))
unix = socket.socket(socket.AF_UNIX)
attempt("Unix bind", unix.bind, "app.sock")
attempt("Unix listen", unix.listen, 5)
exchange("Unix", unix, "app.sock", socket.AF_UNIX)
attempt("taken", listener, ("127.0.0.1", 28332))
# Up to the limit: each has the next number, and the last one is refused by socket, not by bind.
kept = []
for index in range(20):
    try:
        kept.append(new())
    except OSError as error:
        print("no descriptor left after", len(kept), error.errno)
        break
    attempt(f"bind {index}", kept[-1].bind, ("127.0.0.1", 28333 + index))
    print(kept[-1].fileno(), kept[-1].getsockname())
