//! What outlives a killed supervisor and holds an address: it is named, and ended with `--takeover` if it was left behind.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use master_process_tests::profile::{launcher, ordinary_user};
use master_process_tests::script::{said, script};
use master_process_tests::supervisor::await_gone;
use master_process_tests::{Supervisor, TIMEOUT, address, eventually, fixtures, load, process, skip};
use rustix::process::Signal;

/// Serves, and says so.
const PLAIN: &str = "
made = bound(HOST, PORT); made.listen(64)
say('ready', PID)
serve(made)";

/// A child of the worker serves: the kernel kills its parent with the supervisor, and not it.
const BY_CHILD: &str = "
made = bound(HOST, PORT); made.listen(64)
if os.fork():
    os.wait()
    sys.exit(1)
say('ready', os.getpid())
serve(made)";

/// Who changes his user is not killed with the supervisor.
const BY_ANOTHER_USER: &str = "
made = bound(HOST, PORT); made.listen(64)
os.setuid(65534)
say('ready', PID)
serve(made)";

/// What a killed supervisor has left behind. Dropped, it is ended.
struct Left {
    pid: i32,
    supervisor: i32,
    _ended_with: Supervisor,
}

fn ready(supervisor: &Supervisor) -> i32 {
    let lines = said(supervisor, 1);
    lines.iter().find_map(|line| line.strip_prefix("ready ")?.parse().ok()).expect("it says its pid")
}

/// Kills a supervisor whose worker has said that it is ready.
fn kill(supervisor: Supervisor) -> Left {
    let (pid, number) = (ready(&supervisor), supervisor.pid());
    supervisor.eventually("it listens", || !supervisor.logged(&[": listening"]).is_empty());
    supervisor.signal(Signal::KILL);
    eventually(TIMEOUT, "the supervisor is gone", || supervisor.exited().is_some());
    Left { pid, supervisor: number, _ended_with: supervisor }
}

fn left(command: Vec<String>) -> Left {
    let left = kill(Supervisor::start(&["--throttle", "100ms"], command));
    assert!(process::alive(left.pid), "it outlives its supervisor");
    left
}

/// The line that names a process.
fn line(supervisor: &Supervisor, pid: i32) -> String {
    let find = || supervisor.logged(&[" is held by ", &format!("(pid {pid})")]).first().cloned();
    supervisor.until("who holds the address is named", find)
}

fn names_as_left(line: &str, left: &Left) {
    let of = format!("left by an earlier master-process (pid {})", left.supervisor);
    assert!(line.contains(&of), "{line}");
}

/// Another start names what is left, as often as its worker fails; one with `--takeover` ends it.
fn is_named_and_taken_over(left: &Left, address: SocketAddr, program: &str) {
    let next = Supervisor::start(&["--throttle", "50ms"], script(program, address));
    let named = line(&next, left.pid);
    names_as_left(&named, left);
    assert!(named.contains(&format!("warn {address} is held by ")), "{named}");
    assert!(named.contains("running since 20") && named.ends_with(": --takeover ends it"), "{named}");
    next.eventually("it fails again", || next.logged(&["exited with code 1"]).len() >= 3);
    assert_eq!(next.logged(&["is held by"]).len(), 1, "once a minute: {:?}", next.log());
    assert_eq!(next.stop(), 0);
    assert!(process::alive(left.pid), "nobody has asked for its end");
    is_taken_over(left, address, program, "with sigterm");
}

fn is_taken_over(left: &Left, address: SocketAddr, program: &str, how: &str) {
    let next = Supervisor::start(&["--takeover", "--kill-timeout", "300ms"], script(program, address));
    let new = ready(&next);
    await_gone(left.pid);
    assert_eq!(load::who(address), Some(new));
    next.eventually("it is told of", || !next.logged(&["ended ", &format!("(pid {})", left.pid)]).is_empty());
    let ended = next.logged(&["ended ", how, &format!("which held {address}")]);
    assert_eq!(ended.len(), 1, "{:?}", next.log());
    names_as_left(&ended[0], left);
    assert_eq!(next.logged(&["exited with code"]), Vec::<String>::new(), "the bind has waited for it");
    assert_eq!(next.stop(), 0);
}

#[test]
fn a_child_of_a_worker_that_outlives_its_supervisor_is_named_and_taken_over() {
    let address = address::tcp();
    is_named_and_taken_over(&left(script(BY_CHILD, address)), address, PLAIN);
}

#[test]
fn a_worker_that_has_changed_its_user_is_named_and_taken_over() {
    if !process::is_root() {
        skip!("a_worker_that_has_changed_its_user_is_named_and_taken_over", "needs root");
    }
    let address = address::tcp();
    is_named_and_taken_over(&left(script(BY_ANOTHER_USER, address)), address, PLAIN);
}

/// Whether a user who is nobody in particular may run a program.
fn may_run(user: u32, program: &str) -> bool {
    let id = user.to_string();
    let words = ["--reuid", &id, "--clear-groups", program, "-c", ""];
    Command::new("setpriv").args(words).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// A worker that a program makes another user before it becomes the server.
fn is_named_and_taken_over_as_another_user(name: &str, program: &[&str]) {
    let is_there = || Command::new(program[0]).arg("--version").stdout(Stdio::null()).status().is_ok();
    if !process::is_root() || !is_there() || !may_run(65534, &fixtures::python()) {
        skip!(name, format!("needs root, {}, and a python that other users may run", program[0]));
    }
    let address = address::tcp();
    let program = program.iter().map(|word| (*word).to_owned()).collect();
    let left = left([program, script(PLAIN, address)].concat());
    assert_eq!(process::status(left.pid, "Uid").as_deref(), Some("65534\t65534\t65534\t65534"));
    is_named_and_taken_over(&left, address, PLAIN);
}

#[test]
fn a_worker_that_setpriv_has_started_is_named_and_taken_over() {
    is_named_and_taken_over_as_another_user(
        "a_worker_that_setpriv_has_started_is_named_and_taken_over",
        &["setpriv", "--reuid", "65534", "--clear-groups"],
    );
}

#[test]
fn a_worker_that_gosu_has_started_is_named_and_taken_over() {
    is_named_and_taken_over_as_another_user(
        "a_worker_that_gosu_has_started_is_named_and_taken_over",
        &["gosu", "65534"],
    );
}

#[test]
fn a_worker_with_file_capabilities_is_named_and_taken_over() {
    const NAME: &str = "a_worker_with_file_capabilities_is_named_and_taken_over";
    if !process::is_root() || !may_run(65534, &fixtures::python()) {
        skip!(NAME, "needs root, setpriv, and a python that other users may run");
    }
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("ours");
    let program = folder.path().join("capable");
    std::fs::copy(fixtures::python(), &program).expect("copied");
    let program = program.to_str().expect("ASCII").to_owned();
    let given = Command::new("setcap").args(["cap_net_bind_service+ep", &program]).status();
    if !given.is_ok_and(|status| status.success()) || !may_run(65534, &program) {
        skip!(NAME, "needs setcap, and a python that runs from any folder");
    }
    let address = address::tcp();
    let mut command = script(PLAIN, address);
    command[0] = program;
    let left = kill(Supervisor::start(&["--user", "65534"], command));
    assert!(process::alive(left.pid), "it outlives its supervisor");
    is_named_and_taken_over(&left, address, PLAIN);
}

#[test]
fn what_does_not_heed_the_stop_signal_is_killed() {
    let address = address::tcp();
    let deaf = format!("signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{BY_CHILD}");
    is_taken_over(&left(script(&deaf, address)), address, PLAIN, "with sigkill");
}

/// The kernel would let the new worker share the address with it.
#[test]
fn what_would_share_the_address_by_so_reuseport_is_named_and_taken_over() {
    let joining = |text: &str| {
        let set = "made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)";
        let bound = format!("made = socket.socket(); {set}; made.bind((HOST, PORT)); made.listen(64)");
        text.replace("made = bound(HOST, PORT); made.listen(64)", &bound)
    };
    let address = address::tcp();
    let left = left(script(&joining(BY_CHILD), address));
    let sharing = Supervisor::start(&[], script(&joining(PLAIN), address));
    ready(&sharing);
    names_as_left(&line(&sharing, left.pid), &left);
    assert_eq!(sharing.stop(), 0);
    is_taken_over(&left, address, &joining(PLAIN), "with sigterm");
}

#[test]
fn every_worker_waits_until_the_address_is_free() {
    let address = address::tcp();
    let left = left(script(BY_CHILD, address));
    let next = Supervisor::start(&["-w", "4", "--takeover"], script(PLAIN, address));
    next.eventually("all listen", || next.logged(&[": listening"]).len() == 4);
    await_gone(left.pid);
    assert_eq!(next.logged(&["exited with code"]), Vec::<String>::new());
    assert_eq!(next.stop(), 0);
}

#[test]
fn a_server_that_answers_at_a_unix_path_is_named_and_taken_over() {
    const AT_PATH: &str = "
made = socket.socket(socket.AF_UNIX); made.bind(os.environ['AT']); made.listen(64)
WHO
say('ready', os.getpid())
serve(made)";
    let (_folder, path) = address::unix();
    let start = |options: &[&str], who: &str| {
        let command = script(&AT_PATH.replace("WHO", who), address::tcp());
        Supervisor::builder().args(options).env("AT", &path).command(command).spawn()
    };
    let left = kill(start(&[], "if os.fork(): os.wait(); sys.exit(1)"));
    assert!(process::alive(left.pid));
    let next = start(&["--throttle", "100ms"], "");
    let named = line(&next, left.pid);
    names_as_left(&named, &left);
    assert!(named.contains(&format!("{} is held by", path.display()).to_lowercase()), "{named}");
    assert_eq!(next.stop(), 0);
    assert!(process::alive(left.pid));
    let next = start(&["--takeover"], "");
    let new = ready(&next);
    await_gone(left.pid);
    assert_eq!(load::who(&*path), Some(new));
    assert_eq!(next.logged(&["exited with code"]), Vec::<String>::new());
    assert_eq!(next.stop(), 0);
}

#[test]
fn a_listen_address_that_is_held_is_an_error_that_names_who_has_it_or_is_taken_over() {
    const INHERITED: &str = "
made = socket.socket(fileno=3)
if os.fork():
    os.wait()
    sys.exit(1)
say('ready', os.getpid())
serve(made)";
    let (_folder, path) = address::unix();
    let tcp = address::tcp();
    for listen in [tcp.to_string(), format!("unix:{}", path.display())] {
        let supervisor = Supervisor::start(&["--ready", "none", "--listen", &listen], script(INHERITED, tcp));
        let (pid, number) = (ready(&supervisor), supervisor.pid());
        supervisor.signal(Signal::KILL);
        eventually(TIMEOUT, "the supervisor is gone", || supervisor.exited().is_some());
        let left = Left { pid, supervisor: number, _ended_with: supervisor };
        assert!(process::alive(pid));
        let start = |options: &[&str]| {
            let options = [options, &["--ready", "none", "--listen", &listen]].concat();
            Supervisor::builder().args(options).command(script(INHERITED, tcp))
        };
        let failed = start(&[]).run();
        assert_eq!(failed.code, Some(1), "{failed:?}");
        let error = failed.stderr.join("\n");
        names_as_left(&error, &left);
        assert!(
            error.contains(&format!("(pid {pid})")) && error.ends_with(": --takeover ends it"),
            "{error}"
        );
        assert!(process::alive(pid));
        let next = start(&["--takeover"]).spawn();
        ready(&next);
        await_gone(pid);
        next.eventually("it is told of", || !next.logged(&["ended ", &format!("(pid {pid})")]).is_empty());
        assert_eq!(next.stop(), 0);
    }
}

/// Starts with `--takeover` where an address is held, and gives the line that names who holds it.
fn leaves_alone(address: SocketAddr, holder: i32) -> String {
    let next = Supervisor::start(&["--takeover", "--throttle", "50ms"], script(PLAIN, address));
    let line = line(&next, holder);
    next.eventually("it fails again", || next.logged(&["exited with code 1"]).len() >= 3);
    assert_eq!(next.logged(&["ended "]), Vec::<String>::new());
    assert_eq!(next.stop(), 0);
    assert!(process::alive(holder));
    assert_eq!(load::who(address), Some(holder));
    assert!(line.ends_with(": left alone"), "{line}");
    line
}

#[test]
fn the_worker_of_a_running_supervisor_is_named_and_left_alone() {
    let address = address::tcp();
    let running = Supervisor::start(&[], script(BY_CHILD, address));
    let holder = ready(&running);
    let line = leaves_alone(address, holder);
    let of = format!("which belongs to a running master-process (pid {})", running.pid());
    assert!(line.contains(&of), "{line}");
    assert_eq!(running.stop(), 0);
}

/// It says that it comes from a supervisor that is gone, and descends from one that runs.
#[test]
fn the_worker_of_a_running_supervisor_is_left_alone_whatever_its_environment_says() {
    let address = address::tcp();
    let text = format!(
        "
if 'AGAIN' not in os.environ:
    gone = os.fork()
    if gone == 0: os._exit(0)
    os.waitpid(gone, 0)
    del os.environ['NOTIFY_SOCKET']
    os.environ.update(AGAIN='1', PPID=str(gone))
    os.execv(sys.executable, sys.orig_argv)
{PLAIN}"
    );
    let running = Supervisor::start(&[], script(&text, address));
    let holder = ready(&running);
    let line = leaves_alone(address, holder);
    assert!(line.contains("which belongs to a running master-process"), "{line}");
    assert_eq!(running.stop(), 0);
}

/// A process that no supervisor has started.
struct Unrelated(Child);

impl Unrelated {
    fn start(address: SocketAddr, user: Option<u32>, variables: &[(&str, &str)]) -> Unrelated {
        let words = script(PLAIN, address);
        let words =
            user.map_or_else(|| words.clone(), |user| [launcher(Some(user), &[]), words.clone()].concat());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).envs([("WORKER_INDEX", "0"), ("RELOAD_INDEX", "0")]);
        let child = command.envs(variables.iter().copied()).stdout(Stdio::null()).spawn().expect("it starts");
        eventually(TIMEOUT, "it listens", || load::who(address).is_some());
        Unrelated(child)
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).expect("pids are small")
    }
}

impl Drop for Unrelated {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _gone = self.0.wait();
    }
}

#[test]
fn a_stranger_is_named_and_left_alone() {
    let address = address::tcp();
    let stranger = Unrelated::start(address, None, &[]);
    let line = leaves_alone(address, stranger.pid());
    assert!(!line.contains("master-process (pid"), "{line}");
}

/// The number of a supervisor that is gone proves nothing without the rest; that of one that runs protects.
#[test]
fn who_names_a_running_supervisor_is_left_alone() {
    let running = Supervisor::start(&[], fixtures::idle());
    running.await_workers(1);
    let address = address::tcp();
    let pid = running.pid().to_string();
    let stranger = Unrelated::start(address, None, &[("PPID", &pid)]);
    leaves_alone(address, stranger.pid());
    assert_eq!(running.stop(), 0);
}

#[test]
fn an_ordinary_user_takes_over_what_is_his_and_nothing_else() {
    const NAME: &str = "an_ordinary_user_takes_over_what_is_his_and_nothing_else";
    if !process::is_root() || !may_run(65534, &fixtures::python()) || !Path::new("/proc/self/ns/pid").exists()
    {
        skip!(NAME, "needs root, setpriv, and a python that other users may run");
    }
    let user = ordinary_user();
    let start = |address: SocketAddr, options: &[&str], text: &str| {
        let builder = Supervisor::builder().args(options).command(script(text, address));
        builder.wrap(launcher(Some(user), &[])).spawn()
    };
    let own = address::tcp();
    let left_by_user = kill(start(own, &[], BY_CHILD));
    assert!(process::alive(left_by_user.pid));
    let next = start(own, &["--takeover"], PLAIN);
    let new = ready(&next);
    await_gone(left_by_user.pid);
    assert_eq!(load::who(own), Some(new));
    assert_eq!(next.stop(), 0);
    let of_root = address::tcp();
    let left_by_root = left(script(BY_CHILD, of_root));
    let next = start(of_root, &["--takeover", "--throttle", "50ms"], PLAIN);
    next.eventually("it is named as far as it can be", || {
        !next.logged(&[&format!("{of_root} is held by a process of user 0")]).is_empty()
    });
    next.eventually("it fails again", || next.logged(&["exited with code 1"]).len() >= 3);
    assert!(process::alive(left_by_root.pid));
    assert_eq!(next.stop(), 0);
}
