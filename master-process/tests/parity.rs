//! Both sources beside each other: procfs, eBPF, procfs; what eBPF says lies between.
#![cfg(test)]

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use master_process::config::Scope;
use master_process::metrics::ebpf::{Ebpf, Thresholds};
use master_process::metrics::procfs::Procfs;
use master_process::policy::{Usage, WorkerId};
use rustix::process::Pid;

/// What each worker does, in python. All of them run at once: then they also take the CPU from each other.
const WORKERS: [(&str, &str); 10] = [
    ("a quarter of a CPU", "duty(0.25)"),
    ("half of a CPU", "duty(0.5)"),
    ("95 % of a CPU", "duty(0.95)"),
    ("threads", "[threading.Thread(target=duty, args=(0.3,)).start() for _ in range(4)]; time.sleep(1000)"),
    ("children", "[os.fork() or duty(0.2) for _ in range(3)]; duty(0.1)"),
    ("100 MB", "x = b'x' * 100_000_000; time.sleep(1000)"),
    (
        "500 MB that grow and shrink",
        "
x = []
while True:
    while len(x) < 25:
        x.append(b'x' * 20_000_000)
        time.sleep(0.03)
    while x:
        x.pop()
        time.sleep(0.03)
",
    ),
    ("sleep", "time.sleep(1000)"),
    (
        "short-lived children",
        "[os.fork() or work(0.02) or os._exit(0) or 0 for _ in iter(lambda: reap(), None)]",
    ),
    // Nobody else wants the last CPU for good, and the loop makes no system call.
    (
        "alone on a CPU",
        "
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
try: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
except PermissionError: pass
while True: pass
",
    ),
];

const TOOLS: &str = "
import os, threading, time
def work(seconds):
    until = time.thread_time() + seconds
    while time.thread_time() < until: pass
def duty(share):
    while True:
        begun = time.monotonic()
        work(0.02 * share)
        time.sleep(max(0, begun + 0.02 - time.monotonic()))
def reap():
    try: os.waitpid(-1, 0)
    except ChildProcessError: pass
    time.sleep(0.02)
    return 0
";

/// The time between two samples of eBPF: short, so that little changes between them and those of procfs.
const INTERVAL: Duration = Duration::from_millis(10);

/// How long CPU time is compared for.
const COMPARED: Duration = Duration::from_secs(5);

/// Two percent of that: what is promised.
const CPU_NS: u64 = 100_000_000;

const MIB: u64 = 1 << 20;

/// Workers that do not outlive the test.
struct Workers(Vec<(WorkerId, Child)>);

impl Drop for Workers {
    fn drop(&mut self) {
        for (_, child) in &mut self.0 {
            // Its group: its children too.
            if let Some(pid) = Pid::from_raw(child.id().cast_signed()) {
                let _gone = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
            }
            let _status = child.wait();
        }
    }
}

/// What three looks in a row say of each worker.
struct Look {
    before: BTreeMap<u64, Usage>,
    ebpf: BTreeMap<u64, Usage>,
    after: BTreeMap<u64, Usage>,
}

fn look(ebpf: &Ebpf, procfs: &mut Procfs) -> Look {
    let read = |procfs: &mut Procfs| {
        let mut usages = BTreeMap::new();
        procfs.sample(&mut |worker, usage| {
            usages.insert(worker.serial, usage);
        });
        usages
    };
    let before = read(procfs);
    // The sample that is being taken may have passed some workers already.
    let samples = ebpf.cost().0;
    master_process_tests::eventually(master_process_tests::TIMEOUT, "two samples", || {
        ebpf.cost().0 >= samples + 2
    });
    let usages = (0..)
        .zip(WORKERS)
        .map(|(serial, _)| (serial, ebpf.usage(WorkerId { slot: 0, serial }).expect("it is measured")));
    Look { before, ebpf: usages.collect(), after: read(procfs) }
}

#[test]
fn what_ebpf_says_lies_between_what_procfs_says_before_and_after() {
    use std::os::unix::process::CommandExt;
    let count = u32::try_from(WORKERS.len()).expect("few");
    let mut ebpf = match Ebpf::load(Scope::Tree, count, INTERVAL, Thresholds::default()) {
        Ok(ebpf) => ebpf,
        Err(error) => {
            master_process_tests::skip!(
                "what_ebpf_says_lies_between_what_procfs_says_before_and_after",
                error
            )
        }
    };
    let mut procfs = Procfs::new(Scope::Tree).expect("procfs");
    let mut workers = Workers(Vec::new());
    for (serial, (_, text)) in (0..).zip(WORKERS) {
        let id = WorkerId { slot: 0, serial };
        let mut command = Command::new(master_process_tests::fixtures::python());
        command.arg("-c").arg(format!("{TOOLS}{text}")).stdin(Stdio::null()).process_group(0);
        let child = command.spawn().expect("python");
        let pid = Pid::from_raw(child.id().cast_signed()).expect("a pid");
        ebpf.watch(id, pid).expect("an account");
        procfs.watch(id, pid);
        workers.0.push((id, child));
    }
    std::thread::sleep(Duration::from_secs(2));

    let first = look(&ebpf, &mut procfs);
    let mut looks = Vec::new();
    for _ in 0..10 {
        std::thread::sleep(COMPARED / 10);
        looks.push(look(&ebpf, &mut procfs));
    }
    let last = looks.last().expect("ten");
    let mut wrong = Vec::new();
    for (serial, (name, _)) in (0..).zip(WORKERS) {
        let cpu = |usages: &BTreeMap<u64, Usage>| usages[&serial].cpu_ns;
        let found = cpu(&last.ebpf) - cpu(&first.ebpf);
        let least = cpu(&last.before).saturating_sub(cpu(&first.after));
        let most = cpu(&last.after).saturating_sub(cpu(&first.before));
        println!("{name}: {found} ns of CPU, procfs has {least} to {most}");
        // What its children did between the last look and their end procfs never learns.
        let is_lost = name == "short-lived children";
        if found + CPU_NS < least || (found > most + CPU_NS && !is_lost) {
            wrong.push(format!("{name}: {found} ns of CPU is not from {least} to {most}"));
        }
        for look in looks.iter().filter(|_| !is_lost) {
            let memory = |usages: &BTreeMap<u64, Usage>| usages[&serial].memory;
            let (found, one, other) = (memory(&look.ebpf), memory(&look.before), memory(&look.after));
            let tolerance = (one / 100).max(MIB);
            if found + tolerance < one.min(other) || found > one.max(other) + tolerance {
                wrong.push(format!("{name}: {found} bytes is not from {one} to {other}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
