"""A thread other than the first binds, listens and accepts; the first one has ended its part already."""
import socket
import threading

from common import connect, exchange, new

ready, done = threading.Event(), threading.Event()


def serve():
    one = new(socket.AF_INET, socket.SOCK_STREAM, socket.SO_REUSEADDR)
    one.bind(("127.0.0.1", 28300))
    one.listen(5)
    ready.set()
    for _ in range(3):
        accepted, _ = one.accept()
        accepted.sendall(b"thread")
        accepted.close()
    unix = socket.socket(socket.AF_UNIX)
    unix.bind("thread.sock")
    unix.listen(5)
    exchange("unix", unix, "thread.sock", socket.AF_UNIX)
    done.set()


thread = threading.Thread(target=serve)
thread.start()
print("ready:", ready.wait(10))
received = [connect(("127.0.0.1", 28300)).recv(16) for _ in range(3)]
print("done:", done.wait(10))
thread.join()
print(received)
