"""A program that probes whether a port is free, late in its life, can bind an address of it right afterwards."""
import socket
import time


def listen(address, family=socket.AF_INET):
    made = socket.socket(family)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(address)
    made.listen(5)
    return made


# Later than any look that a supervisor takes soon after the start.
time.sleep(3)
listen(("0.0.0.0", 28180)).close()
try:
    listen(("127.0.0.1", 28180))
    print("bound")
except OSError as error:
    print(error)
