//! Workers that use too much, by each source that measures.

use std::time::Duration;

use master_process_tests::load::{Connections, Load};
use master_process_tests::profile::{launcher, ordinary_user};
use master_process_tests::script::{script, script_with};
use master_process_tests::{Supervisor, address, always, eventually, fixtures, process, scaled};
use rustix::process::Signal;

/// Every source must lead to the same.
const SOURCES: [&str; 2] = ["procfs", "ebpf"];

/// What the workers find besides the script's own: ways to be ready and to use memory and CPU.
const TOOLS: &str = "
import threading
def notify(text):
    address = os.environ['NOTIFY_SOCKET']
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
        to.connect('\\0' + address[1:] if address.startswith('@') else address)
        to.sendall(text.encode())
def memory(mib):
    return b'x' * (mib << 20)
def burn():
    while True:
        pass
def rest():
    while True:
        signal.pause()
";

/// Nothing is limited but what a test is about. Samples come fast, and three are too many: a test has no time for the defaults.
const FAST: [[&str; 2]; 6] = [
    ["--monitor-delay", "0"],
    ["--monitor-interval", "100ms"],
    ["--cpu-failures", "3"],
    ["--memory-failures", "3"],
    ["--max-cpu", "off"],
    ["--max-memory", "off"],
];

/// A supervisor that looks often, unless the options have it otherwise.
fn fast(source: &str, options: &[&str], command: Vec<String>) -> Supervisor {
    let unless_given = FAST.into_iter().filter(|[flag, _]| !options.contains(flag)).flatten();
    let builder = Supervisor::builder().args(["--monitor", source]).args(unless_given);
    builder.args(options).command(command).spawn()
}

/// A program in python that has [`TOOLS`].
fn watched(source: &str, options: &[&str], text: &str) -> Supervisor {
    fast(source, options, script(&format!("{TOOLS}{text}"), address::tcp()))
}

fn await_log(supervisor: &Supervisor, words: &[&str]) -> String {
    supervisor
        .until(&format!("a line with {words:?} is logged"), || supervisor.logged(words).into_iter().next())
}

fn replacements(supervisor: &Supervisor) -> usize {
    supervisor.logged(&["replacing pid"]).len()
}

#[test]
fn a_worker_over_its_cpu_limit_is_replaced_and_its_successor_is_ready_first() {
    for source in SOURCES {
        // A tenth of a CPU is what a burner gets on the busiest of machines.
        let text = "notify('READY=1'); say('up', PID); burn()";
        let supervisor = watched(source, &["--max-cpu", "10"], text);
        let line = await_log(&supervisor, &["exceeded --max-cpu (", "% of a cpu)", "replacing it"]);
        assert!(!line.contains("may not fit"), "{line}");
        let successor = await_log(&supervisor, &[": notified", "replacing pid"]);
        let left = await_log(&supervisor, &["stopped after", "(cpu "]);
        let log: Vec<String> = supervisor.log().iter().map(|line| line.to_lowercase()).collect();
        let at = |wanted: &str| log.iter().position(|line| line == wanted);
        assert!(at(&line) < at(&successor) && at(&successor) < at(&left), "{log:#?}");
        assert_eq!(supervisor.stop(), 0);
    }
}

#[test]
fn pause_between_replacements_doubles_for_a_limit_that_does_not_fit() {
    for source in SOURCES {
        let supervisor =
            watched(source, &["--max-memory", "60MiB"], "x = memory(80); notify('READY=1'); rest()");
        await_log(&supervisor, &["--max-memory may not fit this program", "if it still does"]);
        let before = replacements(&supervisor);
        // The pauses are 0.6, 1.2, 2.4, 4.8, … seconds.
        always(Duration::from_secs(6), "there are few replacements", || {
            replacements(&supervisor) <= before + 5
        });
        supervisor.eventually("there are some", || replacements(&supervisor) > before);
        assert_eq!(supervisor.stop(), 0);
    }
}

#[test]
fn leaking_worker_is_replaced_under_load_without_a_lost_request() {
    for source in SOURCES {
        let text = "
kept = []
def leak():
    while True:
        kept.append(memory(4))
        time.sleep(0.05)
listener = bound(HOST, PORT)
listener.listen(128)
threading.Thread(target=leak, daemon=True).start()
serve(listener)
";
        let address = address::tcp();
        let command = script(&format!("{TOOLS}{text}"), address);
        let supervisor = fast(source, &["-w", "2", "--max-memory", "100MiB"], command);
        supervisor.eventually("both listen", || supervisor.logged(&[": listening"]).len() >= 2);
        let load = Load::start(address, 4, Connections::Fresh);
        supervisor.eventually("both leaks were replaced", || replacements(&supervisor) >= 2);
        eventually(Duration::from_secs(30), "the new workers answer", || load.tally().pids().len() >= 4);
        let tally = load.stop();
        assert_eq!(tally.lost(), 0, "{source}: {tally:?}");
        assert_eq!(supervisor.stop(), 0);
    }
}

#[test]
fn worker_that_shrinks_again_is_not_replaced() {
    for source in SOURCES {
        let text = "
notify('READY=1')
while True:
    x = memory(80)
    say('grown')
    time.sleep(0.5)
    del x
    say('shrunk')
    time.sleep(0.5)
";
        // Fifty samples are ten times as many as one bout has.
        let supervisor = watched(source, &["--max-memory", "60MiB", "--memory-failures", "50"], text);
        let worker = supervisor.await_workers(1);
        supervisor.eventually("it has shrunk six times", || {
            assert_eq!(supervisor.workers(), worker, "the worker stays");
            supervisor.output().iter().filter(|line| *line == "shrunk").count() >= 6
        });
        assert_eq!(supervisor.logged(&["--max-memory"]), Vec::<String>::new());
        assert_eq!(supervisor.stop(), 0);
    }
}

#[test]
fn a_replacement_that_never_becomes_ready_leaves_the_old_worker_serving_and_measured() {
    for source in SOURCES {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let marker = folder.path().join("started").display().to_string();
        let text = format!(
            "
first = not os.path.exists('{marker}')
open('{marker}', 'w').close()
if not first:
    rest()
x = memory(80)
notify('READY=1')
say('serving', PID)
rest()
"
        );
        let soon = format!("{}ms", scaled(Duration::from_secs(2)).as_millis());
        let options = ["--max-memory", "60MiB", "--ready", "notify", "--ready-timeout", &soon];
        let supervisor = watched(source, &[&options[..], &["--throttle", "100ms"]].concat(), &text);
        let says = supervisor.until("the first worker serves", || {
            supervisor.output().iter().find_map(|line| line.strip_prefix("serving ").map(str::to_owned))
        });
        let old: i32 = says.parse().expect("a pid");
        supervisor.eventually("a second attempt came to nothing too", || {
            supervisor.logged(&["was not ready within"]).len() >= 2
        });
        assert!(process::alive(old), "{source}: the old one serves on");
        assert_eq!(supervisor.logged(&["stopped after", &format!("pid {old}")]), Vec::<String>::new());
        assert_eq!(supervisor.stop(), 0);
    }
}

#[test]
fn a_descendants_memory_counts_with_account_tree_and_not_with_account_worker() {
    for source in SOURCES {
        let text = "
if os.fork() == 0:
    if os.fork() == 0:
        x = memory(80)
        say('grown')
    rest()
notify('READY=1')
rest()
";
        let supervisor = watched(source, &["--max-memory", "70MiB"], text);
        await_log(&supervisor, &["exceeded --max-memory ("]);
        assert_eq!(supervisor.stop(), 0);

        let supervisor = watched(source, &["--max-memory", "70MiB", "--account", "worker"], text);
        supervisor.eventually("it has grown", || supervisor.output().contains(&"grown".to_owned()));
        always(Duration::from_secs(2), "no worker exceeds a limit", || {
            supervisor.logged(&["exceeded --max-memory ("]).is_empty()
        });
        assert_eq!(supervisor.stop(), 0);
    }
}

#[test]
fn usr2_pauses_and_resumes_the_limits() {
    for source in SOURCES {
        let supervisor = watched(
            source,
            &["--max-memory", "60MiB", "--monitor-delay", "1s"],
            "signal.signal(signal.SIGUSR2, lambda *_: None); x = memory(80); notify('READY=1'); rest()",
        );
        await_log(&supervisor, &[": notified"]);
        supervisor.signal(Signal::USR2);
        await_log(&supervisor, &["resource limits of all workers paused"]);
        always(Duration::from_secs(3), "the limits are paused", || {
            supervisor.logged(&["exceeded --max-memory ("]).is_empty()
        });
        supervisor.signal(Signal::USR2);
        await_log(&supervisor, &["resource limits of all workers resumed"]);
        await_log(&supervisor, &["exceeded --max-memory ("]);
        assert_eq!(supervisor.stop(), 0);
    }
}

#[test]
fn usr2_is_passed_to_workers_with_a_handler_only() {
    let text = "
if INDEX == '0':
    signal.signal(signal.SIGUSR2, lambda *_: say('usr2', INDEX))
if INDEX == '1':
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
notify('READY=1')
rest()
";
    let supervisor = watched("procfs", &["-w", "3"], text);
    let workers = supervisor.await_workers(3);
    supervisor.eventually("all are ready", || supervisor.logged(&[": notified"]).len() == 3);
    for count in 1..=2 {
        supervisor.signal(Signal::USR2);
        supervisor.eventually("the handler has run", || {
            supervisor.output().iter().filter(|line| *line == "usr2 0").count() == count
        });
    }
    let skipped = await_log(&supervisor, &["sigusr2 not passed on to worker 2"]);
    assert!(!skipped.contains("worker 0") && !skipped.contains("worker 1"), "{skipped}");
    assert_eq!(supervisor.workers(), workers);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn a_worker_pauses_and_resumes_its_own_limits() {
    for source in SOURCES {
        let text = "
notify('X_MONITOR=pause\\nREADY=1')
x = memory(80)
say('grown')
signal.signal(signal.SIGUSR2, lambda *_: None)
while not os.path.exists(sys.argv[2]):
    time.sleep(0.02)
notify('X_MONITOR=resume')
rest()
";
        let folder = tempfile::tempdir().expect("a temporary folder");
        let marker = folder.path().join("resume");
        let command = script_with(&format!("{TOOLS}{text}"), address::tcp(), [&marker]);
        let supervisor = fast(source, &["--max-memory", "60MiB"], command);
        await_log(&supervisor, &["paused its resource limits"]);
        supervisor.eventually("it has grown", || supervisor.output().contains(&"grown".to_owned()));
        always(Duration::from_secs(2), "its limits are paused", || {
            supervisor.logged(&["exceeded --max-memory ("]).is_empty()
        });
        std::fs::write(&marker, "").expect("the folder is ours");
        await_log(&supervisor, &["resumed its resource limits"]);
        await_log(&supervisor, &["exceeded --max-memory ("]);
        assert_eq!(supervisor.stop(), 0);
    }
}

#[test]
fn warning_signal_is_sent_once_each_time_memory_passes_80_percent() {
    for source in SOURCES {
        let text = "
signal.signal(signal.SIGUSR1, lambda *_: say('warned'))
notify('READY=1')
def hold(seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.05)
x = memory(80)
hold(3)
del x
hold(3)
x = memory(80)
rest()
";
        let options = ["--max-memory", "110MiB", "--memory-high-signal", "USR1"];
        let supervisor = watched(source, &options, text);
        let warned = || supervisor.output().iter().filter(|line| *line == "warned").count();
        supervisor.eventually("it is warned", || warned() == 1);
        always(Duration::from_secs(1), "it is warned once", || warned() == 1);
        supervisor.eventually("it is warned again when it grows again", || warned() == 2);
        assert_eq!(supervisor.logged(&["exceeded --max-memory ("]), Vec::<String>::new());
        assert_eq!(supervisor.stop(), 0);
    }
}

#[test]
fn warning_signal_is_not_sent_without_a_handler() {
    let options = ["--max-memory", "110MiB", "--memory-high-signal", "USR1"];
    let supervisor = watched("procfs", &options, "notify('READY=1'); x = memory(80); rest()");
    let worker = supervisor.await_workers(1);
    await_log(&supervisor, &["exceeded 80 % of --max-memory", "sigusr1 not sent"]);
    assert_eq!(supervisor.workers(), worker);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn monitor_off_measures_no_worker() {
    let supervisor = watched("off", &["--max-memory", "60MiB"], "x = memory(80); notify('READY=1'); rest()");
    await_log(&supervisor, &[": notified"]);
    always(Duration::from_secs(2), "no worker exceeds a limit", || {
        supervisor.logged(&["exceeded --max-memory ("]).is_empty()
    });
    assert_eq!(supervisor.logged(&["monitor: "]), Vec::<String>::new());
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn more_descendants_than_descriptors_are_measured_and_block_no_start() {
    let text = "
for i in range(100):
    if os.fork() == 0:
        x = memory(2)
        rest()
notify('READY=1')
rest()
";
    let supervisor = Supervisor::builder()
        .wrap(["prlimit", "--nofile=80:80"])
        .args([
            "--monitor",
            "procfs",
            "--monitor-interval",
            "100ms",
            "--throttle",
            "0",
            "--monitor-delay",
            "0",
        ])
        .args(["--memory-failures", "3", "--max-memory", "200MiB"])
        .command(script(&format!("{TOOLS}{text}"), address::tcp()))
        .spawn();
    await_log(&supervisor, &["exceeded --max-memory ("]);
    supervisor.eventually("it is replaced", || replacements(&supervisor) >= 1);
    assert_eq!(supervisor.logged(&["failed to start"]), Vec::<String>::new());
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn usr2_warning_lists_a_few_of_many_workers() {
    let supervisor = fast("off", &["-w", "10", "--ready", "none"], fixtures::idle());
    supervisor.await_workers(10);
    supervisor.signal(Signal::USR2);
    let line = await_log(&supervisor, &["sigusr2 not passed on to worker 0 (pid "]);
    assert!(line.contains("worker 7 (pid ") && !line.contains("worker 8"), "{line}");
    assert!(line.contains(" and 2 more: without a handler"), "{line}");
    assert_eq!(supervisor.workers().len(), 10);
    assert_eq!(supervisor.stop(), 0);
}

/// What is resident of a process and its children, in MiB: proc_pid_statm(5).
fn resident_mib(root: i32) -> u64 {
    let all = process::children(root).into_iter().map(|child| child.pid).chain([root]);
    let pages = |pid: i32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
        text.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or_default()
    };
    all.map(pages).sum::<u64>() * 4096 / (1 << 20)
}

#[test]
fn shared_memory_within_a_worker_counts_once() {
    for source in SOURCES {
        let text = "
x = memory(40)
for i in range(8):
    if os.fork() == 0:
        while not (i == 0 and os.path.exists(sys.argv[2])):
            time.sleep(0.05)
        y = memory(300)
        rest()
notify('READY=1')
rest()
";
        let folder = tempfile::tempdir().expect("a temporary folder");
        let marker = folder.path().join("leak");
        let command = script_with(&format!("{TOOLS}{text}"), address::tcp(), [&marker]);
        let supervisor = fast(source, &["--max-memory", "200MiB"], command);
        await_log(&supervisor, &[": notified"]);
        let worker = supervisor.workers();
        let pid = *worker.first().expect("one");
        supervisor.eventually("far more than the limit is resident", || resident_mib(pid) > 300);
        always(Duration::from_secs(3), "the worker stays", || supervisor.workers() == worker);
        assert_eq!(supervisor.logged(&["--max-memory"]), Vec::<String>::new());
        std::fs::write(&marker, "").expect("the folder is ours");
        await_log(&supervisor, &["exceeded --max-memory (pss ", " mib > ", "replacing it"]);
        assert_eq!(supervisor.stop(), 0);
    }
}

#[test]
fn memory_shared_between_workers_is_divided() {
    for source in SOURCES {
        // A worker that is ready before all have mapped it would have it alone.
        let text = "
import mmap
with open(sys.argv[2], 'r+b') as file:
    shared = mmap.mmap(file.fileno(), 0)
kept = sum(shared[::4096])
open(sys.argv[2] + INDEX, 'w').close()
while not all(os.path.exists(sys.argv[2] + str(index)) for index in range(4)):
    time.sleep(0.02)
notify('READY=1')
rest()
";
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("shared");
        std::fs::write(&file, vec![1u8; 120 << 20]).expect("the folder is ours");
        let command = script_with(&format!("{TOOLS}{text}"), address::tcp(), [&file]);
        let options = ["-w", "4", "--max-memory", "90MiB", "--account", "worker"];
        let supervisor = fast(source, &options, command);
        supervisor.eventually("all are ready", || supervisor.logged(&[": notified"]).len() == 4);
        let workers = supervisor.workers();
        assert!(workers.iter().all(|pid| resident_mib(*pid) > 120));
        always(Duration::from_secs(3), "the workers stay", || supervisor.workers() == workers);
        assert_eq!(supervisor.logged(&["--max-memory"]), Vec::<String>::new());
        assert_eq!(supervisor.stop(), 0);
    }
}

#[test]
fn resident_memory_decides_where_pss_cannot_be_read() {
    // No process without privileges may inspect one that cannot be dumped.
    let text = "
import ctypes
PR_SET_DUMPABLE = 4
assert ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0
x = memory(80)
notify('READY=1')
rest()
";
    let user = process::is_root().then(ordinary_user);
    let unless_given = FAST.into_iter().filter(|[flag, _]| *flag != "--max-memory").flatten();
    let supervisor = Supervisor::builder()
        .wrap(launcher(user, &[]))
        .args(["--monitor", "procfs", "--max-memory", "60MiB"])
        .args(unless_given)
        .command(script(&format!("{TOOLS}{text}"), address::tcp()))
        .spawn();
    let line = await_log(&supervisor, &["exceeded --max-memory (", "replacing it"]);
    assert!(line.contains("pss unavailable: permission denied) in 3 samples"), "{line}");
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn replacements_for_limits_are_bounded_by_reload_batch() {
    for source in SOURCES {
        // The first worker of each slot is too large.
        let text = "
marker = sys.argv[2] + INDEX
first = not os.path.exists(marker)
open(marker, 'w').close()
if first:
    x = memory(80)
    while not all(os.path.exists(sys.argv[2] + str(index)) for index in range(3)):
        time.sleep(0.02)
    notify('READY=1')
    rest()
say('begins', INDEX)
time.sleep(0.5)
say('ready', INDEX)
notify('READY=1')
rest()
";
        let folder = tempfile::tempdir().expect("a temporary folder");
        let command =
            script_with(&format!("{TOOLS}{text}"), address::tcp(), [&folder.path().join("started")]);
        let options = ["-w", "3", "--max-memory", "60MiB", "--reload-batch", "1", "--throttle", "300ms"];
        let supervisor = fast(source, &options, command);
        supervisor.eventually("all are replaced", || replacements(&supervisor) == 3);
        let output = supervisor.output();
        let slots: Vec<&str> = output.iter().filter_map(|line| line.strip_prefix("begins ")).collect();
        let one_by_one: Vec<String> =
            slots.iter().flat_map(|slot| [format!("begins {slot}"), format!("ready {slot}")]).collect();
        assert_eq!(slots.len(), 3, "{source}");
        assert_eq!(output, one_by_one, "{source}");
        assert!(!supervisor.logged(&["replacement queued"]).is_empty());
        assert_eq!(supervisor.stop(), 0);
    }
}
