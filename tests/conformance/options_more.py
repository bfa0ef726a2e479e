"""More options that are set before bind and read after listen: times, TCP's, IPv6's, and those of a Unix socket."""
import socket
import struct

from common import name

TIME = struct.pack("ll", 3, 500_000)
LINGER = struct.pack("ii", 1, 7)
INET, INET6, UNIX = socket.AF_INET, socket.AF_INET6, socket.AF_UNIX
# Family, name, level, number, value.
OPTIONS = [
    (INET, "SO_RCVTIMEO", 1, 20, TIME),
    (INET, "SO_SNDTIMEO", 1, 21, TIME),
    (INET, "SO_LINGER", 1, 13, LINGER),
    (INET, "SO_KEEPALIVE", 1, 9, 1),
    (INET, "SO_OOBINLINE", 1, 10, 1),
    (INET, "SO_PRIORITY", 1, 12, 5),
    (INET, "SO_MARK", 1, 36, 77),
    (INET, "SO_RCVLOWAT", 1, 18, 9),
    (INET, "SO_SNDBUF", 1, 7, 30_000),
    (INET, "SO_RCVBUF", 1, 8, 30_000),
    (INET, "SO_BUSY_POLL", 1, 46, 11),
    (INET, "TCP_NODELAY", 6, 1, 1),
    (INET, "TCP_MAXSEG", 6, 2, 900),
    (INET, "TCP_KEEPIDLE", 6, 4, 70),
    (INET, "TCP_KEEPINTVL", 6, 5, 8),
    (INET, "TCP_KEEPCNT", 6, 6, 4),
    (INET, "TCP_SYNCNT", 6, 7, 3),
    (INET, "TCP_LINGER2", 6, 8, 21),
    (INET, "TCP_DEFER_ACCEPT", 6, 9, 3),
    (INET, "TCP_WINDOW_CLAMP", 6, 10, 20_000),
    (INET, "TCP_CONGESTION", 6, 13, b"reno"),
    (INET, "TCP_USER_TIMEOUT", 6, 18, 12_345),
    (INET, "TCP_FASTOPEN", 6, 23, 5),
    (INET, "IP_TOS", 0, 1, 0x10),
    (INET, "IP_TTL", 0, 2, 33),
    (INET, "IP_BIND_ADDRESS_NO_PORT", 0, 24, 1),
    (INET6, "IPV6_V6ONLY", 41, 26, 1),
    (INET6, "IPV6_TCLASS", 41, 67, 0x20),
    (INET6, "IPV6_UNICAST_HOPS", 41, 16, 44),
    (INET6, "IPV6_RECVPKTINFO", 41, 49, 1),
    (INET6, "IPV6_DONTFRAG", 41, 62, 1),
    (INET6, "IPV6_AUTOFLOWLABEL", 41, 70, 0),
    (UNIX, "SO_PASSCRED", 1, 16, 1),
    (UNIX, "SO_PASSSEC", 1, 34, 1),
    (UNIX, "SO_SNDBUF", 1, 7, 30_000),
    (UNIX, "SO_RCVTIMEO", 1, 20, TIME),
    (UNIX, "SO_PEEK_OFF", 1, 42, 3),
]


def value_of(one, level, number, value):
    return one.getsockopt(level, number) if isinstance(value, int) else one.getsockopt(level, number, 16)


for family, address in ((INET, ("127.0.0.1", 28322)), (INET6, ("::1", 28323)), (UNIX, "options.sock")):
    one = socket.socket(family)
    for _, what, level, number, value in (entry for entry in OPTIONS if entry[0] == family):
        try:
            one.setsockopt(level, number, value)
        except OSError as error:
            print(what, name(error))
    one.bind(address)
    one.listen(3)
    for _, what, level, number, value in (entry for entry in OPTIONS if entry[0] == family):
        try:
            print(what, value_of(one, level, number, value))
        except OSError as error:
            print(what, name(error))
