"""A socket registered with io_uring before bind: the ring's accept takes connections of the address."""
import ctypes
import mmap
import os
import signal
import socket
import struct

from common import connect, name, new, unsupported

SETUP, ENTER, REGISTER = 425, 426, 427
REGISTER_FILES, OP_ACCEPT, FIXED_FILE, GETEVENTS = 2, 13, 1, 1
OFF_SQ_RING, OFF_SQES = 0, 0x10000000
libc = ctypes.CDLL(None, use_errno=True)


def call(number, *args):
    result = libc.syscall(number, *args)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def ring():
    parameters = ctypes.create_string_buffer(120)
    fd = call(SETUP, 4, parameters)
    words = struct.unpack("30I", parameters.raw)
    return fd, words[0], words[1], words[10:20], words[20:30]


try:
    fd, sq_entries, cq_entries, sq, cq = ring()
except OSError as error:
    unsupported(f"no io_uring: {name(error)}")
one = new(socket.AF_INET, socket.SOCK_STREAM, socket.SO_REUSEADDR)
files = struct.pack("i", one.fileno())
call(REGISTER, fd, REGISTER_FILES, files, 1)

one.bind(("127.0.0.1", 28217))
one.listen(5)

# Both rings in one mapping, as every kernel of today has them (IORING_FEAT_SINGLE_MMAP).
size = max(sq[6] + 4 * sq_entries, cq[5] + 16 * cq_entries)
rings = mmap.mmap(fd, size, offset=OFF_SQ_RING)
entries = mmap.mmap(fd, 64 * sq_entries, offset=OFF_SQES)
entries[0:64] = struct.pack("BBHiQQIIQ24x", OP_ACCEPT, FIXED_FILE, 0, 0, 0, 0, 0, 0, 7)
rings[sq[6]:sq[6] + 4] = struct.pack("I", 0)
rings[sq[1]:sq[1] + 4] = struct.pack("I", 1)

client = connect(("127.0.0.1", 28217))
# A lost registration must not hang the program.
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 5)
try:
    call(ENTER, fd, 1, 1, GETEVENTS, None, 0)
except OSError as error:
    print("enter:", name(error))
if struct.unpack("I", rings[cq[1]:cq[1] + 4])[0]:
    _, result, _ = struct.unpack("QiI", rings[cq[5]:cq[5] + 16])
    print("accept:", "a descriptor" if result >= 0 else result)
else:
    print("accept: nothing")
