"""A pre-forking server: the parent binds and listens, each child accepts on its own, the parent closes."""
import os
import socket

from common import attempt, connect, listener

ADDRESS = ("127.0.0.1", 28312)
CHILDREN = 3
one = listener(ADDRESS)
pids = []
for index in range(CHILDREN):
    pid = os.fork()
    if pid == 0:
        # One connection each: the kernel cannot give all of them to one child.
        accepted, _ = one.accept()
        accepted.sendall(b"child %d" % index)
        accepted.close()
        os._exit(0)
    pids.append(pid)
one.close()
print(sorted(connect(ADDRESS).recv(16) for _ in range(CHILDREN)))
for pid in pids:
    os.waitpid(pid, 0)
attempt("nobody has it any more", lambda: listener(ADDRESS).close())
