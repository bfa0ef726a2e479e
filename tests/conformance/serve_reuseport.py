"""Sets SO_REUSEPORT by itself."""
import socket

from common import listener, serve

serve(listener(("127.0.0.1", 28400), socket.SO_REUSEPORT))
