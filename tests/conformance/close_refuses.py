"""A listener that is closed at once refuses connections."""
import socket
import time

ADDRESS = ("127.0.0.1", 28108)
server = socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(ADDRESS)
server.listen(5)
server.close()
for wait in (3, 5):
    time.sleep(wait)
    try:
        client = socket.create_connection(ADDRESS, 1)
        client.settimeout(1)
        print("connected after close")
        print(client.recv(1))
    except OSError as error:
        print(repr(error))
