"""bind, chmod and chown: what the program sets stays, also over listen."""
import os
import socket
import stat

one = socket.socket(socket.AF_UNIX)
one.bind("app.sock")


def show(when):
    found = os.stat("app.sock")
    print(f"{when}: {stat.filemode(found.st_mode)} {found.st_uid}:{found.st_gid}")


show("bound")
os.chmod("app.sock", 0o600)
if os.geteuid() == 0:
    os.chown("app.sock", 1, 2)
show("changed")
one.listen(5)
show("listening")
one.close()
show("closed")

# fchmod before bind decides the mode as well.
two = socket.socket(socket.AF_UNIX)
os.fchmod(two.fileno(), 0o640)
two.bind("two.sock")
print(stat.filemode(os.stat("two.sock").st_mode))
print(stat.filemode(os.fstat(two.fileno()).st_mode))
