"""A Unix bind is made with the file-system identity of the thread that calls it."""
import ctypes
import os
import socket

from common import attempt, unsupported

libc = ctypes.CDLL(None)
UNIX = socket.AF_UNIX
if os.geteuid() != 0:
    unsupported("setfsuid is for root")
os.chmod(".", 0o755)
for name, owner in (("of-root", 0), ("of-nobody", 65534)):
    os.mkdir(name, 0o700)
    os.chown(name, owner, owner)
for name in ("of-root", "of-nobody"):
    one = socket.socket(UNIX)
    libc.setfsgid(65534)
    libc.setfsuid(65534)
    attempt(f"{name}: bind as nobody", one.bind, f"{name}/app.sock")
    attempt(f"{name}: listen", one.listen, 5)
    libc.setfsuid(0)
    libc.setfsgid(0)
    for found in os.listdir(name):
        at = os.stat(f"{name}/{found}")
        print(name, found, at.st_uid, at.st_gid)
