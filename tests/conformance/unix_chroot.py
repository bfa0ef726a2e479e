"""A Unix path is looked up with the program's own root and working directory."""
import os
import socket

from common import attempt, exchange, in_child, unsupported

UNIX = socket.AF_UNIX
os.mkdir("jail")
os.mkdir("jail/run")


def child():
    os.chroot("jail")
    os.chdir("/")
    one = socket.socket(UNIX)
    attempt("bind", one.bind, "/run/app.sock")
    one.listen(5)
    exchange("inside", one, "/run/app.sock", UNIX)
    print(os.listdir("/run"), one.getsockname(), flush=True)


if os.geteuid() != 0:
    unsupported("chroot is for root")
in_child(child)
print(os.listdir("jail/run"), os.path.exists("/run/app.sock"))
