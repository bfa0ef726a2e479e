//! What the supervisor uses, and what it does when there is none left.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use master_process_tests::{
    Supervisor, TIMEOUT, address, always, eventually, fixtures, load, needs_root, process, skip,
};
use rustix::process::Signal;

/// Resident memory in KiB.
fn resident(pid: i32) -> u64 {
    let text = process::status(pid, "VmRSS").expect("the supervisor runs");
    text.trim_end_matches(" kB").trim().parse().expect("a number of kB")
}

/// Kills all `workers` at once, and waits until as many others serve.
fn crash_all(supervisor: &Supervisor, workers: usize) {
    let old = supervisor.await_workers(workers);
    for pid in &old {
        process::signal(*pid, Signal::KILL);
    }
    supervisor.eventually("all are replaced", || {
        let now = supervisor.workers();
        now.len() == workers && now.is_disjoint(&old)
    });
}

/// 200 deaths, four at a time, leave descriptors and memory where they were.
fn crashes_leave_nothing(supervisor: &Supervisor, await_rest: impl Fn()) {
    const WORKERS: usize = 4;
    // The first rounds fill what is kept: buffers, tables, the allocator's pools, the recent events. They also map the
    // code that replaces workers again, which was unmapped after the start.
    for _ in 0..30 {
        crash_all(supervisor, WORKERS);
    }
    await_rest();
    let pid = supervisor.pid();
    let (descriptors, memory) = (process::descriptors(pid), resident(pid));
    for _ in 0..200 / WORKERS {
        crash_all(supervisor, WORKERS);
    }
    await_rest();
    // What belongs to a start may be open for a moment after it.
    let before = descriptors.len();
    eventually(TIMEOUT, &format!("as many descriptors as before: {descriptors:?}"), || {
        process::descriptors(pid).len() <= before
    });
    let grown = resident(pid).saturating_sub(memory);
    assert!(grown <= 256, "{grown} KiB more than the {memory} KiB before");
    assert!(process::children(pid).iter().all(|child| child.state != 'Z'), "no zombie is left");
    assert_eq!(supervisor.stop(), 0);
}

const CONSTANT_SHORT_THROTTLE: [&str; 6] = ["-w", "4", "--throttle", "1ms", "--throttle-max", "1ms"];

#[test]
fn crashes_leak_no_descriptor_and_no_memory() {
    let builder = Supervisor::builder().args(CONSTANT_SHORT_THROTTLE).args(["--ready", "none"]);
    let supervisor = builder.command(fixtures::idle()).spawn();
    crashes_leave_nothing(&supervisor, || drop(supervisor.await_workers(4)));
}

#[test]
fn crashes_of_listening_workers_leak_no_descriptor_and_no_memory() {
    let address = address::tcp();
    let listen = format!("listen={address}");
    let supervisor = Supervisor::start(&CONSTANT_SHORT_THROTTLE, fixtures::worker(&[&listen]));
    let await_rest = || {
        // All listen: what each start holds open until then is closed.
        supervisor.eventually("all are ready", || {
            let ready = supervisor.events_named("ready");
            supervisor.await_workers(4).iter().all(|pid| ready.iter().any(|event| event.pid == *pid))
        });
        assert!(load::who(address).is_some());
    };
    crashes_leave_nothing(&supervisor, await_rest);
}

/// Threads that are started when they are needed first, each with one descriptor: they look for closed listeners, for the
/// processes of workers, and for the holder of an address.
const HELPERS: usize = 3;

#[test]
fn reloads_leak_no_descriptor_and_no_memory() {
    let (supervisor, _, _) = fixtures::listening_workers(4, &[], &[]);
    let pid = supervisor.pid();
    supervisor.await_measuring();
    for _ in 0..3 {
        supervisor.reload(4);
    }
    let (descriptors, memory) = (process::descriptors(pid), resident(pid));
    for _ in 0..25 {
        supervisor.reload(4);
    }
    supervisor.eventually("as many descriptors as before", || {
        let now = process::descriptors(pid);
        if now.len() > descriptors.len() + HELPERS {
            println!("before {descriptors:?}\nnow {now:?}");
        }
        now.len() <= descriptors.len() + HELPERS
    });
    let grown = resident(pid).saturating_sub(memory);
    assert!(grown <= 256, "{grown} KiB more than the {memory} KiB before");
}

/// Changes the soft limit of the running supervisor, as whoever it runs as: raising a hard one takes a capability that
/// containers do not give.
fn limit(supervisor: &Supervisor, user: &[String], resource: &str, value: u32) {
    let pid = supervisor.pid().to_string();
    let limit = format!("--{resource}={value}:");
    let words: Vec<&str> =
        user.iter().map(String::as_str).chain(["prlimit", "--pid", &pid, &limit]).collect();
    let done = std::process::Command::new(words[0]).args(&words[1..]).status().expect("the tool is there");
    assert!(done.success(), "{words:?}");
}

#[test]
fn start_is_retried_at_the_process_limit() {
    needs_root!();
    // A user that no other test uses: the limit counts all processes of the user, and is not root's.
    let user = 50_000 + std::process::id() % 10_000;
    let user = [
        "setpriv".to_owned(),
        format!("--reuid={user}"),
        format!("--regid={user}"),
        "--clear-groups".to_owned(),
    ];
    let wrapper = ["prlimit", "--nproc=2:100"].map(str::to_owned);
    let builder = Supervisor::builder().wrap(wrapper).wrap(&user).args(["-w", "3", "--ready", "none"]);
    let supervisor = builder.command(fixtures::idle()).spawn();
    supervisor.await_workers(1);
    always(Duration::from_secs(2), "it lives, with the one worker that there is room for", || {
        supervisor.exited().is_none() && supervisor.workers().len() == 1
    });
    supervisor.eventually("the failure is logged", || {
        supervisor.log().iter().any(|line| line.contains("temporarily unavailable"))
    });
    assert!(supervisor.log().len() < 200, "it does not fill the disk with its complaint");
    limit(&supervisor, &user, "nproc", 100);
    supervisor.await_workers(3);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn some_workers_serve_at_the_descriptor_limit() {
    const WORKERS: usize = 60;
    // Room for the supervisor itself and some workers, each of which holds at least one.
    let builder = Supervisor::builder().wrap(["prlimit", "--nofile=40:40"]).args(["--ready", "none"]);
    let supervisor = builder.args(["-w", &WORKERS.to_string()]).command(fixtures::idle()).spawn();
    supervisor.eventually("some workers run", || supervisor.workers().len() >= 3);
    supervisor
        .eventually("the failure is logged", || !supervisor.logged(&["too many open files"]).is_empty());
    always(Duration::from_secs(2), "it lives", || {
        let workers = supervisor.workers().len();
        supervisor.exited().is_none() && (3..WORKERS).contains(&workers)
    });
    assert!(supervisor.log().len() < 1000, "it does not fill the disk with its complaint");
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn crashed_worker_is_replaced_after_the_descriptor_limit() {
    let options = ["-w", "2", "--throttle", "20ms", "--throttle-max", "20ms", "--ready", "none"];
    let supervisor = Supervisor::start(&options, fixtures::idle());
    let victim = *supervisor.await_workers(2).first().expect("two");
    // From now on it can open nothing, and must still notice the death and live on.
    limit(&supervisor, &[], "nofile", 3);
    process::signal(victim, Signal::KILL);
    supervisor.eventually("the death is noticed", || process::stat(victim).is_none());
    always(Duration::from_secs(1), "it lives", || {
        supervisor.exited().is_none() && supervisor.workers().len() == 1
    });
    limit(&supervisor, &[], "nofile", 4096);
    supervisor.await_workers(2);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn listening_workers_recover_from_the_descriptor_limit() {
    let address = address::tcp();
    let options = ["--throttle", "20ms", "--throttle-max", "20ms"];
    let supervisor = Supervisor::start(&options, fixtures::listening(address, &[]));
    supervisor.await_events(1, "ready");
    supervisor.await_measuring();
    let pid = supervisor.pid();
    let before = process::descriptors(pid);
    limit(&supervisor, &[], "nofile", 3);
    supervisor.signal(Signal::HUP);
    always(Duration::from_secs(1), "it lives, and so does the old worker", || {
        supervisor.exited().is_none() && supervisor.workers().len() == 1
    });
    assert!(load::who(address).is_some(), "the old one serves");
    limit(&supervisor, &[], "nofile", 4096);
    supervisor.eventually("the new one serves in the end", || {
        supervisor.events_named("ready").iter().any(|event| event.reload == 1)
    });
    supervisor.await_workers(1);
    assert!(load::who(address).is_some());
    // One more is kept: the queue of the worker that was started beside the old one.
    eventually(TIMEOUT, &format!("as many descriptors as before: {before:?}"), || {
        process::descriptors(pid).len() <= before.len() + 1
    });
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn malformed_notifications_do_no_harm_and_leak_nothing() {
    // Descriptors that come along with a message belong to whoever receives it, and it must close them.
    let text = "
import os, socket
made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
made.connect(os.environ['NOTIFY_SOCKET'] if os.environ['NOTIFY_SOCKET'][0] != '@' else '\\0' + os.environ['NOTIFY_SOCKET'][1:])
null = os.open('/dev/null', os.O_RDONLY)
for round in range(100):
    socket.send_fds(made, [b'FDSTORE=1'], [null] * 40)
    for nonsense in (b'', b'\\0' * 10, b'READY', b'READY=1' * 500, b'=', b'\\xff' * 60000, b'READY=0', b'STOPPING=1\\nMAINPID=1'):
        made.send(nonsense)
made.send(b'READY=1')
os.write(1, b'flooded\\n')
import signal; signal.pause()";
    let command = [fixtures::python(), "-c".into(), text.replace("\\\\", "\\")];
    let supervisor = Supervisor::start(&["--ready", "notify"], command);
    let worker = supervisor.await_workers(1);
    let pid = supervisor.pid();
    supervisor
        .eventually("the worker has sent it all", || supervisor.output().contains(&"flooded".to_owned()));
    supervisor.await_rest();
    // As many as beside a worker that has sent nothing but its readiness.
    let quiet = Supervisor::start(&["--ready", "notify"], fixtures::worker(&["notify"]));
    quiet.await_events(1, "ready");
    supervisor.await_measuring();
    quiet.await_measuring();
    let (flooded, expected) = (process::descriptors(pid), process::descriptors(quiet.pid()));
    assert_eq!(flooded.len(), expected.len(), "{flooded:?}");
    assert_eq!(supervisor.workers(), worker);
    // What came last was understood.
    supervisor.reload(1);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn three_hundred_workers_start_are_reloaded_and_stop() {
    let supervisor = Supervisor::start(&["-w", "300", "--ready", "none"], fixtures::idle());
    supervisor.await_workers(300);
    supervisor.reload(300);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn unread_log_does_not_stop_the_supervisor() {
    // A full disk, and a pipe whose reader is gone.
    let gone = "import os, sys; r, w = os.pipe(); os.dup2(w, 2); os.close(r); os.close(w); os.execv(sys.argv[1], sys.argv[1:])";
    let python = fixtures::python();
    for wrapper in [["sh", "-c", "exec \"$@\" 2>/dev/full", "sh"].as_slice(), &[&python, "-c", gone]] {
        let options = ["-v", "-w", "2", "--throttle", "20ms", "--throttle-max", "20ms", "--ready", "none"];
        let supervisor = Supervisor::builder().wrap(wrapper).args(options).command(fixtures::idle()).spawn();
        crash_all(&supervisor, 2);
        supervisor.reload(2);
        assert_eq!(supervisor.stop(), 0);
    }
}

/// What shows that a thread has run: its context switches, and its time on a CPU in nanoseconds.
fn activity(pid: i32) -> BTreeMap<String, String> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("the supervisor runs");
    threads
        .flatten()
        .map(|thread| {
            let read = |file: &str| fs::read_to_string(thread.path().join(file)).unwrap_or_default();
            let status = read("status");
            let switches =
                status.lines().filter(|line| line.contains("ctxt_switches")).collect::<Vec<_>>().join(" ");
            let on_cpu = read("schedstat").split(' ').next().unwrap_or_default().to_owned();
            (thread.file_name().to_string_lossy().into_owned(), format!("{switches} on CPU {on_cpu} ns"))
        })
        .collect()
}

/// What it has done when starting up is over: three seconds have passed without a step. Each
/// worker is looked at once, two seconds after it began to serve.
fn activity_at_rest(supervisor: &Supervisor) -> BTreeMap<String, String> {
    let pid = supervisor.pid();
    let mut last = activity(pid);
    let mut since = Instant::now();
    supervisor.eventually("it has come to rest", || {
        let now = activity(pid);
        if now != last {
            last = now;
            since = Instant::now();
        }
        since.elapsed() > Duration::from_secs(3)
    });
    last
}

#[test]
fn idle_supervisor_of_50_workers_does_not_run() {
    let supervisor =
        Supervisor::start(&["-w", "50", "--ready", "none", "--monitor", "off"], fixtures::idle());
    supervisor.await_workers(50);
    let pid = supervisor.pid();
    let last = activity_at_rest(&supervisor);
    assert!(
        last.values().all(|text| text.contains("voluntary_ctxt_switches") && !text.ends_with("CPU  ns")),
        "{last:?}"
    );
    // A thread that has not run for a nanosecond has made no system call.
    always(Duration::from_secs(5), "no context switch and no CPU time while idle", || activity(pid) == last);
    assert_eq!(supervisor.workers().len(), 50);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn idle_supervisor_that_measures_with_procfs_wakes_once_a_sample() {
    let options = ["-w", "50", "--ready", "none", "--monitor", "procfs", "--monitor-interval", "1s"];
    let supervisor = Supervisor::start(&options, fixtures::idle());
    supervisor.await_workers(50);
    let pid = supervisor.pid();
    let wakes = || {
        let text = process::status(pid, "voluntary_ctxt_switches").expect("it runs");
        text.trim().parse::<u64>().expect("a number")
    };
    // In each ten seconds; the last checks of the start may fall into the first.
    let mut last = (Instant::now(), wakes());
    supervisor.eventually("ten seconds pass with a wake for each sample and no more", || {
        if last.0.elapsed() < Duration::from_secs(10) {
            return false;
        }
        let now = wakes();
        let woken = now - std::mem::replace(&mut last, (Instant::now(), now)).1;
        assert!(woken >= 5, "it measures: {woken}");
        woken <= 12
    });
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn idle_supervisor_that_measures_with_ebpf_does_not_run() {
    if !process::is_root() {
        skip!("eBPF takes root");
    }
    let limits = ["--max-memory", "1GiB", "--max-cpu", "50"];
    let options = ["-w", "50", "--ready", "none", "--monitor", "ebpf", "--monitor-interval", "100ms"];
    let supervisor = Supervisor::builder().args(limits).args(options).command(fixtures::idle()).spawn();
    supervisor.await_workers(50);
    // Fifty samples of fifty workers are taken meanwhile.
    activity_at_rest(&supervisor);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn idle_supervisor_of_a_shared_queue_does_not_run() {
    let address = address::tcp();
    let supervisor = Supervisor::start(
        &["-w", "4", "--share", "shared", "--monitor", "off"],
        fixtures::listening(address, &[]),
    );
    supervisor.await_events(4, "ready");
    let pid = supervisor.pid();
    let last = activity_at_rest(&supervisor);
    // Requests are between the workers and the kernel.
    for _ in 0..200 {
        assert!(load::who(address).is_some());
    }
    assert_eq!(activity(pid), last, "it took part in requests");
}
