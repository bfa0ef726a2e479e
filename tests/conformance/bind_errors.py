"""What bind refuses, and how."""
import ctypes
import os
import socket
import struct

from common import attempt, name, new

libc = ctypes.CDLL(None, use_errno=True)


def raw(what, fd, address, length):
    result = libc.bind(fd, address, length)
    error = ctypes.get_errno()
    print(f"{what}:", "ok" if result == 0 else name(OSError(error, "")), flush=True)


def inet(port, host=b"\x7f\0\0\1", family=socket.AF_INET):
    return struct.pack("=H", family) + struct.pack(">H", port) + host + bytes(8)


one = new()
raw("short", one.fileno(), inet(28290), 8)
raw("negative length", one.fileno(), inet(28290), -1)
raw("too long", one.fileno(), inet(28290) + bytes(200), 200)
raw("null", one.fileno(), None, 16)
raw("unmapped", one.fileno(), ctypes.c_void_p(8), 16)
raw("another family", one.fileno(), inet(28290, family=socket.AF_INET6), 16)
raw("AF_UNSPEC with an address", one.fileno(), inet(28290, family=0), 16)
raw("no descriptor", 999, inet(28290), 16)
with open("/dev/null") as file:
    raw("no socket", file.fileno(), inet(28290), 16)
raw("a longer structure", one.fileno(), inet(28290) + bytes(100), 100)
print(one.getsockname())
unspecified = new()
raw("AF_UNSPEC wildcard", unspecified.fileno(), inet(28291, b"\0\0\0\0", 0), 16)
print(unspecified.getsockname())
attempt("not an address of this host", new().bind, ("192.0.2.1", 28292))
attempt("IPv4 address for IPv6", lambda: new(socket.AF_INET6).bind(("::ffff:192.0.2.1", 28292)))
attempt("a broadcast address", new().bind, ("255.255.255.255", 28292))
attempt("multicast", new().bind, ("224.0.0.1", 28292))
raw("an O_PATH descriptor", os.open("/", os.O_PATH), inet(28293), 16)
unix = socket.socket(socket.AF_UNIX)
raw("a Unix name without an end", unix.fileno(), struct.pack("=H", 1) + b"no-end", 8)
print(unix.getsockname(), os.listdir("."))
two = socket.socket(socket.AF_UNIX)
raw("a Unix path with a tail", two.fileno(), struct.pack("=H", 1) + b"path\0tail" + bytes(99), 110)
print(repr(two.getsockname()), sorted(os.listdir(".")))
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    closed = new(socket.AF_INET, kind)
    number = closed.detach()
    os.close(number)
    raw("closed", number, inet(28294), 16)
