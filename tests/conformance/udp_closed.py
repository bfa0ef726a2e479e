"""A closed UDP port answers a datagram with ECONNREFUSED, and is free, at once, every time."""
import socket
from collections import Counter

from common import name, new


def outcome(call, *args):
    try:
        call(*args)
        return "ok"
    except OSError as error:
        return "timed out" if isinstance(error, TimeoutError) else name(error)


outcomes = Counter()
for turn in range(30):
    one = new(socket.AF_INET, socket.SOCK_DGRAM)
    outcomes["bind", outcome(one.bind, ("127.0.0.1", 28237))] += 1
    one.close()
    client = new(socket.AF_INET, socket.SOCK_DGRAM)
    client.settimeout(0.5)
    client.connect(("127.0.0.1", 28237))
    outcomes["send", outcome(client.send, b"x")] += 1
    outcomes["receive", outcome(client.recv, 1)] += 1
    client.close()
    two = new(socket.AF_INET, socket.SOCK_DGRAM)
    outcomes["wildcard of a closed port", outcome(two.bind, ("0.0.0.0", 28237))] += 1
    two.close()
for key in sorted(outcomes):
    print(*key, outcomes[key])
