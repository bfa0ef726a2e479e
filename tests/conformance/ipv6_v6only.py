"""A v6only `::` beside `0.0.0.0` on one port: each gets its own family's connections."""
import socket

from common import attempt, exchange, listener, new

PORT = 28222


def six(only, address="::"):
    made = new(socket.AF_INET6, socket.SOCK_STREAM, socket.SO_REUSEADDR)
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
    made.bind((address, PORT))
    made.listen(5)
    return made


v6 = attempt("v6only", six, 1)
v4 = attempt("0.0.0.0", listener, ("0.0.0.0", PORT))
exchange("by IPv6", v6, ("::1", PORT), socket.AF_INET6)
exchange("by IPv4", v4, ("127.0.0.1", PORT))
attempt("dual stack beside both", six, 0)
attempt("a second v6only", six, 1)
v6.close()
attempt("dual stack beside IPv4 alone", six, 0)
again = attempt("v6only again", six, 1)
again and exchange("by IPv6 again", again, ("::1", PORT), socket.AF_INET6)
v4.close()
again and again.close()
dual = attempt("dual stack when both are closed", six, 0)
dual and exchange("by IPv4 to the dual stack", dual, ("127.0.0.1", PORT))
