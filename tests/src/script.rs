//! Workers that are a few lines of python in the test that they belong to.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::net::SocketAddr;

use crate::{Supervisor, fixtures};

/// What all of them find: `say` a line, make a bound socket, `attempt` a call, `notify` that they are ready, `wait` for the
/// file that is their first further argument, answer with the pid for ever.
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
def wait():
    while not os.path.exists(sys.argv[2]): time.sleep(0.01)
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

/// The same with further arguments, from `sys.argv[2]` on.
///
/// # Panics
/// When one is not UTF-8.
#[must_use]
pub fn script_with<A: AsRef<OsStr>>(
    text: &str,
    address: SocketAddr,
    arguments: impl IntoIterator<Item = A>,
) -> Vec<String> {
    let mut command = script(text, address);
    command
        .extend(arguments.into_iter().map(|argument| argument.as_ref().to_str().expect("UTF-8").to_owned()));
    command
}

/// A supervisor of such a program.
#[must_use]
pub fn started(options: &[&str], text: &str, address: SocketAddr) -> Supervisor {
    Supervisor::start(options, script(text, address))
}

/// Waits until the workers have printed this many lines, and gives them in no particular order.
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

/// The pids that workers have printed after `ready`, when all workers together have printed this many lines.
///
/// # Panics
/// When they do not.
pub fn ready_pids(supervisor: &Supervisor, count: usize) -> Vec<i32> {
    let lines = said(supervisor, count);
    lines.iter().filter_map(|line| line.strip_prefix("ready ")?.parse().ok()).collect()
}

/// Lines as [`said`] gives them.
#[must_use]
pub fn lines(expected: &[&str]) -> BTreeSet<String> {
    expected.iter().map(|line| (*line).to_owned()).collect()
}
