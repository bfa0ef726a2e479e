"""In a user namespace of its own, root's power over the files of others is gone: for bind as well."""
import ctypes
import os
import socket

from common import attempt, in_child, unsupported

libc = ctypes.CDLL(None, use_errno=True)
UNIX, NEWUSER = socket.AF_UNIX, 0x10000000
if os.geteuid() != 0:
    unsupported("the folders of others are for root to make")
os.chmod(".", 0o755)
for name, owner, mode in (("of-root", 0, 0o700), ("of-other", 1000, 0o755), ("of-nobody", 65534, 0o700)):
    os.mkdir(name)
    os.chown(name, owner, owner)
    os.chmod(name, mode)


def child():
    if libc.unshare(NEWUSER):
        print("no user namespaces here", flush=True)
        return
    for name in ("of-root", "of-other", "of-nobody"):
        one = socket.socket(UNIX)
        attempt(f"{name}: bind", one.bind, f"{name}/app.sock")
        attempt(f"{name}: listen", one.listen, 5)
    attempt("port 81", socket.socket().bind, ("127.0.0.1", 81))
    attempt("port 28250", socket.socket().bind, ("127.0.0.1", 28250))


in_child(child)
for name in ("of-root", "of-other", "of-nobody"):
    print(name, [(found, os.stat(f"{name}/{found}").st_uid) for found in os.listdir(name)])
