"""A Unix socket of any type that is closed is closed, and an abstract name is free then, every time.

Only those that do not listen are asked whether they take connections: a listener may do so for a while.
"""
import os
import socket
from collections import Counter

from common import name

UNIX, STREAM, DGRAM, SEQPACKET = socket.AF_UNIX, socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET
outcomes = Counter()


def note(what, call, *args):
    try:
        call(*args)
        outcomes[what, "ok"] += 1
    except OSError as error:
        outcomes[what, name(error)] += 1


for turn in range(30):
    for kind in (STREAM, DGRAM, SEQPACKET):
        for path in ("closed.sock", b"\0conformance-closed"):
            where = "path" if isinstance(path, str) else "abstract"
            one = socket.socket(UNIX, kind)
            note(f"{kind.name} {where} bind", one.bind, path)
            if kind != DGRAM:
                note(f"{kind.name} {where} listen", one.listen, 5)
            one.close()
            client = socket.socket(UNIX, kind)
            client.settimeout(0.5)
            if kind == DGRAM:
                note(f"{kind.name} {where} connect after close", client.connect, path)
            client.close()
            if where == "path":
                os.unlink(path)
for key in sorted(outcomes):
    print(*key, outcomes[key])
