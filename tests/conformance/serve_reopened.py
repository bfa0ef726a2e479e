"""Closes its listener and opens it again, a hundred times, before it serves."""
from common import listener, serve

for _ in range(100):
    listener(("127.0.0.1", 28400)).close()
serve(listener(("127.0.0.1", 28400)))
