//! Loading, starting workers, and asking about them.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use master_process::config::Scope;
use master_process::metrics::LastWords;
use master_process::metrics::ebpf::Ebpf;
use master_process::policy::{Usage, WorkerId};

use crate::role::again;

/// Only one test at a time forks: the kernel side knows the supervisor by its process, not by its thread.
static ALONE: Mutex<()> = Mutex::new(());

/// The source under test, and the workers that it watches.
pub(crate) struct Bench {
    pub(crate) ebpf: Ebpf,
    serial: u64,
    _alone: MutexGuard<'static, ()>,
}

/// A worker of a test. It does not outlive that.
pub(crate) struct Worker {
    pub(crate) id: WorkerId,
    pub(crate) child: Child,
    output: BufReader<ChildStdout>,
}

/// The source, or the end of the test where it cannot be had.
macro_rules! bench {
    ($name:literal, $scope:expr) => {
        match $crate::harness::Bench::new($scope) {
            Ok(bench) => bench,
            Err(refusal) => master_process_tests::skip!($name, refusal),
        }
    };
}
pub(crate) use bench;

impl Bench {
    pub(crate) fn new(scope: Scope) -> Result<Bench, master_process::metrics::ebpf::Refusal> {
        let alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Ok(Bench { ebpf: Ebpf::load(scope, 4)?, serial: 0, _alone: alone })
    }

    /// Starts a worker in a role.
    pub(crate) fn start(&mut self, role: &str) -> Worker {
        self.serial += 1;
        let id = WorkerId { slot: 0, serial: self.serial };
        self.ebpf.arm(id);
        let mut child = again(role).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("a worker");
        self.ebpf.launched(id, true);
        let output = BufReader::new(child.stdout.take().expect("its output"));
        Worker { id, child, output }
    }

    /// What a worker uses; `None` where it is not watched.
    pub(crate) fn usage(&mut self, worker: &Worker) -> Option<Usage> {
        let mut found = None;
        let sampled = self.ebpf.sample(&mut |id, usage| {
            if id == worker.id {
                found = Some(usage);
            }
        });
        sampled.expect("a sample");
        found
    }

    /// CPU time and wall-clock time between now and a moment later, in seconds.
    pub(crate) fn rate(&mut self, worker: &Worker, time: Duration) -> f64 {
        let (begun, before) = (Instant::now(), self.usage(worker).expect("a sample"));
        std::thread::sleep(time);
        let (after, took) = (self.usage(worker).expect("a sample"), begun.elapsed());
        Duration::from_nanos(after.cpu_ns - before.cpu_ns).as_secs_f64() / took.as_secs_f64()
    }

    /// Waits for its end, then asks what it died of.
    pub(crate) fn bury(&mut self, mut worker: Worker) -> LastWords {
        let _status = worker.child.wait();
        self.ebpf.ended(worker.id)
    }
}

impl Worker {
    /// Waits until the worker says that it is ready.
    pub(crate) fn ready(&mut self) {
        let mut line = String::new();
        while line.trim() != "ready" {
            line.clear();
            assert_ne!(self.output.read_line(&mut line).expect("a line"), 0, "it ended before it was ready");
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}
