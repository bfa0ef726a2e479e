"""Registered with epoll before bind, edge-triggered, accepting until there is no more: Boost.Asio."""
import select
import socket

from common import new, reply

one = new(socket.AF_INET, socket.SOCK_STREAM, socket.SO_REUSEADDR)
one.setblocking(False)
epoll = select.epoll()
epoll.register(one, select.EPOLLIN | select.EPOLLET)
one.bind(("127.0.0.1", 28400))
one.listen(64)
while True:
    epoll.poll()
    try:
        while True:
            reply(one.accept()[0])
    except BlockingIOError:
        pass
