//! What a worker that means ill can make the supervisor do, which has more rights than the worker.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::{Duration, Instant};

use master_process_tests::script::{said, script};
use master_process_tests::{Supervisor, address, needs_root, process, scaled, skip};
use rustix::process::Signal;

#[test]
fn symlink_race_on_a_path_changes_no_other_mode_or_owner() {
    needs_root!();
    let outer = tempfile::tempdir().expect("a temporary folder");
    fs::set_permissions(outer.path(), fs::Permissions::from_mode(0o755)).expect("ours");
    let folder = outer.path().join("of-the-worker");
    fs::create_dir(&folder).expect("ours");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).expect("ours");
    let target = outer.path().join("secret");
    fs::write(&target, "root's own").expect("ours");
    fs::set_permissions(&target, fs::Permissions::from_mode(0o600)).expect("ours");
    // Another process puts a link over the socket's name the moment it appears, again and again, each time a new name.
    let text = "
folder, target, ROUNDS = sys.argv[2], sys.argv[3], 800
taken, put = os.pipe()
if os.fork() == 0:
    for round in range(ROUNDS):
        path, link = f'{folder}/{round}', f'{folder}/link'
        os.symlink(target, link)
        while True:
            try:
                os.lstat(path)
                break
            except FileNotFoundError:
                pass
        os.rename(link, path)
        os.write(put, b'x')
    os._exit(0)
for round in range(ROUNDS):
    made = socket.socket(socket.AF_UNIX)
    try:
        made.bind(f'{folder}/{round}')
    except OSError:
        # The other one waits for the name: it comes all the same.
        attempt(lambda: os.close(os.open(f'{folder}/{round}', os.O_CREAT | os.O_EXCL | os.O_WRONLY)))
    os.read(taken, 1)
    made.close()
say('done')
while True: signal.pause()";
    let mut command = script(text, address::tcp());
    command.extend([&folder, &target].map(|path| path.to_str().expect("UTF-8").to_owned()));
    let options = ["--user", "nobody", "--socket-mode", "666", "--socket-owner", "nobody", "--ready", "none"];
    let supervisor = Supervisor::start(&options, command);
    assert!(said(&supervisor, 1).contains("done"));
    let metadata = fs::symlink_metadata(&target).expect("it is there");
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o600, "the mode of root's file was changed");
    assert_eq!((metadata.uid(), metadata.gid()), (0, 0), "root's file was given away");
    assert_eq!(fs::read_to_string(&target).expect("there"), "root's own");
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn blocking_close_does_not_delay_the_supervisor() {
    // A connection with unsent data and SO_LINGER: the last close waits for the peer, for a minute.
    let peer = address::tcp();
    let _never_accepts = TcpListener::bind(peer).expect("the address is this test's own");
    let text = format!(
        "
import array, struct
def sender(count):
    name = os.environ['NOTIFY_SOCKET']
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.connect('\\0' + name[1:] if name.startswith('@') else name)
    held = []
    for _ in range(count):
        out = socket.socket()
        out.connect(('{}', {}))
        out.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 60))
        out.setblocking(False)
        try:
            while True: out.send(bytes(65536))
        except BlockingIOError:
            pass
        held.append(out)
    notify.sendmsg([b'STATUS=x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [out.fileno() for out in held]))])
    [out.close() for out in held]
# The supervisor must not read before our own copies are closed: the last one is then its.
parent = os.getppid()
if INDEX == '0':
    os.kill(parent, signal.SIGSTOP)
    while open(f'/proc/{{parent}}/stat').read().rsplit(')', 1)[1].split()[0] != 'T': pass
    sender(1); sender(20)
    os.kill(parent, signal.SIGCONT)
say('sent')
while True: signal.pause()",
        peer.ip(),
        peer.port()
    );
    let supervisor = Supervisor::start(&["-w", "1", "--ready", "none"], script(&text, address::tcp()));
    said(&supervisor, 1);
    let start = Instant::now();
    supervisor.signal(Signal::TTIN);
    supervisor.await_workers(2);
    assert!(start.elapsed() < scaled(Duration::from_secs(5)), "it was held up for {:?}", start.elapsed());
    assert_eq!(supervisor.stop(), 0);
}

/// Prints the worker's capability sets: inheritable, permitted, effective, ambient.
const SAY_CAPABILITIES: &str = "
status = dict(line.split(':', 1) for line in open('/proc/self/status'))
say(*(int(status[name], 16) for name in ['CapInh', 'CapPrm', 'CapEff', 'CapAmb']))
while True: signal.pause()";

/// The bit of `CAP_NET_BIND_SERVICE`.
const BIND: u64 = 1 << 10;

/// Starts the supervisor as an ordinary user with inheritable and ambient capabilities, as systemd does with
/// `User=` and `AmbientCapabilities=`.
fn as_service_with(capabilities: &str) -> Vec<String> {
    let words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"].map(str::to_owned);
    let sets = [format!("--inh-caps={capabilities}"), format!("--ambient-caps={capabilities}")];
    words.into_iter().chain(sets).collect()
}

/// The four sets of one worker, as [`SAY_CAPABILITIES`] has them.
fn capabilities_of_a_worker(wrapper: &[String], options: &[&str]) -> String {
    let command = script(SAY_CAPABILITIES, address::tcp());
    let supervisor = Supervisor::builder().wrap(wrapper).args(options).command(command).spawn();
    let line = said(&supervisor, 1).pop_first().unwrap_or_default();
    assert_eq!(supervisor.stop(), 0);
    line
}

#[test]
fn ambient_capabilities_of_the_supervisor_reach_no_worker() {
    needs_root!();
    let service = as_service_with("+bpf,+perfmon,+net_bind_service,+kill");
    for options in [&[] as &[&str], &["--share", "off", "--ready", "none"]] {
        assert_eq!(capabilities_of_a_worker(&service, options), "0 0 0 0", "{options:?}");
    }
}

#[test]
fn inheritable_capabilities_of_root_reach_no_worker_of_another_user() {
    needs_root!();
    let root = ["setpriv", "--inh-caps=+chown,+kill"].map(str::to_owned);
    assert_eq!(capabilities_of_a_worker(&root, &["--user", "nobody"]), "0 0 0 0");
}

#[test]
fn ambient_gives_exactly_the_named_capabilities() {
    needs_root!();
    let expected = format!("{BIND} {BIND} {BIND} {BIND}");
    let by_root = ["--user", "nobody", "--ambient", "net_bind_service"];
    assert_eq!(capabilities_of_a_worker(&[], &by_root), expected);
    let hardened = [&by_root[..], &["--no-new-privs"]].concat();
    assert_eq!(capabilities_of_a_worker(&[], &hardened), expected);
    let service = as_service_with("+bpf,+net_bind_service");
    assert_eq!(capabilities_of_a_worker(&service, &["--ambient", "CAP_NET_BIND_SERVICE"]), expected);
}

#[test]
fn worker_of_root_has_empty_inheritable_and_ambient_sets() {
    needs_root!();
    let root = ["setpriv", "--inh-caps=+chown,+kill"].map(str::to_owned);
    let line = capabilities_of_a_worker(&root, &[]);
    let sets: Vec<u64> = line.split(' ').filter_map(|set| set.parse().ok()).collect();
    let [inheritable, permitted, effective, ambient] = sets[..] else { panic!("{line}") };
    assert_eq!((inheritable, ambient), (0, 0));
    assert!(permitted != 0 && permitted == effective, "{line}");
}

#[test]
fn missing_capability_is_an_error_at_start() {
    needs_root!();
    let wrappers = [
        as_service_with("+kill"),
        ["setpriv", "--bounding-set=-net_bind_service"].map(str::to_owned).to_vec(),
    ];
    for wrapper in wrappers {
        let options = ["--ambient", "kill,net_bind_service"];
        let command = ["sh", "-c", "echo started"];
        let finished = Supervisor::builder().wrap(&wrapper).args(options).command(command).run();
        assert_eq!(finished.code, Some(1), "{finished:?}");
        assert!(finished.stdout.is_empty(), "{finished:?}");
        let [line] = &finished.stderr[..] else { panic!("{finished:?}") };
        assert!(line.contains("--ambient") && line.contains(" CAP_NET_BIND_SERVICE;"), "{line}");
    }
}

#[test]
fn an_ordinary_user_binds_a_low_port_only_with_the_capability() {
    const LOW: u16 = 81;
    let first_free = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or_default();
    if !process::is_root() || first_free.trim().parse().is_ok_and(|first: u16| first <= LOW) {
        skip!("not root, or every user may bind low ports here");
    }
    let text = "
made = None
def bind():
    global made
    made = bound(HOST, PORT)
    made.listen(8)
say(attempt(bind))
while True: signal.pause()";
    let bind = |share: &str, extra: &[&str]| {
        let mut low = address::tcp();
        low.set_port(LOW);
        let options = [&["--user", "nobody", "--share", share, "--ready", "none"], extra].concat();
        let supervisor = Supervisor::start(&options, script(text, low));
        let outcome = said(&supervisor, 1).pop_first().unwrap_or_default();
        assert_eq!(supervisor.stop(), 0);
        outcome
    };
    assert_eq!(bind("off", &[]), "EACCES");
    for share in ["slots", "shared", "off"] {
        assert_eq!(bind(share, &["--ambient", "net_bind_service"]), "ok", "--share {share}");
    }
}

#[test]
fn no_new_privs_disables_set_user_id_programs() {
    needs_root!();
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("ours");
    let program = folder.path().join("id");
    fs::copy("/usr/bin/id", &program).expect("every host has it");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).expect("ours");
    let user = |extra: &[&str]| {
        let text = format!("{} -u; exec sleep 1000", program.display());
        let options = [&["--user", "nobody", "--ready", "none"], extra].concat();
        let supervisor = Supervisor::start(&options, ["sh", "-c", &text]);
        let line = said(&supervisor, 1).pop_first().unwrap_or_default();
        assert_eq!(supervisor.stop(), 0);
        line
    };
    if user(&[]) != "0" {
        skip!("set-user-ID programs have no effect in the temporary folder anyway");
    }
    assert_eq!(user(&["--no-new-privs"]), "65534");
    assert_eq!(user(&["--no-new-privs", "--share", "off"]), "65534", "without a filter, too");
}
