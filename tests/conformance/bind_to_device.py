"""SO_BINDTODEVICE before bind: kept, and part of what tells two listeners apart."""
import socket

from common import attempt, exchange, listener, new

DEVICE = socket.SO_BINDTODEVICE
one = new(socket.AF_INET, socket.SOCK_STREAM, socket.SO_REUSEADDR)
attempt("device", one.setsockopt, socket.SOL_SOCKET, DEVICE, b"lo\0")
attempt("bind", one.bind, ("0.0.0.0", 28302))
attempt("listen", one.listen, 5)
print("device", one.getsockopt(socket.SOL_SOCKET, DEVICE, 16).rstrip(b"\0"))
exchange("through lo", one, ("127.0.0.1", 28302))
attempt("without a device", listener, ("0.0.0.0", 28302))
attempt("no such device", new().setsockopt, socket.SOL_SOCKET, DEVICE, b"missing0\0")
datagram = new(socket.AF_INET, socket.SOCK_DGRAM)
datagram.setsockopt(socket.SOL_SOCKET, DEVICE, b"lo\0")
attempt("UDP", datagram.bind, ("0.0.0.0", 28303))
print("device", datagram.getsockopt(socket.SOL_SOCKET, DEVICE, 16).rstrip(b"\0"))
