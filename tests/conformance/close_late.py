"""A listener that is opened and closed late in a program's life: closed it is, and its address is free."""
import socket
import time

ADDRESS = ("127.0.0.1", 28125)


def server(address):
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(address)
    made.listen(5)
    return made


# Later than any look that a supervisor takes soon after the start.
time.sleep(3)
server(ADDRESS).close()
for wait in (3, 7):
    time.sleep(wait)
    try:
        socket.create_connection(ADDRESS, 1)
        print("connected to a closed listener")
    except OSError as error:
        print(error)
try:
    server(("0.0.0.0", 28125))
    print("0.0.0.0 bound")
except OSError as error:
    print("0.0.0.0:", error)
