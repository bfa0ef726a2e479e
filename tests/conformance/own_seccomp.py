"""A program's own seccomp filter that forbids bind stays the stricter one; listen and the rest go on."""
import ctypes
import errno
import os
import socket
import struct

from common import attempt, exchange, new, unsupported

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, MODE_FILTER = 38, 22, 2
BIND = {"x86_64": 49, "aarch64": 200}.get(os.uname().machine)
if BIND is None:
    unsupported("the number of bind is not known on this machine")
libc = ctypes.CDLL(None, use_errno=True)
one = new(socket.AF_INET, socket.SOCK_STREAM, socket.SO_REUSEADDR)
attempt("bind before", one.bind, ("127.0.0.1", 28330))
instructions = struct.pack("HBBI", 0x20, 0, 0, 0)  # the number of the call
instructions += struct.pack("HBBI", 0x15, 0, 1, BIND)  # is it bind
instructions += struct.pack("HBBI", 0x06, 0, 0, 0x50000 | errno.EPERM)
instructions += struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000)
code = ctypes.create_string_buffer(instructions)
program = ctypes.create_string_buffer(struct.pack("HL", 4, ctypes.addressof(code)))
libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
print("filter:", libc.prctl(PR_SET_SECCOMP, MODE_FILTER, program, 0, 0))
attempt("bind after", new().bind, ("127.0.0.1", 28331))
attempt("Unix bind after", socket.socket(socket.AF_UNIX).bind, "app.sock")
attempt("listen", one.listen, 5)
exchange("listening", one, ("127.0.0.1", 28330))
