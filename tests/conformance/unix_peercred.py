"""A client sees the credentials of who called listen, as they were then."""
import os
import socket
import struct

from common import in_child

UNIX = socket.AF_UNIX


def seen(path):
    client = socket.socket(UNIX)
    client.connect(path)
    return struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))


def show(what, path, pid):
    found = seen(path)
    print(f"{what}: pid {found[0] == pid}, uid {found[1]}, gid {found[2]}", flush=True)


one = socket.socket(UNIX)
one.bind("one.sock")
one.listen(5)
show("listened here", "one.sock", os.getpid())

two = socket.socket(UNIX)
two.bind("two.sock")
os.chmod("two.sock", 0o777)


def child():
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    two.listen(5)
    show("listened in a child", "two.sock", os.getpid())


in_child(child)
client = socket.socket(UNIX)
client.connect("one.sock")
server, _ = one.accept()
found = struct.unpack("3i", server.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
print("the client, seen by the server:", found[0] == os.getpid(), found[1], found[2])
