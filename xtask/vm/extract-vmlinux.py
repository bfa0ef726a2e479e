"""Unpacks the kernel of an x86 bzImage, so that QEMU boots it directly: extract-vmlinux.py IMAGE OUTPUT"""

import lzma
import struct
import subprocess
import sys
import zlib


def piped(command, data):
    return subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True).stdout


with open(sys.argv[1], "rb") as file:
    image = file.read()
# The boot protocol: the number of setup sectors, and where the payload lies after them.
sectors = image[0x1F1] or 4
offset, length = struct.unpack_from("<II", image, 0x248)
start = (sectors + 1) * 512 + offset
payload = image[start:start + length]
# The size follows the compressed data.
packed = payload[:-4]
if payload.startswith(b"\x28\xb5\x2f\xfd"):
    kernel = piped(["zstd", "-dc"], packed)
elif payload.startswith(b"\xfd7zXZ\0"):
    kernel = lzma.decompress(packed)
elif payload.startswith(b"\x1f\x8b"):
    kernel = zlib.decompressobj(31).decompress(payload)
elif payload.startswith(b"\x02\x21\x4c\x18"):
    kernel = piped(["lz4", "-dc"], packed)
else:
    sys.exit(f"unknown compression: {payload[:6].hex()}")
if not kernel.startswith(b"\x7fELF"):
    sys.exit("what was unpacked is no kernel")
with open(sys.argv[2], "wb") as file:
    file.write(kernel)
