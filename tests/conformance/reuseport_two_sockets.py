"""Two sockets of one process at one address, both with SO_REUSEPORT: allowed."""
import select
import socket

from common import attempt, await_closed, connect, new

ADDRESS = ("127.0.0.1", 28202)
pair = [new(socket.AF_INET, socket.SOCK_STREAM, socket.SO_REUSEPORT) for _ in range(2)]
for index, one in enumerate(pair):
    attempt(f"bind {index}", one.bind, ADDRESS)
for index, one in enumerate(pair):
    attempt(f"listen {index}", one.listen, 64)
    print(f"SO_REUSEPORT of {index}:", one.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT))

# Every connection comes out of one of the two, and with 200 of them neither is left out.
accepted = [0, 0]
for _ in range(200):
    client = connect(ADDRESS)
    ready, _, _ = select.select(pair, [], [], 5)
    for one in ready:
        one.accept()[0].close()
        accepted[pair.index(one)] += 1
    client.close()
print("accepted:", sum(accepted), "by both:", all(accepted))
pair[0].close()
await_closed()

# What comes after one is closed comes to the other.
answered = 0
for _ in range(20):
    client = connect(ADDRESS)
    if select.select([pair[1]], [], [], 5)[0]:
        pair[1].accept()[0].close()
        answered += 1
    client.close()
print("after close:", answered)
