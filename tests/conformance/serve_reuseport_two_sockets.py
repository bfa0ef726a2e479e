"""Two SO_REUSEPORT sockets at the address in one process, a thread for each."""
import socket

from common import listener, serve_all

serve_all(*(listener(("127.0.0.1", 28400), socket.SO_REUSEPORT) for _ in range(2)))
