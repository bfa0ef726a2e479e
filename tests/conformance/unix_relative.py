"""A relative Unix path is kept as it was given, and can be connected to by what getsockname says."""
import os
import socket

os.makedirs("rel", exist_ok=True)
os.chdir("rel")
one = socket.socket(socket.AF_UNIX)
one.bind("app.sock")
one.listen(1)
print("getsockname", one.getsockname())
client = socket.socket(socket.AF_UNIX)
try:
    client.connect(one.getsockname())
    print("connected; peer name", client.getpeername())
except OSError as error:
    print("connect:", error)
