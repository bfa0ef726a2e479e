"""A socket registered with epoll before bind, as Netty's native epoll does, reports its connections."""
import select
import socket

one = socket.socket()
one.setblocking(False)
one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
epoll = select.epoll()
epoll.register(one, select.EPOLLIN)
one.bind(("127.0.0.1", 28101))
one.listen(5)
client = socket.create_connection(("127.0.0.1", 28101))
print("event:", bool(epoll.poll(2)))
try:
    epoll.modify(one, select.EPOLLIN)
    print("modify ok")
except OSError as error:
    print("modify:", error)
