"""One address, opened, used and closed 50 times in a row: each time as if it were the first."""
import socket

from common import attempt, connect, listener

ADDRESS = ("127.0.0.1", 28285)
answered = 0
for _ in range(50):
    one = listener(ADDRESS)
    client = connect(ADDRESS)
    server, _ = one.accept()
    server.sendall(b"x")
    answered += client.recv(1) == b"x"
    client.close()
    server.close()
    one.close()
print("answered", answered)
# Without SO_REUSEADDR, the connections that were closed keep the port.
two = socket.socket()
one = listener(ADDRESS)
client = connect(ADDRESS)
server, _ = one.accept()
server.close()
client.recv(1)
client.close()
one.close()
attempt("without SO_REUSEADDR", two.bind, ADDRESS)
attempt("with it", lambda: listener(ADDRESS).close())
# Never connected: free for everybody.
listener(("127.0.0.1", 28286)).close()
attempt("never used", two.bind, ("127.0.0.1", 28286))
