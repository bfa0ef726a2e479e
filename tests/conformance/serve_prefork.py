"""A pre-forking server: three children accept from the parent's listener, which the parent closes."""
import os

from common import listener, serve

one = listener(("127.0.0.1", 28400))
for _ in range(3):
    if os.fork() == 0:
        serve(one)
one.close()
os.wait()
