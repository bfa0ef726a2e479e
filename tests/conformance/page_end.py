"""An address that ends where mapped memory ends: nobody may read more of it than its length."""
import ctypes
import mmap
import os
import socket
import struct

from common import exchange, name, new

libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.bind.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_uint]
room = mmap.mmap(-1, 2 * mmap.PAGESIZE)
start = ctypes.addressof(ctypes.c_char.from_buffer(room))
libc.mprotect(start + mmap.PAGESIZE, mmap.PAGESIZE, 0)


def bind(one, address):
    begin = mmap.PAGESIZE - len(address)
    room[begin:mmap.PAGESIZE] = address
    result = libc.bind(one.fileno(), start + begin, len(address))
    print("ok" if result == 0 else name(OSError(ctypes.get_errno(), "")), one.getsockname())


inet = new(socket.AF_INET, socket.SOCK_STREAM, socket.SO_REUSEADDR)
bind(inet, struct.pack("=H", socket.AF_INET) + struct.pack(">H", 28325) + b"\x7f\0\0\1" + bytes(8))
inet.listen(5)
exchange("IPv4", inet, ("127.0.0.1", 28325))
inet6 = new(socket.AF_INET6, socket.SOCK_STREAM, socket.SO_REUSEADDR)
bind(inet6, struct.pack("=H", socket.AF_INET6) + struct.pack(">H", 28326) + bytes(4) + bytes(15) + b"\1" + bytes(4))
inet6.listen(5)
exchange("IPv6", inet6, ("::1", 28326), socket.AF_INET6)
short = new(socket.AF_INET6, socket.SOCK_STREAM)
bind(short, struct.pack("=H", socket.AF_INET6) + struct.pack(">H", 28327) + bytes(4) + bytes(15) + b"\1")
unix = socket.socket(socket.AF_UNIX)
bind(unix, struct.pack("=H", socket.AF_UNIX) + b"page.sock")
unix.listen(5)
exchange("Unix", unix, "page.sock", socket.AF_UNIX)
print(os.listdir("."))
# The mapping cannot be closed while its address is in use.
os._exit(0)
