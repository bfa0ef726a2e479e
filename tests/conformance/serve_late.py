"""Opens its listener some seconds after its start, and after it has listened elsewhere."""
import time

from common import listener, serve_all

other = listener(("127.0.0.1", 28401))
# Later than any look that a supervisor takes soon after the start.
time.sleep(3)
serve_all(listener(("127.0.0.1", 28400)), other)
