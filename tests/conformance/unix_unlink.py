"""A program's own unlink of its socket is real at once, and the path can be used again."""
import os
import socket

from common import attempt, await_closed, connect, exchange

UNIX = socket.AF_UNIX


def server(path):
    made = socket.socket(UNIX)
    made.bind(path)
    made.listen(5)
    return made


one = server("app.sock")
waiting = connect("app.sock", UNIX)
inode = os.stat("app.sock").st_ino
os.unlink("app.sock")
print("exists:", os.path.exists("app.sock"), os.listdir("."))
attempt("unlink again", os.unlink, "app.sock")
attempt("connect", connect, "app.sock", UNIX)
print("what waited is accepted:", bool(one.accept()))
two = server("app.sock")
exchange("at the second one", two, "app.sock", UNIX)
one.close()
two.close()
await_closed()
attempt("after close", connect, "app.sock", UNIX)
attempt("unlink", os.unlink, "app.sock")
os.mkdir("folder")
three = server("folder/app.sock")
folder = os.open("folder", os.O_RDONLY)
attempt("unlinkat", lambda: os.unlink("app.sock", dir_fd=folder))
attempt("rmdir", os.rmdir, "folder")
four = server("app.sock")
os.rename("app.sock", "renamed.sock")
with open("app.sock", "w") as file:
    file.write("a file where the socket was")
four.close()
print(sorted(os.listdir(".")), os.path.isfile("app.sock"))
