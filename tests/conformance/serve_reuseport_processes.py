"""Two processes with an SO_REUSEPORT socket each, one of them non-blocking with epoll: nginx with `reuseport`."""
import os
import select
import socket

from common import listener, reply, serve

if os.fork() == 0:
    serve(listener(("127.0.0.1", 28400), socket.SO_REUSEPORT))
one = listener(("127.0.0.1", 28400), socket.SO_REUSEPORT)
one.setblocking(False)
epoll = select.epoll()
epoll.register(one, select.EPOLLIN)
while True:
    epoll.poll()
    try:
        reply(one.accept()[0])
    except BlockingIOError:
        pass
