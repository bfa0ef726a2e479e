"""Signals that come all the time, with SA_RESTART: bind and listen never fail with EINTR, and are made once."""
import ctypes
import errno
import os
import platform
import signal
import socket
import struct
from collections import Counter

from common import name, new

libc = ctypes.CDLL(None, use_errno=True)
signal.signal(signal.SIGALRM, lambda *_: None)
# Python leaves SA_RESTART out; nearly everybody else sets it.
libc.siginterrupt(signal.SIGALRM, 0)
SECCOMP = 317 if platform.machine() == "x86_64" else 277
SET_MODE_FILTER, NEW_LISTENER, WAIT_KILLABLE_RECV = 1, 8, 32
# No filter is given: a kernel that knows the flags stumbles over that, another one over the flags. One without them lets
# any signal break a call off that somebody else answers: it is made again, and a signal for each time that an answer
# takes would keep it from ever being made. And a slow machine must get on with the program between two signals.
libc.syscall(SECCOMP, SET_MODE_FILTER, NEW_LISTENER | WAIT_KILLABLE_RECV, None)
every = 0.0003 if ctypes.get_errno() == errno.EFAULT else 0.004
every *= int(os.environ.get("MASTER_PROCESS_SLOW") or 1)
signal.setitimer(signal.ITIMER_REAL, every, every)
address = struct.pack("=H", socket.AF_INET) + struct.pack(">H", 28324) + b"\x7f\0\0\1" + bytes(8)
outcomes = Counter()


def note(what, result):
    outcomes[what, "ok" if result == 0 else name(OSError(ctypes.get_errno(), ""))] += 1


for turn in range(1000):
    one = new(socket.AF_INET, socket.SOCK_STREAM, socket.SO_REUSEADDR)
    note("bind", libc.bind(one.fileno(), address, 16))
    note("listen", libc.listen(one.fileno(), 5))
    one.close()
for turn in range(300):
    one = socket.socket(socket.AF_UNIX)
    path = struct.pack("=H", socket.AF_UNIX) + b"interrupted.sock\0"
    note("unix bind", libc.bind(one.fileno(), path, len(path)))
    note("unix listen", libc.listen(one.fileno(), 5))
    one.close()
    os.unlink("interrupted.sock")
signal.setitimer(signal.ITIMER_REAL, 0)
for key in sorted(outcomes):
    print(*key, outcomes[key])
