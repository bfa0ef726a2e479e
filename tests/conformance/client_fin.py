"""A client that binds a fixed port first: its peer sees the end of the connection at once when it closes."""
import socket
import struct
import time

server = socket.socket()
server.bind(("127.0.0.1", 0))
server.listen(5)
for what in ("tcp close", "tcp linger 0"):
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if "linger" in what:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.bind(("127.0.0.1", 28109 if "linger" in what else 28110))
    client.connect(server.getsockname())
    accepted, _ = server.accept()
    begun = time.time()
    client.close()
    accepted.settimeout(10)
    try:
        received = accepted.recv(1)
    except OSError as error:
        received = error
    took = time.time() - begun
    print(what, repr(received), "late" if took > 0.1 else "at once", round(took, 1))
