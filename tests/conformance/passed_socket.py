"""A socket that is passed by SCM_RIGHTS between bind and listen is the same socket on the other side."""
import os
import socket

from common import attempt, exchange, new

ADDRESS = ("127.0.0.1", 28315)
left, right = socket.socketpair()
pid = os.fork()
if pid == 0:
    left.close()
    _, fds, _, _ = socket.recv_fds(right, 1, 2)
    passed, early = (socket.socket(fileno=fd) for fd in fds)
    attempt("child listens", passed.listen, 5)
    right.sendall(b"l")
    right.recv(1)
    print("bound by the parent, seen by the child:", early.getsockname(), flush=True)
    attempt("child listens on it", early.listen, 5)
    right.sendall(b"l")
    right.recv(1)
    os._exit(0)
bound, unbound = (new(socket.AF_INET, socket.SOCK_STREAM, socket.SO_REUSEADDR) for _ in range(2))
bound.bind(ADDRESS)
socket.send_fds(left, [b"x"], [bound.fileno(), unbound.fileno()])
left.recv(1)
print("listens:", bound.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN), flush=True)
exchange("parent accepts what the child listens on", bound, ADDRESS)
# Passed before it was bound: bind here must be seen there.
attempt("bind", unbound.bind, ("127.0.0.1", 28316))
left.sendall(b"b")
left.recv(1)
exchange("parent accepts", unbound, ("127.0.0.1", 28316))
left.sendall(b"e")
os.waitpid(pid, 0)
