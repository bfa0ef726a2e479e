"""A thread other than the first binds, listens and accepts."""
import threading

from common import listener, serve

thread = threading.Thread(target=lambda: serve(listener(("127.0.0.1", 28400))))
thread.start()
thread.join()
