//! What a worker gets when it binds: what it would get alone, and nothing that only the supervisor may have.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use master_process_tests::script::{lines, said, script, script_with};
use master_process_tests::{Supervisor, address, needs_root, process, profile, skip};

/// A port below `net.ipv4.ip_unprivileged_port_start` where that has its default.
const LOW: u16 = 81;

/// A user that is neither root nor one of the workers.
const OTHER: u32 = 12345;

/// Calls of the C library that python has no function for.
const LIBC: &str = "
import ctypes, struct
libc = ctypes.CDLL(None, use_errno=True)
def failed():
    return errno.errorcode[ctypes.get_errno()]
";

/// Becomes root of a user namespace of the worker's own.
const ENTER_USER_NAMESPACE: &str = "
uid, gid = os.getuid(), os.getgid()
if libc.unshare(0x10000000) != 0:  # CLONE_NEWUSER
    say('no user namespace', failed())
    time.sleep(1000)
open('/proc/self/setgroups', 'w').write('deny')
open('/proc/self/uid_map', 'w').write(f'0 {uid} 1')
open('/proc/self/gid_map', 'w').write(f'0 {gid} 1')
";

/// Becomes another user as far as files are concerned, and stays root otherwise.
const SET_FS_USER: &str = "
libc.setfsgid(65534)
libc.setfsuid(65534)
";

/// Becomes another user for good.
const BECOME_NOBODY: &str = "
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
";

/// Tries each of the paths after the address, and waits where it is a worker.
const TRY_PATHS: &str = "
held = []
for path in sys.argv[2:]:
    held.append(socket.socket(socket.AF_UNIX))
    where = '/'.join(path.split('/')[-2:])
    say(RELOAD, where, attempt(lambda: held[-1].bind(path) or held[-1].listen(8)))
while 'NOTIFY_SOCKET' in os.environ: signal.pause()";

/// Two folders that a worker must not get into, each with a dead socket file.
struct Folders {
    _outer: tempfile::TempDir,
    /// Of another user, with mode 0700.
    private: PathBuf,
    /// Everybody may make files in it, and remove no file of another user: like `/tmp`.
    sticky: PathBuf,
}

impl Folders {
    fn new() -> Folders {
        let outer = tempfile::tempdir().expect("a temporary folder");
        set_mode(outer.path(), 0o755);
        let (private, sticky) = (outer.path().join("private"), outer.path().join("sticky"));
        for (folder, mode) in [(&private, 0o700), (&sticky, 0o1777)] {
            fs::create_dir(folder).expect("ours");
            let dead = folder.join("dead");
            drop(UnixListener::bind(&dead).expect("the path is free"));
            set_mode(&dead, 0o600);
            set_mode(folder, mode);
        }
        chown(&private, Some(OTHER), Some(OTHER)).expect("root may");
        Folders { _outer: outer, private, sticky }
    }

    /// The paths that a worker tries.
    fn paths(&self) -> Vec<String> {
        let paths = [self.private.join("new"), self.private.join("dead"), self.sticky.join("dead")];
        paths.iter().map(|path| path.to_str().expect("UTF-8").to_owned()).collect()
    }

    /// Inode numbers by name: what is there, and whether it is still the same.
    fn contents(&self) -> BTreeSet<(PathBuf, u64)> {
        let folders = [&self.private, &self.sticky].into_iter();
        let entries = folders.flat_map(|folder| fs::read_dir(folder).expect("root may").flatten());
        entries.map(|entry| (entry.path(), entry.metadata().expect("there").ino())).collect()
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("ours");
}

/// Words that run the command that follows them as the user nobody.
fn as_nobody() -> Vec<String> {
    ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"].map(str::to_owned).to_vec()
}

/// The output of the program without a supervisor.
fn alone(wrapper: &[String], command: &[String]) -> BTreeSet<String> {
    let words: Vec<&String> = wrapper.iter().chain(command).collect();
    let variables = [("WORKER_INDEX", "0"), ("RELOAD_INDEX", "0")];
    let ended = Command::new(words[0]).args(&words[1..]).env_remove("NOTIFY_SOCKET").envs(variables).output();
    let text = String::from_utf8(ended.expect("it runs").stdout).expect("UTF-8");
    text.lines().map(str::to_owned).collect()
}

/// A worker that changes its rights by `text` gets at each path what it gets alone, in its first start and in a reload,
/// and changes nothing. `false`: the kernel does not let it become that.
fn gets_what_it_gets_alone(text: &str, user: Option<&str>) -> bool {
    let folders = Folders::new();
    let command = |paths: Vec<String>| {
        let text = format!("{LIBC}{text}{TRY_PATHS}");
        let mut command = script(&text, address::tcp());
        command.extend(paths);
        command
    };
    let before = folders.contents();
    let expected = lines(&["0 private/new EACCES", "0 private/dead EACCES", "0 sticky/dead EADDRINUSE"]);
    let mut options = vec!["--ready", "none"];
    options.extend(user.into_iter().flat_map(|user| ["--user", user]));
    let supervisor = Supervisor::start(&options, command(folders.paths()));
    if said(&supervisor, 1).iter().any(|line| line.starts_with("no user namespace")) {
        return false;
    }
    let wrapper = user.map_or_else(Vec::new, |_| as_nobody());
    assert_eq!(alone(&wrapper, &command(folders.paths())), expected, "alone");
    assert_eq!(said(&supervisor, 3), expected, "as a worker");
    supervisor.reload(1);
    let again = expected.iter().map(|line| line.replacen('0', "1", 1));
    assert_eq!(said(&supervisor, 6), expected.iter().cloned().chain(again).collect(), "after a reload");
    assert_eq!(supervisor.stop(), 0);
    assert_eq!(folders.contents(), before, "nothing was made or removed");
    true
}

#[test]
fn root_in_its_own_user_namespace_gains_no_path() {
    needs_root!();
    if !gets_what_it_gets_alone(ENTER_USER_NAMESPACE, None) {
        skip!("no user namespaces");
    }
}

#[test]
fn ordinary_user_in_its_own_user_namespace_gains_no_path() {
    needs_root!();
    if !gets_what_it_gets_alone(ENTER_USER_NAMESPACE, Some("nobody")) {
        skip!("no user namespaces for ordinary users");
    }
}

#[test]
fn worker_of_another_user_binds_and_removes_no_file_of_root() {
    needs_root!();
    assert!(gets_what_it_gets_alone("", Some("nobody")));
}

#[test]
fn worker_with_another_fsuid_binds_and_removes_no_file_of_root() {
    needs_root!();
    assert!(gets_what_it_gets_alone(SET_FS_USER, None));
}

/// Once more where the path is taken by an old generation, which was bound with more rights: the supervisor binds beside
/// it, and must not do so with its own.
fn does_not_take_over_the_path_of_an_old_worker(text: &str) -> Option<()> {
    let outer = tempfile::tempdir().expect("a temporary folder");
    set_mode(outer.path(), 0o755);
    let path = outer.path().join("app.sock");
    // Everybody may look into the folder, and only root may make files there.
    let text = format!(
        "{LIBC}
if RELOAD:
    {}
made = socket.socket(socket.AF_UNIX)
say(RELOAD, attempt(lambda: made.bind(sys.argv[2]) or made.listen(8)))
while True: signal.pause()",
        text.trim().replace('\n', "\n    ")
    );
    let command = script_with(&text, address::tcp(), [&path]);
    let supervisor = Supervisor::start(&["--ready", "none", "--drain", "1ms"], command);
    assert_eq!(said(&supervisor, 1), lines(&["0 ok"]));
    supervisor.reload(1);
    let both = said(&supervisor, 2);
    if both.iter().any(|line| line.starts_with("no ")) {
        return None;
    }
    assert!(both.contains("1 EACCES") || both.contains("1 EADDRINUSE"), "{both:?}");
    let left = fs::read_dir(outer.path()).expect("ours").flatten().map(|entry| entry.file_name());
    assert!(left.into_iter().all(|name| name == "app.sock"), "nothing was made beside it");
    Some(())
}

#[test]
fn new_worker_with_fewer_rights_does_not_take_over_the_path() {
    needs_root!();
    for text in [SET_FS_USER, BECOME_NOBODY] {
        assert!(does_not_take_over_the_path_of_an_old_worker(text).is_some());
    }
    let in_namespace = format!("{BECOME_NOBODY}libc.prctl(4, 1, 0, 0, 0)\n{ENTER_USER_NAMESPACE}");
    if does_not_take_over_the_path_of_an_old_worker(&in_namespace).is_none() {
        skip!("no user namespaces for ordinary users");
    }
}

/// Whether an ordinary user may not bind [`LOW`].
fn low_ports_are_privileged() -> bool {
    let first_free = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or_default();
    first_free.trim().parse().is_ok_and(|first: u16| first > LOW)
}

fn low_address() -> SocketAddr {
    let mut low = address::tcp();
    low.set_port(LOW);
    low
}

/// Prints the result of a bind of the port, TCP and UDP.
const TRY_PORT: &str = "
def datagram():
    globals()['udp'] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind((HOST, PORT))
say(INDEX, RELOAD, 'tcp', attempt(lambda: globals().update(made=bound(HOST, PORT)) or made.listen(8)))
say(INDEX, RELOAD, 'udp', attempt(datagram))
while True: signal.pause()";

#[test]
fn unprivileged_workers_get_no_privileged_port_in_start_or_reload() {
    if !process::is_root() || !low_ports_are_privileged() {
        skip!("not root, or every user may bind low ports here");
    }
    let options = ["-w", "2", "--user", "nobody", "--ready", "none", "--drain", "1ms"];
    let supervisor = Supervisor::start(&options, script(TRY_PORT, low_address()));
    let of = |reload: u32| {
        let line = move |(slot, kind)| format!("{slot} {reload} {kind} EACCES");
        [(0, "tcp"), (0, "udp"), (1, "tcp"), (1, "udp")].into_iter().map(line)
    };
    assert_eq!(said(&supervisor, 4), of(0).collect());
    supervisor.reload(2);
    assert_eq!(said(&supervisor, 8), of(0).chain(of(1)).collect());
    assert_eq!(supervisor.stop(), 0);
}

/// One worker has an address; another, which `text` takes the right away from, wants it beside it and in a reload.
/// Prints `no …` where that right cannot be taken away here.
fn does_not_join(text: &str, address: SocketAddr) -> Option<()> {
    let text = format!(
        "{LIBC}
if INDEX != '0':
    # Its sibling has the address by then.
    while attempt(lambda: socket.create_connection((HOST, PORT)).close()) != 'ok': time.sleep(0.01)
if RELOAD or INDEX != '0':
    {}
say(INDEX, RELOAD, attempt(lambda: globals().update(made=bound(HOST, PORT)) or made.listen(8)))
if INDEX == '0' and not RELOAD: serve(made)
while True: signal.pause()",
        text.trim().replace('\n', "\n    ")
    );
    let supervisor =
        Supervisor::start(&["-w", "2", "--ready", "none", "--drain", "1ms"], script(&text, address));
    let first = said(&supervisor, 2);
    if let Some(why) = first.iter().find(|line| line.starts_with("no ")) {
        println!("{why}");
        return None;
    }
    assert_eq!(first, lines(&["0 0 ok", "1 0 EACCES"]));
    supervisor.signal(rustix::process::Signal::HUP);
    supervisor.eventually("the new worker of the slot has tried", || {
        supervisor.output().iter().any(|line| line.starts_with("0 1 "))
    });
    assert!(supervisor.output().contains(&"0 1 EACCES".to_owned()), "{:?}", supervisor.output());
    Some(())
}

#[test]
fn unprivileged_worker_does_not_join_a_privileged_port() {
    if !process::is_root() || !low_ports_are_privileged() {
        skip!("not root, or every user may bind low ports here");
    }
    assert!(does_not_join(BECOME_NOBODY, low_address()).is_some());
}

#[test]
fn other_user_cannot_make_the_bind_of_a_new_generation_fail() {
    needs_root!();
    let outer = tempfile::tempdir().expect("a temporary folder");
    set_mode(outer.path(), 0o1777);
    let path = outer.path().join("app.sock");
    let text = "
made = socket.socket(socket.AF_UNIX)
say(RELOAD, attempt(lambda: made.bind(sys.argv[2]) or made.listen(8)))
while True: signal.pause()";
    let command = script_with(text, address::tcp(), [&path]);
    let supervisor = Supervisor::start(&["--ready", "none", "--drain", "1ms"], command);
    assert_eq!(said(&supervisor, 1), lines(&["0 ok"]));
    let folder = fs::metadata(outer.path()).expect("ours").ino() & 0xfff;
    let name = format!(".{:x}-1-{folder:x}", supervisor.pid());
    for name in std::iter::once(name.clone()).chain((1..100).map(|more| format!("{name}-{more}"))) {
        let file = outer.path().join(name);
        fs::write(&file, "").expect("ours");
        chown(&file, Some(OTHER), Some(OTHER)).expect("root may");
    }
    supervisor.reload(1);
    assert_eq!(said(&supervisor, 2), lines(&["0 ok", "1 ok"]));
}

/// Landlock without a rule: no TCP port can be bound.
const FORBID_TCP: &str = "
version = libc.syscall(444, None, 0, 1)
if version < 4:
    say('no Landlock for TCP', version)
    time.sleep(1000)
rules = libc.syscall(444, struct.pack('QQ', 0, 1), 16, 0)
libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
assert rules >= 0 and libc.syscall(446, rules, 0) == 0, failed()
";

#[test]
fn landlocked_worker_does_not_join_a_forbidden_port() {
    if does_not_join(FORBID_TCP, address::tcp()).is_none() {
        skip!("no Landlock with rules for TCP (ABI 4)");
    }
}

/// The owner of the `/proc` files of a process, and whether another process of its user can read its environment: both
/// change when it cannot be looked into any more.
fn looks_of(pid: i32, user: u32) -> (Vec<u32>, bool) {
    let files = ["", "/fd", "/environ", "/maps"];
    let owner = |file: &str| fs::metadata(format!("/proc/{pid}{file}")).expect("it runs").uid();
    let reader = [format!("--reuid={user}"), format!("--regid={user}"), "--clear-groups".to_owned()];
    let read = Command::new("setpriv").args(reader).args(["cat", &format!("/proc/{pid}/environ")]).output();
    (files.map(owner).to_vec(), read.expect("setpriv runs").status.success())
}

/// The supervisor can be looked into as before after workers with other rights have bound a Unix path.
fn proc_access_is_unchanged(wrapper: Vec<String>, options: &[&str], user: u32) {
    let outer = tempfile::tempdir().expect("a temporary folder");
    set_mode(outer.path(), 0o777);
    let (path, gate) = (outer.path().join("app.sock"), outer.path().join("gate"));
    let text = "
say('started')
while not os.path.exists(sys.argv[3]): time.sleep(0.01)
made = socket.socket(socket.AF_UNIX)
say(RELOAD, attempt(lambda: made.bind(sys.argv[2]) or made.listen(8)))
serve(made)";
    let mut command = script(text, address::tcp());
    command.extend([&path, &gate].map(|path| path.to_str().expect("UTF-8").to_owned()));
    let builder = Supervisor::builder().wrap(wrapper).args(["--drain", "1ms", "--throttle", "10ms"]);
    let supervisor = builder.args(options).command(command).spawn();
    said(&supervisor, 1);
    let before = looks_of(supervisor.pid(), user);
    fs::write(&gate, "").expect("ours");
    for reload in 0..3 {
        if reload > 0 {
            supervisor.reload(1);
        }
        supervisor.eventually("it has bound", || supervisor.output().contains(&format!("{reload} ok")));
        supervisor.await_rest();
        assert_eq!(looks_of(supervisor.pid(), user), before, "after reload {reload}");
    }
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn bind_with_a_workers_rights_keeps_proc_access_to_the_supervisor() {
    needs_root!();
    proc_access_is_unchanged(Vec::new(), &["--user", "nobody"], 0);
    // An ordinary user with capabilities: what `/proc` shows is root's while it cannot be looked into.
    let user = profile::ordinary_user();
    let capabilities = "+setuid,+setgid,+chown,+dac_override,+fowner,+kill,+sys_admin,+sys_ptrace";
    let mut service = vec!["setpriv".to_owned(), format!("--reuid={user}"), format!("--regid={user}")];
    service.extend(["--clear-groups".to_owned(), format!("--inh-caps={capabilities}")]);
    service.push(format!("--ambient-caps={capabilities}"));
    proc_access_is_unchanged(service.clone(), &["--user", "nobody"], user);
    // Its workers are of the same user, without the capabilities.
    proc_access_is_unchanged(service, &[], user);
}

#[test]
fn unprivileged_supervisor_stays_inspectable_after_binds() {
    needs_root!();
    let user = profile::ordinary_user();
    proc_access_is_unchanged(profile::launcher(Some(user), &[]), &[], user);
}
