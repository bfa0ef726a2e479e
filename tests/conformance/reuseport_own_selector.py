"""A group of three with its own SO_ATTACH_REUSEPORT_CBPF: every connection goes where the program says."""
import ctypes
import select
import socket
import struct

from common import attempt, connect, new

ADDRESS = ("127.0.0.1", 28216)
SO_ATTACH_REUSEPORT_CBPF = 51


def constant(index):
    """The instruction `return index`, as a sock_fprog."""
    instruction = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, index))
    return struct.pack("HL", 1, ctypes.addressof(instruction)), instruction


group = [new(socket.AF_INET, socket.SOCK_STREAM, socket.SO_REUSEPORT) for _ in range(3)]
for one in group:
    one.bind(ADDRESS)
    one.listen(64)
for wanted in (1, 2, 0):
    program, _keep = constant(wanted)
    attempt(f"program {wanted}", group[0].setsockopt, socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, program)
    took = set()
    for _ in range(20):
        client = connect(ADDRESS)
        for one in select.select(group, [], [], 5)[0]:
            one.accept()[0].close()
            took.add(group.index(one))
        client.close()
    print("taken by", sorted(took))
