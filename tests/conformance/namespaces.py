"""Children in network, mount and process namespaces of their own: the same address is another one there."""
import ctypes
import fcntl
import os
import socket
import struct

from common import attempt, connect, exchange, in_child, listener, unsupported

NEWNS, NEWPID, NEWNET = 0x20000, 0x20000000, 0x40000000
PRIVATE = 0x44000  # MS_REC | MS_PRIVATE
libc = ctypes.CDLL(None, use_errno=True)
ADDRESS = ("127.0.0.1", 28328)
if os.geteuid() != 0:
    unsupported("namespaces are for root")
one = listener(ADDRESS)


def other_network():
    if libc.unshare(NEWNET):
        print("no network namespaces", flush=True)
        return
    control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    fcntl.ioctl(control, 0x8914, struct.pack("16sH14x", b"lo", 1))
    attempt("nobody listens there", connect, ADDRESS)
    own = attempt("the same address there", listener, ADDRESS)
    own and exchange("there", own, ADDRESS)
    attempt("twice there", listener, ADDRESS)
    inherited = socket.socket(fileno=os.dup(one.fileno()))
    print("inherited:", inherited.getsockname(), flush=True)


def other_mounts():
    if libc.unshare(NEWNS) or libc.mount(b"none", b"/", None, PRIVATE, None):
        print("no mount namespaces", flush=True)
        return
    os.makedirs("mounted", exist_ok=True)
    libc.mount(b"none", b"mounted", b"tmpfs", 0, None)
    unix = socket.socket(socket.AF_UNIX)
    attempt("bind in a mount of its own", unix.bind, "mounted/app.sock")
    attempt("listen", unix.listen, 5)
    exchange("there", unix, "mounted/app.sock", socket.AF_UNIX)
    print(os.listdir("mounted"), flush=True)


def other_processes():
    if libc.unshare(NEWPID):
        print("no process namespaces", flush=True)
        return

    def inside():
        print("pid", os.getpid(), flush=True)
        own = attempt("bind as process 1", listener, ("127.0.0.1", 28329))
        own and exchange("there", own, ("127.0.0.1", 28329))
        attempt("what is taken outside is taken", listener, ADDRESS)
        unix = socket.socket(socket.AF_UNIX)
        attempt("path", unix.bind, "inside.sock")
        attempt("listen", unix.listen, 5)
        exchange("at it", unix, "inside.sock", socket.AF_UNIX)

    in_child(inside)


in_child(other_network)
exchange("here", one, ADDRESS)
in_child(other_mounts)
print(sorted(os.listdir(".")), os.listdir("mounted"))
in_child(other_processes)
print(sorted(os.listdir(".")))
