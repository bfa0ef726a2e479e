"""Two processes with a listener each at one SO_REUSEPORT address: closing one leaves the other's alone."""
import os
import socket

from common import await_closed, exchange, new

ADDRESS = ("127.0.0.1", 28214)


def server():
    made = new(socket.AF_INET, socket.SOCK_STREAM, socket.SO_REUSEPORT)
    made.bind(ADDRESS)
    made.listen(5)
    return made


ours = server()
told, tell = os.pipe()
pid = os.fork()
if pid == 0:
    ours.close()
    theirs = server()
    os.write(tell, b".")
    theirs.close()
    os._exit(0)
os.read(told, 1)
os.waitpid(pid, 0)
await_closed()
# Nobody else listens any more: each of these must come to the one that is left.
for index in range(10):
    exchange(f"connection {index}", ours, ADDRESS)
