"""The socket that a program made is the one that it has after bind and listen: inode, cookie, number, filter."""
import ctypes
import os
import socket
import struct

from common import new

SO_COOKIE, SO_ATTACH_FILTER, SO_GET_FILTER = 57, 26, 26
for port, family, address in ((28320, socket.AF_INET, ("127.0.0.1", 28320)),
                              (28321, socket.AF_INET6, ("::1", 28321)),
                              (0, socket.AF_UNIX, "identity.sock")):
    one = new(family)

    def seen():
        cookie = one.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8)
        found = os.fstat(one.fileno())
        return cookie, found.st_ino, found.st_mode, one.fileno(), len(os.listdir("/proc/self/fd"))

    # `return 0xffff`: everything passes.
    instruction = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0xFFFF))
    one.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", 1, ctypes.addressof(instruction)))
    before = seen()
    one.bind(address)
    print(family.name, "after bind:", [a == b for a, b in zip(before, seen())])
    one.listen(5)
    print(family.name, "after listen:", [a == b for a, b in zip(before, seen())])
    length = ctypes.c_uint32(1)
    room = ctypes.create_string_buffer(8)
    result = ctypes.CDLL(None).getsockopt(one.fileno(), socket.SOL_SOCKET, SO_GET_FILTER, room, ctypes.byref(length))
    print("filter kept:", result == 0 and room.raw == instruction.raw[:8])
