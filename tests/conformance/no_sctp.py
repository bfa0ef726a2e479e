"""SCTP, DCCP, raw and packet sockets are nobody's business but the program's."""
import socket

from common import attempt, name

for what, family, kind, protocol, address in (
    ("SCTP", socket.AF_INET, socket.SOCK_STREAM, 132, ("127.0.0.1", 28309)),
    ("SCTP packets", socket.AF_INET, socket.SOCK_SEQPACKET, 132, ("127.0.0.1", 28310)),
    ("raw", socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP, ("127.0.0.1", 0)),
    ("packet", socket.AF_PACKET, socket.SOCK_RAW, 0, ("lo", 0)),
    ("netlink", socket.AF_NETLINK, socket.SOCK_RAW, 0, (0, 0)),
    ("vsock", socket.AF_VSOCK, socket.SOCK_STREAM, 0, (socket.VMADDR_CID_ANY, 28311)),
    ("ping", socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP, ("127.0.0.1", 0)),
    ("algorithm", socket.AF_ALG, socket.SOCK_SEQPACKET, 0, ("hash", "sha256")),
):
    try:
        one = socket.socket(family, kind, protocol)
    except OSError as error:
        print(f"{what}: no such socket: {name(error)}")
        continue
    attempt(f"{what}: bind", one.bind, address)
    attempt(f"{what}: listen", one.listen, 5)
