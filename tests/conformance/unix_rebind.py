"""A second listener at a path from which the first one's file was removed."""
import os
import socket

PATH = "rb.sock"
one = socket.socket(socket.AF_UNIX)
one.bind(PATH)
one.listen(5)
os.unlink(PATH)
two = socket.socket(socket.AF_UNIX)
try:
    two.bind(PATH)
    two.listen(5)
    print("second listener at the path, the first one still open")
except OSError as error:
    print(error)
one.close()
os.unlink(PATH)
