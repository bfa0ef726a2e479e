//! What is measured: anything that runs N copies of a program and replaces each that dies at once.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A program to measure. A peer is added by writing down its command line here.
pub(crate) trait Subject {
    /// Its name in the table.
    fn name(&self) -> &str;

    /// Runs `workers` copies of `worker` in the foreground, their standard output its own, and starts another as soon
    /// as one dies, without a delay.
    fn command(&self, workers: u32, worker: &Path) -> Command;

    /// Whether it ends its workers when it is stopped itself.
    fn ends_its_workers(&self) -> bool;

    /// Whether what this project promises is promised of it.
    fn is_ours(&self) -> bool;

    /// Whether its start has only workers in it.
    fn starts_bare(&self) -> bool {
        true
    }
}

/// The least that one can do.
pub(crate) struct Baseline {
    pub(crate) name: &'static str,
    pub(crate) program: PathBuf,
    /// With a filter for each worker, as sharing needs it.
    pub(crate) filters: bool,
}

impl Subject for Baseline {
    fn name(&self) -> &str {
        self.name
    }

    fn command(&self, workers: u32, worker: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(workers.to_string()).arg(worker);
        if self.filters {
            command.arg("filter");
        }
        command
    }

    fn ends_its_workers(&self) -> bool {
        false
    }

    fn is_ours(&self) -> bool {
        false
    }
}

/// This project's own.
pub(crate) struct Supervisor {
    pub(crate) name: &'static str,
    pub(crate) program: PathBuf,
    /// Options of this row.
    pub(crate) options: &'static [&'static str],
}

impl Subject for Supervisor {
    fn name(&self) -> &str {
        self.name
    }

    fn command(&self, workers: u32, worker: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("-w").arg(workers.to_string());
        // Every death here is early, and none is to wait.
        command.args(["--throttle", "0", "--throttle-max", "0", "--ready", "none"]);
        command.args(self.options).arg("--").arg(worker);
        command
    }

    fn ends_its_workers(&self) -> bool {
        true
    }

    fn starts_bare(&self) -> bool {
        self.options.contains(&"procfs")
    }

    fn is_ours(&self) -> bool {
        true
    }
}
