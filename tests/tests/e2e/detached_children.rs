//! Children that left the group, the session or the user of their worker.

use master_process_tests::cgroup::Place;
use master_process_tests::profile::{launcher, ordinary_user};
use master_process_tests::script::{ready_pids, said, script};
use master_process_tests::supervisor::await_gone;
use master_process_tests::{Supervisor, address, needs_root, process, skip};
use rustix::process::Signal;

/// A child in a session of its own, without the worker's environment, whose parent is killed.
fn a_detached_child_is_its_workers(options: &[&str], user: Option<u32>) {
    let text = "
child = os.fork()
if child == 0:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.execve(sys.executable, [sys.executable, '-S', '-E', '-c', 'import time; time.sleep(1000)'], {})
made = bound(HOST, PORT); made.listen(64)
say('child', child)
serve(made)";
    let options = [options, &["--throttle", "100ms", "--kill-timeout", "1s"]].concat();
    let builder = Supervisor::builder().args(&options).command(script(text, address::tcp()));
    let supervisor = match user {
        Some(user) => builder.wrap(launcher(Some(user), &[])).spawn(),
        None => builder.spawn(),
    };
    let count = if options.contains(&"-w") { 2 } else { 1 };
    let lines = said(&supervisor, count);
    let child: i32 =
        lines.iter().find_map(|line| line.strip_prefix("child ")?.parse().ok()).expect("it is printed");
    let worker = process::stat(child).expect("it lives").ppid;
    supervisor.eventually("it is another program", || process::environment(child).len() <= 1);
    if options.contains(&"procfs") {
        let stat = std::path::PathBuf::from(format!("/proc/{child}/stat"));
        supervisor.eventually("a sample has seen it", || {
            process::descriptors(supervisor.pid()).iter().any(|(_, file)| *file == stat)
        });
    }
    process::signal(worker, Signal::KILL);
    await_gone(child);
    supervisor.eventually("it is logged", || {
        !supervisor.logged(&["left 1 process behind", &format!("(pid {child})")]).is_empty()
    });
    assert_eq!(supervisor.stop(), 0);
    assert_eq!(supervisor.survivors(), Vec::<i32>::new());
}

#[test]
fn detached_child_belongs_to_the_only_worker() {
    a_detached_child_is_its_workers(&["--monitor", "off"], None);
}

#[test]
fn detached_child_belongs_to_the_only_worker_of_an_ordinary_user() {
    a_detached_child_is_its_workers(&["--monitor", "off"], Some(ordinary_user()));
}

#[test]
fn detached_child_is_found_by_an_earlier_procfs_sample() {
    a_detached_child_is_its_workers(&["-w", "2", "--monitor", "procfs", "--monitor-interval", "100ms"], None);
}

#[test]
fn detached_child_is_found_by_ebpf() {
    needs_root!();
    a_detached_child_is_its_workers(&["-w", "2", "--monitor", "ebpf"], None);
}

#[test]
fn memory_of_a_daemon_counts_for_its_worker_with_procfs() {
    let text = "
made = bound(HOST, PORT); made.listen(64)
say('ready', PID)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        used = b'x' * (200 << 20) if INDEX == '0' else b''
        time.sleep(1000)
    os._exit(0)
serve(made)";
    let limits = ["--max-memory", "100MiB", "--memory-failures", "2", "--monitor-delay", "0"];
    let options = [&["-w", "2", "--monitor", "procfs", "--monitor-interval", "100ms"][..], &limits].concat();
    let supervisor = Supervisor::start(&options, script(text, address::tcp()));
    ready_pids(&supervisor, 2);
    supervisor.eventually("it is over its limit", || {
        !supervisor.logged(&["worker 0", "exceeded --max-memory ("]).is_empty()
    });
    assert!(supervisor.logged(&["worker 1", "exceeded --max-memory ("]).is_empty());
    assert_eq!(supervisor.stop(), 0);
    assert_eq!(supervisor.survivors(), Vec::<i32>::new());
}

/// A child that has become another user in a session of its own, and uses a good deal of memory.
const OTHER_USER: &str = "
child = os.fork()
if child == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    used = b'x' * (100 << 20)
    say('child', INDEX, PID, os.getpid())
    time.sleep(1000)
signal.signal(signal.SIGUSR1, lambda *_: say('high', PID))
made = bound(HOST, PORT); made.listen(64)
serve(made)";

/// Each of two workers has a child of another user: it is measured as the worker's, and ended with it.
fn a_child_of_another_user_is_its_workers(options: &[&str], launcher: Vec<String>) {
    let limits = ["--max-memory", "140MiB", "--memory-high-signal", "USR1", "--monitor-delay", "0"];
    let quick = ["-w", "2", "--monitor-interval", "100ms", "--kill-timeout", "1s", "--throttle", "100ms"];
    let supervisor = Supervisor::builder()
        .args(limits)
        .args(quick)
        .args(options)
        .wrap(launcher)
        .command(script(OTHER_USER, address::tcp()))
        .spawn();
    let children = || -> Vec<(String, i32, i32)> {
        let lines = supervisor.output().into_iter();
        let found = lines.filter_map(|line| {
            let words: Vec<&str> = line.strip_prefix("child ")?.split(' ').collect();
            Some((words[0].to_owned(), words[1].parse().ok()?, words[2].parse().ok()?))
        });
        found.collect()
    };
    let measured = |worker: i32| supervisor.output().contains(&format!("high {worker}"));
    supervisor.eventually("the memory of both is their workers'", || {
        let children = children();
        children.len() == 2 && children.iter().all(|(_, worker, _)| measured(*worker))
    });
    let (slot, worker, child) = children().remove(0);
    assert_eq!(process::status(child, "Uid").as_deref(), Some("65534\t65534\t65534\t65534"));
    process::signal(worker, Signal::KILL);
    await_gone(child);
    let (left, who) = (format!("worker {slot} left 1 process behind"), format!("(pid {child})"));
    supervisor.eventually("it is logged", || !supervisor.logged(&[&left, &who]).is_empty());
    supervisor.eventually("the replacement has one", || children().len() == 3);
    assert_eq!(supervisor.stop(), 0);
    assert_eq!(supervisor.survivors(), Vec::<i32>::new());
}

#[test]
fn child_of_another_user_is_found_by_ebpf() {
    needs_root!();
    a_child_of_another_user_is_its_workers(&["--monitor", "ebpf"], Vec::new());
}

/// As in a container: root may not look into the processes of other users.
#[test]
fn child_of_another_user_is_found_without_its_environment() {
    needs_root!();
    let launcher = ["setpriv", "--bounding-set", "-sys_ptrace"].map(str::to_owned).to_vec();
    a_child_of_another_user_is_its_workers(&["--monitor", "procfs"], launcher);
}

#[test]
fn child_of_another_user_is_found_by_its_cgroup() {
    let Some(place) = Place::make(true).filter(|_| process::is_root()) else {
        skip!("it takes root and a cgroup");
    };
    a_child_of_another_user_is_its_workers(&[], place.launcher());
    assert!(place.is_empty(), "{:?}", place.workers());
}
