"""Without privileges, a privileged port is refused, and so is a path in somebody else's folder."""
import os
import socket

from common import attempt, in_child, unsupported

if os.geteuid() != 0:
    unsupported("privileges are dropped by those who have them")
os.chmod(".", 0o755)


def child():
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    for port in (81, 445, 28251):
        one = socket.socket()
        attempt(f"bind {port}", one.bind, ("127.0.0.1", port))
        attempt(f"listen {port}", one.listen, 5)
        print(one.getsockname()[1] in (0, port), flush=True)
    attempt("path", socket.socket(socket.AF_UNIX).bind, "app.sock")
    datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    attempt("UDP 81", datagram.bind, ("127.0.0.1", 81))


in_child(child)
attempt("root's own 81", socket.socket().bind, ("127.0.0.1", 81))
print(os.listdir("."))
