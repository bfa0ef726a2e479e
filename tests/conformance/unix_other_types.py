"""Unix datagram and seqpacket sockets."""
import os
import socket

from common import attempt

UNIX = socket.AF_UNIX
datagram, sender = socket.socket(UNIX, socket.SOCK_DGRAM), socket.socket(UNIX, socket.SOCK_DGRAM)
attempt("datagram bind", datagram.bind, "d.sock")
attempt("sender bind", sender.bind, "s.sock")
sender.sendto(b"hello", "d.sock")
print(datagram.recvfrom(16))
attempt("datagram listen", datagram.listen, 1)
attempt("second", socket.socket(UNIX, socket.SOCK_DGRAM).bind, "d.sock")
datagram.close()
attempt("send to closed", sender.sendto, b"x", "d.sock")
os.unlink("d.sock")

packets = socket.socket(UNIX, socket.SOCK_SEQPACKET)
attempt("seqpacket bind", packets.bind, "p.sock")
attempt("seqpacket listen", packets.listen, 5)
client = socket.socket(UNIX, socket.SOCK_SEQPACKET)
attempt("connect", client.connect, "p.sock")
server, _ = packets.accept()
client.send(b"one")
client.send(b"two")
print(server.recv(16), server.recv(16))
attempt("stream to it", socket.socket(UNIX).connect, "p.sock")
