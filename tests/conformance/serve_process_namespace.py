"""Its server is process 1 of a process namespace of its own, as in a container."""
import ctypes
import os

from common import listener, serve

NEWPID = 0x20000000
# Without privileges, the same server without the namespace.
ctypes.CDLL(None).unshare(NEWPID)
if os.fork() == 0:
    serve(listener(("127.0.0.1", 28400)))
os.wait()
