//! Default limits: they end a loop that is stuck and a leak, and no program that they do not fit.

use std::fs::{self, File};
use std::time::{Duration, Instant};

use master_process_tests::script::script;
use master_process_tests::{Supervisor, address, always, eventually, fixtures, process, skip};

/// Every source must lead to the same.
const SOURCES: [&str; 2] = ["procfs", "ebpf"];

/// Samples come fast, and three are too many. Half a second is fifty ticks of CPU time: what is used in it is precise to two
/// percent.
const FAST: [&str; 8] =
    ["--monitor-delay", "0", "--monitor-interval", "500ms", "--cpu-failures", "3", "--memory-failures", "3"];

/// More than that is used only where this much is free: a test must not be why another one fails.
const FREE_MIB: u64 = 6000;

/// A supervisor whose limits are the defaults, unless the options have it otherwise, in a session of its own.
fn defaults(source: &str, options: &[&str], command: Vec<String>) -> Supervisor {
    let builder = Supervisor::builder().wrap(["setsid"]).args(["--monitor", source]).args(FAST);
    builder.args(options).command(command).spawn()
}

/// The command, before all others on a busy machine where we may say so: by its priority, and that of its session, which
/// the scheduler may go by first.
fn ahead_of_others(command: Vec<String>) -> Vec<String> {
    let line = "{ echo -20 >/proc/self/autogroup; } 2>/dev/null; exec nice -n -20 \"$0\" \"$@\" 2>&1";
    fixtures::shell(line).into_iter().chain(command).collect()
}

/// Tests that want whole CPUs run one at a time, each in a process of its own.
fn alone() -> File {
    let folder = fixtures::target_folder();
    let lock = File::create(folder.join("busy.lock")).expect("the lock file can be made");
    lock.lock().expect("the lock can be taken");
    lock
}

/// CPU time of these processes together, in ticks of 10 ms.
fn ticks(pids: &[i32]) -> u64 {
    pids.iter().map(|pid| ticks_of(*pid)).sum()
}

fn ticks_of(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name = text.rsplit(')').next().unwrap_or_default();
    let fields = after_name.split_whitespace().skip(11).take(2);
    fields.filter_map(|field| field.parse::<u64>().ok()).sum()
}

/// Waits until these processes together have used more than this part of a CPU for so long without a pause.
fn until_busy(supervisor: &Supervisor, pids: &[i32], percent: u64, time: Duration) {
    let mut since = (Instant::now(), ticks(pids));
    let mut checked = Instant::now();
    supervisor.eventually("it was busy for long enough", || {
        // The kernel counts in hundredths of a second: a shorter time is imprecise.
        if checked.elapsed() < Duration::from_millis(500) {
            return false;
        }
        checked = Instant::now();
        assert!(pids.iter().all(|pid| process::alive(*pid)), "it is replaced");
        let (before, had) = since;
        let (elapsed, now) = (before.elapsed(), ticks(pids));
        let used = u128::from(now.saturating_sub(had)) * 1000;
        if used < elapsed.as_millis() * u128::from(percent) {
            since = (Instant::now(), now);
        }
        elapsed >= time && since.0 == before
    });
}

fn free_mib() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or_default() / 1024
}

#[test]
fn stuck_node_loop_is_replaced_by_the_default_cpu_limit() {
    let _alone = alone();
    for source in SOURCES {
        let command = vec!["node".into(), "-e".into(), "console.log('stuck'); while (true);".into()];
        let supervisor = defaults(source, &["--ready", "none"], ahead_of_others(command));
        let line = supervisor.until("it is replaced", || {
            supervisor.logged(&["exceeded --max-cpu (", "% of a cpu)", "replacing it"]).pop()
        });
        assert!(!line.contains("may not fit"), "{line}");
        supervisor.eventually("another one serves", || !supervisor.logged(&["replacing pid"]).is_empty());
        assert_eq!(supervisor.stop(), 0);
    }
}

#[test]
fn multi_threaded_go_program_is_replaced_by_a_given_cpu_limit_only() {
    let Some(command) = fixtures::go("busy") else { skip!("go is not installed") };
    let _alone = alone();
    for source in SOURCES {
        let supervisor = defaults(source, &["--ready", "none"], ahead_of_others(command.clone()));
        let worker = supervisor.await_workers(1);
        supervisor.eventually("it is busy", || supervisor.output().contains(&"busy".to_owned()));
        // Three rows of samples over the limit.
        let pid = *worker.first().expect("one");
        until_busy(&supervisor, &[pid], 110, Duration::from_secs(5));
        assert_eq!(supervisor.workers(), worker, "{source}");
        assert_eq!(supervisor.logged(&["--max-cpu"]), Vec::<String>::new());
        assert_eq!(supervisor.stop(), 0);

        let options = ["--ready", "none", "--max-cpu", "95"];
        let supervisor = defaults(source, &options, ahead_of_others(command.clone()));
        supervisor.eventually("what is given is meant", || {
            !supervisor.logged(&["exceeded --max-cpu (", "% of a cpu)"]).is_empty()
        });
        assert_eq!(supervisor.stop(), 0);
    }
}

#[test]
fn loops_in_two_processes_are_not_a_single_stuck_loop() {
    let _alone = alone();
    for source in SOURCES {
        let text = "os.fork(); say('busy')\nwhile True: pass";
        let command = ahead_of_others(script(text, address::tcp()));
        let supervisor = defaults(source, &["--ready", "none"], command);
        let both = supervisor.until("both are busy", || {
            let parent = *supervisor.workers().first()?;
            let child = process::children(parent).first()?.pid;
            let busy = supervisor.output().iter().filter(|line| *line == "busy").count();
            (busy == 2).then_some([parent, child])
        });
        until_busy(&supervisor, &both, 120, Duration::from_secs(5));
        assert!(both.iter().all(|pid| process::alive(*pid)), "{source}");
        assert_eq!(supervisor.logged(&["--max-cpu"]), Vec::<String>::new());
        assert_eq!(supervisor.stop(), 0);
    }
}

/// A worker with memory above the default limit, from the first or once the test makes it grow.
fn large(source: &str, options: &[&str], text: &str) -> Supervisor {
    let text = format!(
        "
def large():
    x = b'x' * (1300 << 20)
    say('large')
    return x
def ready():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
        to.connect(os.environ['NOTIFY_SOCKET'])
        to.sendall(b'READY=1')
{text}
while True:
    signal.pause()
"
    );
    let options = [options, &["--ready", "notify"]].concat();
    defaults(source, &options, script(&text, address::tcp()))
}

#[test]
fn default_memory_limit_is_disabled_for_a_program_above_it_at_its_first_sample() {
    for source in SOURCES {
        if free_mib() < FREE_MIB {
            skip!("there is not enough memory free");
        }
        let supervisor = large(source, &[], "x = large(); ready()");
        let words = [
            "exceeded the default of --max-memory at its first sample (",
            " > 1.2 gib): the default is disabled",
        ];
        supervisor.eventually("the default is found not to fit", || !supervisor.logged(&words).is_empty());
        let worker = supervisor.workers();
        always(Duration::from_secs(4), "the worker stays", || supervisor.workers() == worker);
        assert_eq!(supervisor.logged(&["--max-memory"]).len(), 1);
        assert_eq!(supervisor.stop(), 0);
    }
}

#[test]
fn program_that_grows_over_the_default_memory_limit_is_replaced() {
    for source in SOURCES {
        if free_mib() < FREE_MIB {
            skip!("there is not enough memory free");
        }
        // Its successor does not.
        let folder = tempfile::tempdir().expect("a temporary folder");
        let marker = folder.path().join("grown").display().to_string();
        let text = format!(
            "
ready()
if not os.path.exists('{marker}'):
    open('{marker}', 'w').close()
    time.sleep(3)
    x = large()
"
        );
        // Where memory is short, taking so much of it keeps a CPU busy for seconds.
        let supervisor = large(source, &["--max-cpu", "off"], &text);
        supervisor.eventually("it is replaced", || {
            !supervisor.logged(&["exceeded --max-memory (pss ", " gib > ", "replacing it"]).is_empty()
        });
        eventually(Duration::from_secs(30), "another one serves", || {
            !supervisor.logged(&["replacing pid"]).is_empty()
        });
        assert_eq!(supervisor.logged(&["the default is disabled"]), Vec::<String>::new());
        assert_eq!(supervisor.stop(), 0);
    }
}
