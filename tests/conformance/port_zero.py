"""Port 0: the kernel chooses, each time another."""
import socket

from common import attempt, exchange, new

ports = set()
servers = []
for _ in range(20):
    one = new()
    one.bind(("127.0.0.1", 0))
    before = one.getsockname()
    one.listen(5)
    servers.append(one)
    ports.add(one.getsockname()[1])
    assert before == one.getsockname()
print("different ports:", len(ports), 0 in ports)
print("each answers:", flush=True)
for one in servers[:3]:
    exchange("one", one, one.getsockname())
client = new()
client.bind(("127.0.0.1", 0))
attempt("connect from port 0", client.connect, servers[0].getsockname())
print(servers[0].accept()[1] == client.getsockname())
port = servers[0].getsockname()[1]
two = new()
attempt("a chosen port is taken", two.bind, ("127.0.0.1", port))
servers[0].close()
client.close()
datagram = new(socket.AF_INET, socket.SOCK_DGRAM)
datagram.bind(("", 0))
print("UDP", datagram.getsockname()[1] != 0)
