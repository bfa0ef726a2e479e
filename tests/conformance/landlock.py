"""A program that Landlock confines gets the ports that it may bind, and no other."""
import ctypes
import os
import socket
import struct

from common import attempt, name, unsupported

CREATE, ADD_RULE, RESTRICT = 444, 445, 446
BIND_TCP, RULE_NET_PORT = 1, 2
libc = ctypes.CDLL(None, use_errno=True)


def call(number, *args):
    result = libc.syscall(number, *args)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


try:
    ruleset = call(CREATE, struct.pack("QQ", 0, BIND_TCP), 16, 0)
except OSError as error:
    unsupported(f"Landlock knows no ports here: {name(error)}")
call(ADD_RULE, ruleset, RULE_NET_PORT, struct.pack("QQ", BIND_TCP, 28252), 0)
libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
call(RESTRICT, ruleset, 0)
for port in (28252, 28253):
    one = socket.socket()
    attempt(f"bind {port}", one.bind, ("127.0.0.1", port))
    attempt(f"listen {port}", one.listen, 1)
    print(one.getsockname()[1] == port)
