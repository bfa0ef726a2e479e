"""Options that are set before bind read the same after listen."""
import socket

# Name, level, number and the value that is set.
OPTIONS = [
    ("SO_REUSEADDR", 1, 2, 0),
    ("SO_DONTROUTE", 1, 5, 1),
    ("SO_BROADCAST", 1, 6, 1),
    ("SO_ZEROCOPY", 1, 60, 1),
    ("SO_INCOMING_CPU", 1, 49, 1),
    ("SO_MAX_PACING_RATE", 1, 47, 1_000_000),
    ("SO_TIMESTAMPNS", 1, 35, 1),
    ("SO_TIMESTAMPING", 1, 37, 1),
    ("SO_PEEK_OFF", 1, 42, 0),
    ("SO_RCVBUFFORCE", 1, 33, 20_000_000),
    ("SO_BUSY_POLL_BUDGET", 1, 70, 1),
    ("SO_PREFER_BUSY_POLL", 1, 69, 1),
    ("TCP_QUICKACK", 6, 12, 0),
    ("TCP_CORK", 6, 3, 1),
    ("TCP_NOTSENT_LOWAT", 6, 25, 16384),
    ("TCP_SAVE_SYN", 6, 27, 1),
    ("TCP_THIN_LINEAR", 6, 16, 1),
    ("TCP_TX_DELAY", 6, 37, 1),
    ("TCP_INQ", 6, 36, 1),
    ("IP_RECVTOS", 0, 13, 1),
    ("IP_PKTINFO", 0, 8, 1),
    ("IP_MTU_DISCOVER", 0, 10, 3),
    ("IP_MINTTL", 0, 21, 5),
    ("IP_LOCAL_PORT_RANGE", 0, 51, 1),
    ("SO_RXQ_OVFL", 1, 40, 1),
    ("SO_RCVMARK", 1, 75, 1),
    ("SO_TXREHASH", 1, 74, 0),
    ("SO_DEBUG", 1, 1, 1),
    ("TCP_FASTOPEN_NO_COOKIE", 6, 34, 1),
]
SO_RCVBUF = 8
one = socket.socket()
kept = []
for name, level, number, value in OPTIONS:
    try:
        one.setsockopt(level, number, value)
        # What SO_RCVBUFFORCE sets is read under another number.
        read = SO_RCVBUF if name == "SO_RCVBUFFORCE" else number
        kept.append((name, level, read, one.getsockopt(level, read)))
    except OSError:
        pass  # not on this kernel, or not for this user
one.bind(("127.0.0.1", 28111))
one.listen(1)
for name, level, number, value in kept:
    now = one.getsockopt(level, number)
    if now != value:
        print(name, "set", value, "after bind", now)
print("of", len(kept))
