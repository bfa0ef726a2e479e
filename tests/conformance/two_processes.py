"""A child that closes its copy of the listener cannot bind the address that its parent serves."""
import os
import socket


def server(port):
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("127.0.0.1", port))
    made.listen(5)
    return made


one = server(28104)
told, tell = os.pipe()
if os.fork() == 0:
    one.close()
    try:
        server(28104)
        os.write(tell, b"child bound it too")
    except OSError as error:
        os.write(tell, str(error).encode())
    os._exit(0)
print(os.read(told, 100).decode())
os.wait()
