"""A thread with a descriptor table of its own opens the listener; its number is something else in the first thread."""
import ctypes
import os
import threading

from common import listener, serve

CLONE_FILES = 0x400
apart, moved = threading.Event(), threading.Event()


def run():
    if ctypes.CDLL(None).unshare(CLONE_FILES):
        os._exit(1)
    apart.set()
    moved.wait()
    serve(listener(("127.0.0.1", 28400)))


thread = threading.Thread(target=run)
thread.start()
apart.wait()
for _ in range(8):
    os.open("/dev/null", os.O_RDONLY)
moved.set()
thread.join()
