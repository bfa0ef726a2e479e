"""O_NONBLOCK and FD_CLOEXEC are as the program has them, through bind, listen and fork."""
import fcntl
import os
import socket

from common import in_child


def show(what, fd):
    print(what, "O_NONBLOCK", bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK),
          "FD_CLOEXEC", fcntl.fcntl(fd, fcntl.F_GETFD), flush=True)


for port, flags, inheritable in ((28295, 0, True), (28296, socket.SOCK_NONBLOCK, True), (28297, 0, False),
                                 (28298, socket.SOCK_NONBLOCK, False)):
    one = socket.socket(socket.AF_INET, socket.SOCK_STREAM | flags)
    one.set_inheritable(inheritable)
    show("new", one)
    one.bind(("127.0.0.1", port))
    show("bound", one)
    os.set_blocking(one.fileno(), not os.get_blocking(one.fileno()))
    one.listen(5)
    show("listening", one)
    in_child(lambda: os.set_blocking(one.fileno(), not os.get_blocking(one.fileno())))
    show("after the child changed it", one)
unix = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
unix.bind("app.sock")
show("unix", unix)
unix.listen(5)
show("unix", unix)
for duplicate in (os.dup(unix.fileno()), fcntl.fcntl(unix, fcntl.F_DUPFD, 40)):
    show("duplicate", duplicate)
