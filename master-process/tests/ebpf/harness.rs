//! Loading, starting workers, and asking about them.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::str::FromStr;
use std::time::Duration;

use master_process::config::Scope;
use master_process::metrics::ExitDetails;
use master_process::metrics::ebpf::{Ebpf, Thresholds};
use master_process::policy::{Usage, WorkerId};
use master_process_tests::{TIMEOUT, eventually};
use rustix::process::Pid;

use crate::role::again;

/// The time between two samples: short, so that a test need not wait for them.
pub(crate) const INTERVAL: Duration = Duration::from_millis(20);

/// The source under test, and the workers that it watches.
pub(crate) struct Bench {
    pub(crate) ebpf: Ebpf,
    serial: u64,
}

/// A worker of a test. It does not outlive that.
pub(crate) struct Worker {
    pub(crate) id: WorkerId,
    pub(crate) child: Child,
    output: BufReader<ChildStdout>,
}

/// The source, or the end of the test where it cannot be had.
macro_rules! bench {
    ($name:literal, Scope::$scope:ident) => {
        bench!($name, $crate::harness::Bench::new(Scope::$scope))
    };
    ($name:literal, $bench:expr) => {
        match $bench {
            Ok(bench) => bench,
            Err(error) => master_process_tests::skip!($name, error),
        }
    };
}
pub(crate) use bench;

impl Bench {
    pub(crate) fn new(scope: Scope) -> Result<Bench, master_process::metrics::ebpf::LoadError> {
        Bench::with_limits(scope, Thresholds::default())
    }

    pub(crate) fn with_limits(
        scope: Scope,
        thresholds: Thresholds,
    ) -> Result<Bench, master_process::metrics::ebpf::LoadError> {
        Ok(Bench { ebpf: Ebpf::load(scope, 4, INTERVAL, thresholds)?, serial: 0 })
    }

    pub(crate) fn with_interval(
        interval: Duration,
    ) -> Result<Bench, master_process::metrics::ebpf::LoadError> {
        Ok(Bench { ebpf: Ebpf::load(Scope::Tree, 4, interval, Thresholds::default())?, serial: 0 })
    }

    /// Starts a worker in a role.
    pub(crate) fn start(&mut self, role: &str) -> Worker {
        self.start_command(&mut again(role))
    }

    /// Starts a worker in python, which has one thread: in a role, the test has one, too.
    pub(crate) fn start_python(&mut self, text: &str) -> Worker {
        let mut python = Command::new(master_process_tests::fixtures::python());
        self.start_command(python.args(["-c", text]).stdin(Stdio::piped()))
    }

    fn start_command(&mut self, command: &mut Command) -> Worker {
        self.serial += 1;
        let id = WorkerId { slot: 0, serial: self.serial };
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("a worker");
        self.ebpf.watch(id, pid_of(child.id())).expect("an account");
        let output = BufReader::new(child.stdout.take().expect("its output"));
        Worker { id, child, output }
    }

    /// What a worker uses at the next sample; `None` where it is not watched.
    pub(crate) fn usage(&self, worker: &Worker) -> Option<Usage> {
        // The one that is being taken may have passed the worker already.
        let samples = self.ebpf.cost().0;
        eventually(TIMEOUT, "two samples", || self.ebpf.cost().0 >= samples + 2);
        self.ebpf.usage(worker.id)
    }

    /// Waits for its end, then asks what it died of.
    pub(crate) fn bury(&mut self, mut worker: Worker) -> ExitDetails {
        let _status = worker.child.wait();
        self.ebpf.ended(worker.id)
    }
}

impl Worker {
    /// Waits until the worker, or its child, says that it is ready. The numbers of both and of all between them.
    pub(crate) fn ready(&mut self) -> Vec<u32> {
        self.ready_with()
    }

    /// Waits until the worker says that it is ready, and returns the address that it says.
    pub(crate) fn ready_at(&mut self) -> u64 {
        *self.ready_with().first().expect("an address")
    }

    fn ready_with<T: FromStr>(&mut self) -> Vec<T> {
        let mut numbers = Vec::new();
        let mut line = String::new();
        while line.trim() != "ready" {
            numbers.extend(line.trim().parse::<T>());
            line.clear();
            assert_ne!(self.output.read_line(&mut line).expect("a line"), 0, "it ended before it was ready");
        }
        numbers
    }

    /// Writes a line to its standard input.
    pub(crate) fn tell(&mut self, line: &str) {
        let mut input = self.child.stdin.as_ref().expect("its input");
        writeln!(input, "{line}").expect("it reads");
    }

    /// CPU time of its threads that live, in nanoseconds, as the scheduler has it: proc_pid_schedstat(5).
    pub(crate) fn scheduled(&self) -> u64 {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("its threads");
        let times = tasks.filter_map(|task| {
            let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
            text.split_whitespace().next()?.parse::<u64>().ok()
        });
        times.sum()
    }

    /// What is resident, in bytes, as /proc has it.
    pub(crate) fn resident(&self) -> u64 {
        resident(self.child.id())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}

pub(crate) fn pid_of(number: u32) -> Pid {
    Pid::from_raw(number.cast_signed()).expect("a pid")
}

/// What is resident of a process, in bytes: the second number of proc_pid_statm(5).
pub(crate) fn resident(pid: u32) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).expect("its memory");
    let pages: u64 = statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).expect("a number");
    pages * 4096
}

/// Asserts that two numbers are as close as is promised: one percent, or `least`.
pub(crate) fn assert_close(found: u64, expected: u64, least: u64) {
    let tolerance = (expected / 100).max(least);
    assert!(found.abs_diff(expected) <= tolerance, "{found} is not {expected}");
}
