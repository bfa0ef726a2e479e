"""bind where something is already: EADDRINUSE, and what is there stays."""
import os
import socket

from common import attempt

UNIX = socket.AF_UNIX
with open("file", "w") as file:
    file.write("content")
os.mkdir("folder")
os.symlink("nowhere", "dangling")
os.symlink("folder", "link")
os.mkfifo("fifo")
stale = socket.socket(UNIX)
stale.bind("stale")
stale.close()
serving = socket.socket(UNIX)
serving.bind("serving")
serving.listen(5)
for path in ("file", "folder", "dangling", "fifo", "stale", "serving"):
    one = socket.socket(UNIX)
    attempt(path, one.bind, path)
    print("name", repr(one.getsockname()))
    attempt(f"{path}: the same socket elsewhere", one.bind, f"beside-{path}")
attempt("through a link to a folder", socket.socket(UNIX).bind, "link/app.sock")
attempt("no such folder", socket.socket(UNIX).bind, "missing/app.sock")
attempt("below a file", socket.socket(UNIX).bind, "file/app.sock")
attempt("the longest name", socket.socket(UNIX).bind, "x" * 108)
print(open("file").read(), sorted(os.listdir(".")), os.listdir("folder"))
