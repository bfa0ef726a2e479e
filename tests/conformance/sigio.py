"""F_SETOWN, F_SETSIG and O_ASYNC set before bind: a connection raises the signal."""
import fcntl
import os
import signal
import socket

from common import connect, new

F_SETSIG, F_GETSIG = 10, 11
SIGNAL = signal.SIGRTMIN + 3
signal.pthread_sigmask(signal.SIG_BLOCK, [SIGNAL, signal.SIGIO])
one = new(socket.AF_INET, socket.SOCK_STREAM, socket.SO_REUSEADDR)
fcntl.fcntl(one, fcntl.F_SETOWN, os.getpid())
fcntl.fcntl(one, F_SETSIG, SIGNAL)
fcntl.fcntl(one, fcntl.F_SETFL, fcntl.fcntl(one, fcntl.F_GETFL) | os.O_ASYNC)
one.bind(("127.0.0.1", 28215))
one.listen(5)
print("owner kept:", fcntl.fcntl(one, fcntl.F_GETOWN) == os.getpid())
print("signal kept:", fcntl.fcntl(one, F_GETSIG) == SIGNAL)
print("O_ASYNC kept:", bool(fcntl.fcntl(one, fcntl.F_GETFL) & os.O_ASYNC))
while signal.sigtimedwait([SIGNAL, signal.SIGIO], 0):
    pass  # what bind and listen raised
client = connect(("127.0.0.1", 28215))
got = signal.sigtimedwait([SIGNAL, signal.SIGIO], 5)
print("signal:", got and ("SIGIO" if got.si_signo == signal.SIGIO else got.si_signo == SIGNAL))
