"""Registered with epoll before bind, edge-triggered and with data of its own: as every Boost.Asio server does."""
import select
import socket

from common import connect, new

one = new(socket.AF_INET, socket.SOCK_STREAM, socket.SO_REUSEADDR)
one.setblocking(False)
outer, inner = select.epoll(), select.epoll()
inner.register(one, select.EPOLLIN | select.EPOLLET)
outer.register(inner, select.EPOLLIN)
one.bind(("127.0.0.1", 28218))
one.listen(5)
inner.poll(0)
for index in range(3):
    client = connect(("127.0.0.1", 28218))
    print("outer:", [event for _, event in outer.poll(5)], "inner:", [event for _, event in inner.poll(5)])
    one.accept()[0].close()
try:
    inner.register(one, select.EPOLLIN)
except FileExistsError:
    print("still registered")
inner.unregister(one)
print("unregistered")
