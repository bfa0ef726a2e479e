//! The limits of a worker's cgroup: the controllers and the files that they take, and what the kernel counts at them;
//! "Cgroup v2" of the kernel's documentation.

use std::fmt;
use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::CgroupLimits;

/// The period of `cpu.max`, in microseconds: the kernel's default. A worker that has used its quota waits for its end.
const CPU_PERIOD: u64 = 100_000;

/// The shortest quota that the kernel takes, in microseconds: 1 % of a CPU.
const MIN_QUOTA: u64 = 1000;

const NS_PER_SECOND: u64 = 1_000_000_000;

/// A controller: the part of the kernel that has the limits of one resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Controller {
    /// CPU time.
    Cpu,
    /// Memory.
    Memory,
    /// Processes and threads.
    Pids,
}

impl Controller {
    /// All of them.
    pub const ALL: [Controller; 3] = [Controller::Memory, Controller::Cpu, Controller::Pids];

    /// Its name in `cgroup.controllers`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Controller::Cpu => "cpu",
            Controller::Memory => "memory",
            Controller::Pids => "pids",
        }
    }

    /// Whether a file with the names of controllers names it.
    #[must_use]
    pub fn is_in(self, text: &str) -> bool {
        text.split_ascii_whitespace().any(|name| name == self.name())
    }
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A value of a file of the cgroup.
pub(super) type Setting = (&'static str, String);

impl CgroupLimits {
    /// The controllers that the limits take.
    #[must_use]
    pub fn controllers(&self) -> Vec<Controller> {
        self.options().into_iter().fold(Vec::new(), |mut found, (_, controller)| {
            if !found.contains(&controller) {
                found.push(controller);
            }
            found
        })
    }

    /// The options that set the limits, each with its controller.
    #[must_use]
    pub fn options(&self) -> Vec<(&'static str, Controller)> {
        let CgroupLimits { memory_max, memory_high, cpu_max, pids_max } = self;
        let all = [
            (memory_max.is_some(), "--worker-memory-max", Controller::Memory),
            (memory_high.is_some(), "--worker-memory-high", Controller::Memory),
            (cpu_max.is_some(), "--worker-cpu-max", Controller::Cpu),
            (pids_max.is_some(), "--worker-pids-max", Controller::Pids),
        ];
        all.into_iter().filter(|(is_set, ..)| *is_set).map(|(_, option, of)| (option, of)).collect()
    }

    /// What is written before a worker is started in the cgroup. A memory or CPU limit of an earlier worker is lifted:
    /// until the program runs, its process shares the memory of the supervisor, and the OOM killer kills all processes
    /// that share memory with the one that it has chosen (`__oom_kill_process` in the kernel's mm/oom_kill.c).
    pub(super) fn before_start(&self) -> Vec<Setting> {
        let mut settings = Vec::new();
        if self.has_memory() {
            settings.push(("memory.max", "max".to_owned()));
            settings.push(("memory.high", "max".to_owned()));
            // Without it the kernel kills the largest process of the worker, and leaves the others.
            settings.push(("memory.oom.group", "1".to_owned()));
        }
        if self.cpu_max.is_some() {
            settings.push(("cpu.max", format!("max {CPU_PERIOD}")));
        }
        settings.extend(self.pids_max.map(|most| ("pids.max", most.to_string())));
        settings
    }

    /// What is written once the program of the worker runs.
    pub(super) fn once_it_runs(&self) -> Vec<Setting> {
        let quota = |ns: u64| (ns / (NS_PER_SECOND / CPU_PERIOD)).max(MIN_QUOTA);
        let cpu = self.cpu_max.map(|ns| ("cpu.max", format!("{} {CPU_PERIOD}", quota(ns))));
        // First the lower limit: the kernel reclaims memory at it, before the other one kills.
        let high = self.memory_high.map(|bytes| ("memory.high", bytes.to_string()));
        let max = self.memory_max.map(|bytes| ("memory.max", bytes.to_string()));
        [high, max, cpu].into_iter().flatten().collect()
    }

    pub(super) fn has_memory(&self) -> bool {
        self.memory_max.is_some() || self.memory_high.is_some()
    }
}

/// What the kernel has counted in a cgroup since that was made. Each worker that used it has a part of that.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// How often memory ran out at the limit of this cgroup.
    out_of_memory: u64,
    /// Its processes that the OOM killer has killed, whatever limit was reached, and how often all of them at once.
    oom_kills: u64,
    /// Forks that a limit refused.
    forks_refused: u64,
    /// How long its processes waited for the end of the period, in microseconds.
    throttled_us: u64,
}

/// What a worker has met at the limits of its cgroup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitsMet {
    /// The OOM killer has killed processes of the worker.
    pub oom: bool,
    /// The limit at which it did that; `None`: that of a cgroup above, or the memory of the host.
    pub memory_max: Option<u64>,
    /// The forks of the worker that a limit refused.
    pub forks_refused: u64,
    /// How long the worker waited because it had used its CPU time.
    pub throttled: Duration,
}

impl Counters {
    /// Reads the counters of a cgroup with these limits. A file that is missing counts nothing.
    pub(super) fn read(limits: &CgroupLimits, read: impl Fn(&str) -> io::Result<String>) -> Counters {
        let of =
            |wanted: bool, file: &str| if wanted { read(file).unwrap_or_default() } else { String::new() };
        // The file of this cgroup alone: a cgroup that the worker has made below can have its own limit, at which other
        // processes of the worker were killed. `oom_group_kill` is there since Linux 5.17.
        let memory = of(limits.has_memory(), "memory.events.local");
        let (pids, cpu) =
            (of(limits.pids_max.is_some(), "pids.events"), of(limits.cpu_max.is_some(), "cpu.stat"));
        Counters {
            out_of_memory: number(&memory, "oom"),
            oom_kills: number(&memory, "oom_kill").saturating_add(number(&memory, "oom_group_kill")),
            forks_refused: number(&pids, "max"),
            throttled_us: number(&cpu, "throttled_usec"),
        }
    }

    /// What has happened since an earlier reading.
    pub(super) fn since(&self, earlier: &Counters, limits: &CgroupLimits) -> LimitsMet {
        let oom = self.oom_kills > earlier.oom_kills;
        let is_own = self.out_of_memory > earlier.out_of_memory;
        LimitsMet {
            oom,
            memory_max: limits.memory_max.filter(|_| oom && is_own),
            forks_refused: self.forks_refused.saturating_sub(earlier.forks_refused),
            throttled: Duration::from_micros(self.throttled_us.saturating_sub(earlier.throttled_us)),
        }
    }
}

/// The value of a key in a file of `key value` lines; 0 without it.
pub(super) fn number(text: &str, key: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    value.and_then(|value| value.trim_end().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: CgroupLimits = CgroupLimits {
        memory_max: Some(64 << 20),
        memory_high: Some(48 << 20),
        cpu_max: Some(1_500_000_000),
        pids_max: Some(32),
    };

    fn counters(memory: &str, pids: &str, cpu: &str) -> Counters {
        Counters::read(&ALL, |file| {
            Ok(match file {
                "memory.events.local" => memory,
                "pids.events" => pids,
                "cpu.stat" => cpu,
                other => panic!("{other}"),
            }
            .to_owned())
        })
    }

    #[test]
    fn a_controller_is_needed_once_and_only_for_its_limits() {
        assert_eq!(ALL.controllers(), [Controller::Memory, Controller::Cpu, Controller::Pids]);
        assert_eq!(CgroupLimits::default().controllers(), []);
        let pids = CgroupLimits { pids_max: Some(1), ..CgroupLimits::default() };
        assert_eq!(pids.options(), [("--worker-pids-max", Controller::Pids)]);
        assert!(Controller::Cpu.is_in("cpuset cpu io\n") && !Controller::Cpu.is_in("cpuset io\n"));
    }

    #[test]
    fn memory_and_cpu_limits_hold_once_the_program_runs_and_that_of_processes_before() {
        let text = |settings: Vec<Setting>| -> Vec<String> {
            settings.iter().map(|(file, value)| format!("{file} {value}")).collect()
        };
        let before =
            ["memory.max max", "memory.high max", "memory.oom.group 1", "cpu.max max 100000", "pids.max 32"];
        assert_eq!(text(ALL.before_start()), before);
        let running = ["memory.high 50331648", "memory.max 67108864", "cpu.max 150000 100000"];
        assert_eq!(text(ALL.once_it_runs()), running);
        let none = CgroupLimits::default();
        assert!(none.before_start().is_empty() && none.once_it_runs().is_empty());
    }

    #[test]
    fn the_smallest_quota_is_what_the_kernel_takes() {
        let cpu = |ns| CgroupLimits { cpu_max: Some(ns), ..CgroupLimits::default() }.once_it_runs();
        assert_eq!(cpu(10_000_000), [("cpu.max", "1000 100000".to_owned())]);
        assert_eq!(cpu(1), [("cpu.max", "1000 100000".to_owned())]);
    }

    #[test]
    fn only_what_was_counted_since_the_start_is_of_the_worker() {
        let before = counters(
            "low 0\nhigh 3\nmax 9\noom 2\noom_kill 2\noom_group_kill 1\n",
            "max 5\n",
            "throttled_usec 7\n",
        );
        assert_eq!(before.since(&before, &ALL), LimitsMet::default());
        let after = counters(
            "oom 3\noom_kill 4\noom_group_kill 2\n",
            "max 8\n",
            "usage_usec 1\nthrottled_usec 1000007\n",
        );
        let met = after.since(&before, &ALL);
        let expected = LimitsMet {
            oom: true,
            memory_max: ALL.memory_max,
            forks_refused: 3,
            throttled: Duration::from_secs(1),
        };
        assert_eq!(met, expected);
    }

    #[test]
    fn a_kill_without_an_event_of_this_cgroup_was_for_a_limit_above() {
        let met = |memory: &str| counters(memory, "", "").since(&Counters::default(), &ALL);
        let above = met("max 4\noom 0\noom_kill 1\n");
        assert_eq!((above.oom, above.memory_max), (true, None));
        // A process could not be killed, or a cgroup below was at its own limit.
        let survived = met("max 4\noom 2\noom_kill 0\n");
        assert_eq!((survived.oom, survived.memory_max), (false, None));
        let killed_together = met("oom 1\noom_kill 0\noom_group_kill 1\n");
        assert_eq!((killed_together.oom, killed_together.memory_max), (true, ALL.memory_max));
    }

    #[test]
    fn a_missing_file_counts_nothing() {
        let missing = Counters::read(&ALL, |_| Err(io::ErrorKind::NotFound.into()));
        assert_eq!(missing, Counters::default());
        assert_eq!(number("oom_kill 7\noom 1\n", "oom"), 1);
        assert_eq!(number("oom many\n", "oom"), 0);
    }
}
