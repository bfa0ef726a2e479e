"""IP_TRANSPARENT and IP_FREEBIND: an address that this host does not have."""
import socket

from common import attempt, new

TRANSPARENT, FREEBIND = 19, 15
for option, port in ((TRANSPARENT, 28304), (FREEBIND, 28305)):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        one = new(socket.AF_INET, kind)
        attempt("without", one.bind, ("192.0.2.77", port))
        attempt("set", one.setsockopt, socket.IPPROTO_IP, option, 1)
        attempt("bind", one.bind, ("192.0.2.77", port))
        if kind == socket.SOCK_STREAM:
            attempt("listen", one.listen, 5)
        print(one.getsockname(), one.getsockopt(socket.IPPROTO_IP, option))
six = new(socket.AF_INET6)
attempt("IPv6 set", six.setsockopt, socket.IPPROTO_IPV6, 75, 1)
attempt("IPv6 bind", six.bind, ("2001:db8::77", 28306))
print(six.getsockname())
