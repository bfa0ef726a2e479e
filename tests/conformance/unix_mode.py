"""The mode of a Unix socket follows the umask at bind."""
import os
import socket
import stat

for mask in (0o077, 0o022, 0):
    path = "m%o.sock" % mask
    os.umask(mask)
    one = socket.socket(socket.AF_UNIX)
    one.bind(path)
    print("umask %03o: mode %04o" % (mask, stat.S_IMODE(os.stat(path).st_mode)))
    one.listen(1)
    os.unlink(path)
