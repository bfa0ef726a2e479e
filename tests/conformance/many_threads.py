"""Sixteen threads that bind, listen, connect and close at the same time, each on ports of its own."""
import socket
import threading
import time

from common import connect, listener

THREADS, TURNS = 16, 40
answered = [0] * THREADS
errors = []


def run(index):
    for turn in range(TURNS):
        address = ("127.0.0.1", 20000 + index * TURNS + turn)
        try:
            one = listener(address)
            client = connect(address)
            server, _ = one.accept()
            server.sendall(b"x")
            answered[index] += client.recv(1) == b"x"
            for each in (client, server, one):
                each.close()
        except OSError as error:
            errors.append(str(error))


begun = time.monotonic()
threads = [threading.Thread(target=run, args=(index,)) for index in range(THREADS)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("answered", sum(answered), "errors", errors)
print("in time:", time.monotonic() - begun < 20)
