"""What the programs of this folder share: attempts that print their outcome, and listeners."""
import errno
import os
import socket
import sys
import threading
import time

# The first process of the program: what its children answer with as well.
PID = os.getpid()


def name(error):
    """The symbolic name of an OSError's number."""
    return errno.errorcode.get(error.errno, str(error))


def attempt(what, call, *args):
    """Prints whether a call succeeds, or its errno; gives its result or None."""
    try:
        result = call(*args)
        print(f"{what}: ok", flush=True)
        return result
    except OSError as error:
        print(f"{what}: {name(error)}", flush=True)
        return None


def new(family=socket.AF_INET, kind=socket.SOCK_STREAM, *options):
    """A socket with SOL_SOCKET options set to 1."""
    made = socket.socket(family, kind)
    for option in options:
        made.setsockopt(socket.SOL_SOCKET, option, 1)
    return made


def listener(address, *options, family=socket.AF_INET):
    """A listening stream socket. Its address may be used again at once after it is closed."""
    made = new(family, socket.SOCK_STREAM, socket.SO_REUSEADDR, *options)
    made.bind(address)
    made.listen(16)
    return made


def connect(address, family=socket.AF_INET, timeout=5):
    """A connected stream socket."""
    made = socket.socket(family)
    made.settimeout(timeout)
    made.connect(address)
    return made


def exchange(what, listening, address, family=socket.AF_INET):
    """Connects, accepts on `listening` and passes a byte each way; prints the outcome."""
    try:
        client = connect(address, family)
        blocking = listening.gettimeout()
        listening.settimeout(5)
        server, peer = listening.accept()
        listening.settimeout(blocking)
        server.sendall(b"s")
        client.sendall(b"c")
        answered = client.recv(1) == b"s" and server.recv(1) == b"c"
        print(f"{what}: {'answered' if answered else 'garbled'}", flush=True)
        client.close()
        server.close()
        return peer
    except OSError as error:
        print(f"{what}: {error if isinstance(error, TimeoutError) else name(error)}", flush=True)
        return None


def await_closed():
    """Waits until a listener that was closed takes no connection: a supervisor has two seconds to see it."""
    time.sleep(3)


def in_child(run):
    """Runs a function in a forked child and waits for it; its exit status is printed if it is not 0."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            run()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    if status:
        print("child ended with", status, flush=True)


def unsupported(reason):
    """Ends a program that cannot run on this machine, alone or not."""
    print("UNSUPPORTED:", reason)
    sys.exit(0)


def reply(connection):
    """Answers one HTTP request with the pid of the program."""
    try:
        connection.setblocking(True)
        connection.recv(4096)
        # Busy for a moment, so that others get their turn at a queue that all of them accept from.
        time.sleep(0.003)
        body = str(PID)
        connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
    except OSError:
        pass  # a client that went away
    connection.close()


def serve(listening):
    """Answers every connection of a listener, for ever."""
    listening.setblocking(True)
    while True:
        reply(listening.accept()[0])


def serve_all(*listeners):
    """Serves several listeners, each in a thread of its own."""
    for one in listeners[1:]:
        threading.Thread(target=serve, args=(one,), daemon=True).start()
    serve(listeners[0])
