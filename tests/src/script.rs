//! Workers that are a few lines of python in the test that they belong to.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use crate::{Supervisor, fixtures};

/// What all of them find: `say` a line, make a bound socket, `attempt` a call, `notify` that they are ready, answer with the
/// pid for ever.
const PRELUDE: &str = "
import errno, os, signal, socket, sys, time
PID, INDEX, RELOAD = os.getpid(), os.environ['WORKER_INDEX'], int(os.environ['RELOAD_INDEX'])
def say(*words):
    os.write(1, (' '.join(map(str, words)) + '\\n').encode())
def bound(host, port, family=socket.AF_INET, kind=socket.SOCK_STREAM):
    made = socket.socket(family, kind)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((host, port))
    return made
def attempt(call):
    try:
        call()
        return 'ok'
    except OSError as error:
        return errno.errorcode[error.errno]
def notify():
    to = os.environ['NOTIFY_SOCKET']
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(b'READY=1', '\\0' + to[1:] if to[0] == '@' else to)
def serve(listener):
    while True:
        connection, _ = listener.accept()
        reply(connection)
def reply(connection, after=0):
    body = str(os.getpid())
    try:
        connection.recv(4096)
        time.sleep(after)
        connection.sendall(f'HTTP/1.1 200 OK\\r\\nContent-Length: {len(body)}\\r\\n\\r\\n{body}'.encode())
    except OSError:
        pass  # a client that did not wait
    connection.close()
HOST, PORT = sys.argv[1].rsplit(':', 1) if len(sys.argv) > 1 else ('', '0')
PORT = int(PORT)
";

/// Serves every address of the host on one port, IPv4 and IPv6 on a socket each.
pub const TWO_FAMILIES: &str = "
import threading
four = bound('0.0.0.0', PORT); four.listen(64)
six = socket.socket(socket.AF_INET6)
six.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
six.bind(('::', PORT)); six.listen(64)
say('ready')
threading.Thread(target=serve, args=(four,), daemon=True).start()
serve(six)";

/// A python program with the address as its argument.
#[must_use]
pub fn script(text: &str, address: SocketAddr) -> Vec<String> {
    vec![fixtures::python(), "-c".into(), format!("{PRELUDE}{text}"), address.to_string()]
}

/// A supervisor of such a program.
#[must_use]
pub fn started(options: &[&str], text: &str, address: SocketAddr) -> Supervisor {
    Supervisor::start(options, script(text, address))
}

/// Waits until the workers have said so many lines, and gives them in no particular order.
///
/// # Panics
/// When they do not.
pub fn said(supervisor: &Supervisor, count: usize) -> BTreeSet<String> {
    supervisor.until("the workers have said what they saw", || {
        Some(supervisor.output())
            .filter(|lines| lines.len() >= count)
            .map(|lines| lines.into_iter().collect())
    })
}

/// Lines as [`said`] gives them.
#[must_use]
pub fn lines(expected: &[&str]) -> BTreeSet<String> {
    expected.iter().map(|line| (*line).to_owned()).collect()
}
