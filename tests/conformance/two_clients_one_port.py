"""Two clients bind one port with SO_REUSEADDR and connect to different peers."""
import socket


def new():
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return made


peers = [socket.socket() for _ in range(2)]
for peer in peers:
    peer.bind(("127.0.0.1", 0))
    peer.listen(1)
try:
    one = new()
    one.bind(("127.0.0.1", 28107))
    two = new()
    two.bind(("127.0.0.1", 28107))
    one.connect(peers[0].getsockname())
    two.connect(peers[1].getsockname())
    print("both connected")
except OSError as error:
    print(error)
