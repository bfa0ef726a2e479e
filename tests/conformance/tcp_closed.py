"""A TCP socket that is closed is closed, and its address is free, at once: bound, listening, and with a queue."""
import socket
from collections import Counter

from common import connect, name, new

outcomes = Counter()


def note(what, call, *args):
    try:
        result = call(*args)
        outcomes[what, "ok"] += 1
        return result
    except OSError as error:
        outcomes[what, name(error)] += 1
        return None


for turn in range(30):
    # Those that wait in a queue may be told late: only a few turns of it.
    for port, listening, waiting in ((28370, False, 0), (28371, True, 0), (28372, True, 2 if turn < 3 else 0)):
        one = new(socket.AF_INET, socket.SOCK_STREAM, socket.SO_REUSEADDR)
        note(f"{port} bind", one.bind, ("127.0.0.1", port))
        if listening:
            note(f"{port} listen", one.listen, 5)
        clients = [connect(("127.0.0.1", port)) for _ in range(waiting)]
        one.close()
        for client in clients:
            note(f"{port} receive", client.recv, 1)
            client.close()
        # The wildcard overlaps it, and without a connection there is nothing in TIME_WAIT.
        two = new(socket.AF_INET, socket.SOCK_STREAM, socket.SO_REUSEADDR)
        note(f"{port} wildcard bind", two.bind, ("0.0.0.0", port))
        note(f"{port} wildcard listen", two.listen, 5)
        two.close()
for key in sorted(outcomes):
    print(*key, outcomes[key])
