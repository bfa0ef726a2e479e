"""Listens, then becomes another program that accepts on the inherited descriptor."""
import os
import socket
import sys

from common import listener, serve

if len(sys.argv) == 1:
    one = listener(("127.0.0.1", 28400))
    one.set_inheritable(True)
    os.execv(sys.executable, [sys.executable, "-u", "-B", sys.argv[0], str(one.fileno())])
serve(socket.socket(fileno=int(sys.argv[1])))
