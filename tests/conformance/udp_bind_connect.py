"""A UDP socket that binds and connects hears its peer alone; one that only binds hears everybody."""
import socket

from common import attempt, new


def udp(port):
    made = new(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind(("127.0.0.1", port))
    made.settimeout(5)
    return made


server, peer, stranger = udp(28233), udp(28234), udp(28235)
client = udp(28236)
attempt("connect", client.connect, ("127.0.0.1", 28234))
print("name", client.getsockname(), "peer", client.getpeername())
stranger.sendto(b"stranger", ("127.0.0.1", 28236))
peer.sendto(b"peer", ("127.0.0.1", 28236))
print("heard", client.recvfrom(64))
client.send(b"to the peer")
print("peer heard", peer.recvfrom(64))
stranger.sendto(b"to all", ("127.0.0.1", 28233))
print("server heard", server.recvfrom(64))
client.close()
again = udp(28236)
stranger.sendto(b"again", ("127.0.0.1", 28236))
print("bound again, heard", again.recvfrom(64))
