"""Registered with epoll before bind, level-triggered: pyftpdlib, Netty's native epoll."""
import select
import socket

from common import new, reply

one = new(socket.AF_INET, socket.SOCK_STREAM, socket.SO_REUSEADDR)
one.setblocking(False)
epoll = select.epoll()
epoll.register(one, select.EPOLLIN)
one.bind(("127.0.0.1", 28400))
one.listen(64)
while True:
    epoll.poll()
    try:
        reply(one.accept()[0])
    except BlockingIOError:
        pass
