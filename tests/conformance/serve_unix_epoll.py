"""A Unix path whose socket is registered with epoll before bind."""
import select
import socket

from common import reply

one = socket.socket(socket.AF_UNIX)
one.setblocking(False)
epoll = select.epoll()
epoll.register(one, select.EPOLLIN)
one.bind("app.sock")
one.listen(64)
while True:
    epoll.poll()
    try:
        reply(one.accept()[0])
    except BlockingIOError:
        pass
