"""listen on what is not bound, not a stream, or connected; and listen twice."""
import socket

from common import attempt, exchange, new

INET, UNIX = socket.AF_INET, socket.AF_UNIX
one = socket.socket()
attempt("unbound TCP", one.listen, 5)
host, port = one.getsockname()
print(host, port != 0)
exchange("at the port that the kernel chose", one, ("127.0.0.1", port))
attempt("listen again", one.listen, 10)
attempt("bind a listening socket", one.bind, ("127.0.0.1", 28270))
attempt("unbound Unix", socket.socket(UNIX).listen, 5)
attempt("UDP", socket.socket(INET, socket.SOCK_DGRAM).listen, 5)
bound = new(INET, socket.SOCK_DGRAM)
bound.bind(("127.0.0.1", 28271))
attempt("bound UDP", bound.listen, 5)
client = socket.socket()
client.connect(("127.0.0.1", port))
attempt("connected", client.listen, 5)
attempt("bind a connected socket", client.bind, ("127.0.0.1", 28272))
two = new(INET, socket.SOCK_STREAM, socket.SO_REUSEADDR)
attempt("bind", two.bind, ("127.0.0.1", 28273))
attempt("bind twice", two.bind, ("127.0.0.1", 28274))
attempt("listen", two.listen, 1)
attempt("listen", two.listen, 7)
# Field tcpi_sacked of a listener is its backlog.
print("backlog", int.from_bytes(two.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)[28:32], "little"))
attempt("shutdown", two.shutdown, socket.SHUT_RDWR)
attempt("listen after shutdown", two.listen, 5)
exchange("after shutdown and listen", two, ("127.0.0.1", 28273))
attempt("negative backlog", two.listen, -1)
