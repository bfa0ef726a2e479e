"""Requests at an address until FILE.stop appears: load.py HOST:PORT|PATH FILE

FILE.asks appears with the first request, and FILE.begun with the first hundred outcomes. It prints one line: the outcomes
with their counts, and how many processes have answered. `cut`: the connection was accepted or queued, and ended without an
answer.
"""

import collections
import os
import socket
import sys
import threading
import time

TARGET, FILE = sys.argv[1:]
STOP, BEGUN, ASKS = FILE + ".stop", FILE + ".begun", FILE + ".asks"
CLIENTS = 4
PATIENCE = 30

counts = collections.Counter()
answering = set()
lock = threading.Lock()


def touch(path):
    open(path, "w").close()


def connect():
    if TARGET.startswith("/"):
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(PATIENCE)
        client.connect(TARGET)
        return client
    host, port = TARGET.rsplit(":", 1)
    return socket.create_connection((host, int(port)), PATIENCE)


def ask():
    try:
        client = connect()
    except ConnectionRefusedError:
        return "refused"
    except FileNotFoundError:
        return "no file"
    except BlockingIOError:
        return "full"
    except OSError as error:
        return f"connect: {error}"
    try:
        with client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
            answer = b""
            while part := client.recv(4096):
                answer += part
    except TimeoutError:
        return "no answer"
    except OSError:
        return "cut"
    if not answer.startswith(b"HTTP/1.1 200"):
        return "cut"
    with lock:
        answering.add(answer.rsplit(b"\r\n", 1)[1])
    return "ok"


def repeat():
    while not os.path.exists(STOP):
        outcome = ask()
        with lock:
            counts[outcome] += 1
            if counts.total() == 100:
                touch(BEGUN)
        if outcome != "ok":
            time.sleep(0.005)


clients = [threading.Thread(target=repeat) for _ in range(CLIENTS)]
touch(ASKS)
for client in clients:
    client.start()
for client in clients:
    client.join()
print(", ".join(f"{outcome}: {count}" for outcome, count in sorted(counts.items())), f"({len(answering)} processes)")
