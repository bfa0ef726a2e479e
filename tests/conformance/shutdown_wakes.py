"""shutdown of a listener wakes a thread that is blocked in accept."""
import socket
import threading
import time

for what in ("tcp", "unix", "abstract"):
    if what == "tcp":
        one = socket.socket()
        one.bind(("127.0.0.1", 28103))
    elif what == "unix":
        one = socket.socket(socket.AF_UNIX)
        one.bind("x.sock")
    else:
        one = socket.socket(socket.AF_UNIX)
        one.bind("\0conformance-x")
    one.listen(5)
    seen = []

    def loop():
        try:
            one.accept()
            seen.append("accepted")
        except OSError as error:
            seen.append(f"woken: {error}")

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    # The thread must be inside accept; nothing tells that from outside.
    time.sleep(0.3)
    one.shutdown(socket.SHUT_RDWR)
    thread.join(3)
    print(what, seen or "accept still blocked 3 s after shutdown()")
