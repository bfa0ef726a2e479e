"""Outgoing connections from a fixed port: connect, close, and bind the port again at once."""
import socket

from common import attempt, new

peer = socket.socket()
peer.bind(("127.0.0.1", 0))
peer.listen(16)
for port, options in ((28223, []), (28224, [socket.SO_REUSEADDR])):
    for turn in range(2):
        client = new(socket.AF_INET, socket.SOCK_STREAM, *options)
        attempt(f"bind, {len(options)} options, turn {turn}", client.bind, ("127.0.0.1", port))
        print("name", client.getsockname())
        attempt("connect", client.connect, peer.getsockname())
        try:
            server, name = peer.accept() if client.getsockname()[1] else (None, None)
        except OSError as error:
            server, name = None, error
        print("seen as the port that was bound:", bool(name) and name[1] == port)
        client.close()
        if server:
            print("end of file:", server.recv(1))
            server.close()
# Never connected: nothing is left of it.
for _ in range(3):
    client = new()
    attempt("bind and close", client.bind, ("127.0.0.1", 28225))
    client.close()
