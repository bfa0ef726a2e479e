"""Binds, listens, accepts."""
from common import listener, serve

serve(listener(("127.0.0.1", 28400)))
