//! The notify socket: permissions, floods, and what remains after the end.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use master_process_tests::script::{said, script, script_with};
use master_process_tests::supervisor::{Builder, await_gone};
use master_process_tests::{
    Supervisor, TIMEOUT, address, always, eventually, fixtures, needs_root, process, skip,
};
use rustix::process::Signal;

/// A user that no test runs a supervisor or worker as.
const OTHER_USER: &str = "12345";

/// A worker that notifies when the file of its second argument appears.
const NOTIFIES_WHEN_TOLD: &str = "
gate, name = sys.argv[2], os.environ['NOTIFY_SOCKET']
while not os.path.exists(gate): time.sleep(0.01)
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.sendto(b'READY=1', '\\0' + name[1:] if name.startswith('@') else name)
while True: signal.pause()";

/// Sends messages with as many descriptors as one can carry to the address of its first argument, for ever.
const FLOOD: &str = "
import array, errno, os, socket, sys
name = sys.argv[1]
flood = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
flood.connect('\\0' + name[1:] if name.startswith('@') else name)
null = os.open('/dev/null', os.O_RDONLY)
rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [null] * 253))]
sent = False
while True:
    try:
        flood.sendmsg([b'READY=1\\nSTATUS=flood'], rights)
    except OSError as error:
        # Descriptors are refused for the moment, or too many of this user are on their way.
        if error.errno not in (errno.EPERM, errno.ETOOMANYREFS): raise
        flood.send(b'READY=1')
    if not sent:
        sent = True
        print('floods', flush=True)";

/// A python program of another user, killed when the test is over.
struct OtherUser(std::process::Child);

impl OtherUser {
    fn start(user: &str, text: &str, argument: &str) -> OtherUser {
        let python = fixtures::python();
        let mut command = Command::new("setpriv");
        command.args([&format!("--reuid={user}"), &format!("--regid={user}"), "--clear-groups"]);
        command.args([&python, "-c", text, argument]).stdout(Stdio::piped());
        OtherUser(command.spawn().expect("setpriv is on this machine"))
    }

    /// Waits for a line of it.
    fn line(&mut self) -> String {
        let mut line = String::new();
        let output = self.0.stdout.as_mut().expect("a pipe");
        std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line).expect("UTF-8");
        line.trim().to_owned()
    }
}

impl Drop for OtherUser {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `NOTIFY_SOCKET` of the workers. A process without it is on its way to be a worker, or was started to look
/// a user up.
fn notify_address(supervisor: &Supervisor) -> String {
    let of_process = |pid: i32| {
        let mut variables = process::environment(pid).into_iter();
        variables.find_map(|variable| variable.strip_prefix("NOTIFY_SOCKET=").map(str::to_owned))
    };
    supervisor.until("a worker has a notify socket", || supervisor.workers().into_iter().find_map(of_process))
}

/// What sending one message to the address gives, as another user.
fn outcome_for_a_stranger(address: &str) -> String {
    let text = "
import errno, socket, sys
made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
try:
    made.sendto(b'READY=1', sys.argv[1])
    print('sent')
except OSError as error:
    print(errno.errorcode[error.errno])";
    OtherUser::start(OTHER_USER, text, address).line()
}

#[test]
fn an_ordinary_user_cannot_send_to_the_notify_socket_of_another() {
    needs_root!();
    for options in [&["--ready", "none"] as &[&str], &["--ready", "none", "--user", "nobody"]] {
        let supervisor = Supervisor::start(options, fixtures::idle());
        let address = notify_address(&supervisor);
        assert!(address.starts_with('/'), "{address}");
        assert_eq!(outcome_for_a_stranger(&address), "EACCES", "{options:?}");
        let folder = Path::new(&address).parent().expect("it has one").metadata().expect("there");
        assert_eq!((folder.uid(), folder.mode() & 0o007), (0, 0), "no worker can put another socket there");
        assert_eq!(supervisor.stop(), 0);
        assert!(!Path::new(&address).parent().expect("it had one").exists());
    }
}

#[test]
fn notification_of_a_worker_of_another_user_is_accepted() {
    needs_root!();
    let supervisor =
        Supervisor::start(&["--user", "nobody", "--ready", "notify"], fixtures::worker(&["notify"]));
    supervisor.await_ready(1);
    supervisor.reload(1);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn systemd_notify_works_with_its_barrier() {
    if Command::new("systemd-notify").arg("--version").output().is_err() {
        skip!("it is not installed");
    }
    // By itself it waits until the supervisor has closed the pipe of its BARRIER=1, and fails if that takes 5 s.
    let text = "systemd-notify --ready --status=up && echo heard; exec sleep 1000";
    let supervisor = Supervisor::start(&["--ready", "notify"], fixtures::shell(text));
    assert_eq!(said(&supervisor, 1).pop_first().as_deref(), Some("heard"));
    supervisor.reload(1);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn directory_of_a_killed_supervisor_is_removed_by_the_next_one() {
    let base = tempfile::tempdir().expect("a temporary folder");
    fs::set_permissions(base.path(), fs::Permissions::from_mode(0o755)).expect("ours");
    // The control sockets are beside them.
    let is_directory = |entry: &fs::DirEntry| entry.path().is_dir();
    let entries = || {
        let all = fs::read_dir(base.path()).expect("there").filter_map(Result::ok);
        all.filter(is_directory).count()
    };
    let start = || {
        let builder = Supervisor::builder().args(["--ready", "none"]).command(fixtures::idle());
        let supervisor = builder.env("RUNTIME_DIRECTORY", base.path()).spawn();
        let path = notify_address(&supervisor);
        (supervisor, PathBuf::from(path))
    };
    let (alive, its_path) = start();
    let (killed, left) = start();
    assert!(left.starts_with(base.path()), "{}", left.display());
    let pid = killed.pid();
    process::signal(pid, Signal::KILL);
    await_gone(pid);
    assert!(left.exists() && entries() == 2);
    let (next, _) = start();
    assert!(!left.exists() && its_path.exists() && entries() == 2);
    assert_eq!((alive.stop(), next.stop()), (0, 0));
    assert_eq!(entries(), 0);
}

#[test]
fn failed_start_leaves_no_directory() {
    let base = tempfile::tempdir().expect("a temporary folder");
    let builder = Supervisor::builder().env("RUNTIME_DIRECTORY", base.path());
    assert_eq!(builder.command(["/nonexistent/program"]).run().code, Some(127));
    assert_eq!(fs::read_dir(base.path()).expect("there").count(), 0);
}

/// Floods the notify socket as `user` and lets a worker become ready meanwhile.
fn a_flood_does_no_harm(builder: Builder, user: &str, is_abstract: bool) {
    let gate = tempfile::tempdir_in("/var/tmp").expect("a temporary folder");
    fs::set_permissions(gate.path(), fs::Permissions::from_mode(0o755)).expect("ours");
    let gate = gate.path().join("gate");
    let command = script_with(NOTIFIES_WHEN_TOLD, address::tcp(), [&gate]);
    let supervisor = builder.args(["--ready", "notify"]).command(command).spawn();
    let address = notify_address(&supervisor);
    let pid = supervisor.pid();
    supervisor.await_measuring();
    let before = process::descriptors(pid).len();
    assert_eq!(address.starts_with('@'), is_abstract, "{address}");
    let mut senders: Vec<OtherUser> = (0..3).map(|_| OtherUser::start(user, FLOOD, &address)).collect();
    for sender in &mut senders {
        assert_eq!(sender.line(), "floods");
    }
    let bounded = || process::descriptors(pid).len() < before + 5000;
    always(std::time::Duration::from_millis(700), "its descriptors are bounded", bounded);
    assert!(supervisor.logged(&[": notified"]).is_empty(), "only workers can");
    fs::write(&gate, "").expect("ours");
    supervisor.eventually("the worker is heard", || supervisor.logged(&[": notified"]).len() == 1);
    assert!(bounded());
    drop(senders);
    eventually(TIMEOUT, "nothing of it stays", || process::descriptors(pid).len() <= before + 1);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn flood_by_the_workers_user_uses_no_descriptors_and_delays_no_readiness() {
    needs_root!();
    a_flood_does_no_harm(Supervisor::builder().args(["--user", "nobody"]), "65534", false);
}

#[test]
fn flood_on_an_abstract_address_uses_no_descriptors() {
    needs_root!();
    let text =
        "mount -t tmpfs -o ro none /tmp && exec setpriv --reuid=65534 --regid=65534 --clear-groups \"$@\"";
    let wrapper = ["unshare", "--mount", "sh", "-c", text, "sh"];
    let builder = Supervisor::builder().wrap(wrapper).env("XDG_RUNTIME_DIR", "").env("RUNTIME_DIRECTORY", "");
    a_flood_does_no_harm(builder, OTHER_USER, true);
}

#[test]
fn lingering_sockets_delay_no_notification() {
    // A connection with unsent data and SO_LINGER: the last close waits for the peer, for ten minutes.
    let peer = address::tcp();
    let _never_accepts = std::net::TcpListener::bind(peer).expect("the address is this test's own");
    let text = format!(
        "
import array, struct
name = os.environ['NOTIFY_SOCKET']
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.connect('\\0' + name[1:] if name.startswith('@') else name)
held = []
for _ in range(40):
    out = socket.socket()
    out.connect(('{}', {}))
    out.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 600))
    out.setblocking(False)
    attempt(lambda: [out.send(bytes(65536)) for _ in range(1000)])
    held.append(out)
parent = os.getppid()
os.kill(parent, signal.SIGSTOP)
while open(f'/proc/{{parent}}/stat').read().rsplit(')', 1)[1].split()[0] != 'T': pass
rights = array.array('i', [out.fileno() for out in held])
notify.sendmsg([b'STATUS=x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
# The supervisor's are the last ones: only they wait.
[out.close() for out in held]
os.kill(parent, signal.SIGCONT)
notify.send(b'READY=1')
while True: signal.pause()",
        peer.ip(),
        peer.port()
    );
    let supervisor = Supervisor::start(&["--ready", "notify"], script(&text, address::tcp()));
    supervisor.eventually("it is heard", || supervisor.logged(&[": notified"]).len() == 1);
    let pid = supervisor.pid();
    // There are forty of them, and fewer others.
    eventually(TIMEOUT, "all of them are closed", || process::descriptors(pid).len() < 40);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn descriptors_are_refused_while_a_close_hangs() {
    let peer = address::tcp();
    let _never_accepts = std::net::TcpListener::bind(peer).expect("the address is this test's own");
    // The lingering socket is in the queue of another one, where its linger option cannot be changed.
    let text = format!(
        "
import array, struct
SO_PASSRIGHTS = 83
name = os.environ['NOTIFY_SOCKET']
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
if attempt(lambda: notify.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 1)) != 'ok':
    say('unknown')
    signal.pause()
notify.connect('\\0' + name[1:] if name.startswith('@') else name)
out = socket.socket()
out.connect(('{}', {}))
out.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 600))
out.setblocking(False)
attempt(lambda: [out.send(bytes(65536)) for _ in range(1000)])
queue, end = socket.socketpair()
parent = os.getppid()
os.kill(parent, signal.SIGSTOP)
while open(f'/proc/{{parent}}/stat').read().rsplit(')', 1)[1].split()[0] != 'T': pass
socket.send_fds(end, [b'x'], [out.fileno()])
socket.send_fds(notify, [b'STATUS=x'], [queue.fileno()])
[made.close() for made in (out, queue, end)]
os.kill(parent, signal.SIGCONT)
null = os.open('/dev/null', os.O_RDONLY)
while attempt(lambda: socket.send_fds(notify, [b'STATUS=x'], [null] * 253)) == 'ok': time.sleep(0.001)
say(attempt(lambda: socket.send_fds(notify, [b'STATUS=x'], [null])))
notify.send(b'READY=1')
while True: signal.pause()",
        peer.ip(),
        peer.port()
    );
    let supervisor = Supervisor::start(&["--ready", "notify"], script(&text, address::tcp()));
    match said(&supervisor, 1).pop_first().as_deref() {
        Some("unknown") => skip!("this kernel has no SO_PASSRIGHTS"),
        outcome => assert_eq!(outcome, Some("EPERM")),
    }
    supervisor.eventually("it is heard", || supervisor.logged(&[": notified"]).len() == 1);
    let held = process::descriptors(supervisor.pid()).len();
    assert!((1000..5000).contains(&held), "{held}: the close has not ended, and there is a bound");
    assert_eq!(supervisor.stop(), 0);
}
