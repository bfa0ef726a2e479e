"""Probes whether the port is free, at the wildcard and at its address, before it serves there."""
from common import listener, serve

listener(("0.0.0.0", 28400)).close()
listener(("127.0.0.1", 28400)).close()
serve(listener(("127.0.0.1", 28400)))
