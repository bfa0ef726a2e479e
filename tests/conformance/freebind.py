"""IP_FREEBIND: an address that this host does not have."""
import socket

IP_FREEBIND = 15
one = socket.socket()
one.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
try:
    one.bind(("192.0.2.77", 28105))
    one.listen(1)
    print("ok", one.getsockname())
except OSError as error:
    print(error)
