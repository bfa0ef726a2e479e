//! How a worker ended.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Size, Span};
use crate::control::{End, Sender};
use crate::metrics::{ExitDetails, Killer};
use crate::sys::cgroup::LimitsMet;
use crate::sys::pidfd::{Death, Exit};
use crate::sys::signal_names;

/// The details of a worker's end, as far as they are available.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ExitReport {
    exit: Option<Exit>,
    /// CPU time of the worker and of the children that it waited for.
    cpu: Option<Duration>,
    /// In bytes.
    peak_memory: Option<u64>,
    killer: Option<Killer>,
    oom: Option<bool>,
    /// What the worker has met at the limits of its cgroup.
    #[serde(default)]
    met: LimitsMet,
}

impl ExitReport {
    /// Combines the data of waitid(2) and of the source of the samples. The supervisor's own signals have messages of their
    /// own, so it is not named as the sender.
    pub fn new(death: Option<Death>, details: ExitDetails) -> ExitReport {
        let ours = i32::try_from(std::process::id()).ok();
        let exit = death.map(|death| death.exit);
        let number = match exit {
            Some(Exit::Signal { number, .. }) => Some(number),
            Some(Exit::Code(_)) | None => None,
        };
        let killer = details.killer.filter(|killer| Some(killer.signal) == number && killer.pid != ours);
        ExitReport {
            exit,
            cpu: death.map(|death| death.cpu),
            peak_memory: death.and_then(|death| death.peak_memory).max(details.peak_memory),
            killer,
            oom: details.oom,
            met: LimitsMet::default(),
        }
    }

    /// Adds what the worker has met at the limits of its cgroup.
    #[must_use]
    pub fn at_limits(mut self, met: LimitsMet) -> ExitReport {
        // The OOM killer kills all processes of a cgroup together, and the source of the samples sees the one that it has
        // chosen.
        if met.oom {
            self.oom = Some(true);
        }
        self.met = met;
        self
    }

    /// The exit code; `None` if a signal ended the worker.
    pub(super) fn code(&self) -> Option<i32> {
        match self.exit {
            Some(Exit::Code(code)) => Some(code),
            Some(Exit::Signal { .. }) | None => None,
        }
    }

    /// The signal that ended the worker, and whether it left a core dump.
    pub(super) fn signal(&self) -> Option<(i32, bool)> {
        match self.exit {
            Some(Exit::Signal { number, dumped }) => Some((number, dumped)),
            Some(Exit::Code(_)) | None => None,
        }
    }

    pub(super) fn cpu_ms(&self) -> Option<u64> {
        self.cpu.map(|cpu| u64::try_from(cpu.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn peak_memory(&self) -> Option<u64> {
        self.peak_memory
    }

    pub(super) fn killer(&self) -> Option<&Killer> {
        self.killer.as_ref()
    }

    pub(super) fn oom(&self) -> Option<bool> {
        self.oom
    }

    /// The limit of the worker's cgroup at which the OOM killer killed it, in bytes.
    pub(super) fn oom_limit(&self) -> Option<u64> {
        self.met.memory_max.filter(|_| self.is_oom())
    }

    /// The forks that a limit refused; `None` if there were none.
    pub(super) fn forks_refused(&self) -> Option<u64> {
        Some(self.met.forks_refused).filter(|count| *count > 0)
    }

    /// The end as the control socket tells it.
    pub fn as_end(&self, uptime: Duration) -> End {
        let sender = self.killer.as_ref().map(|killer| Sender {
            pid: killer.pid,
            comm: killer.name.clone(),
            uid: killer.uid,
        });
        End {
            exit_code: self.code(),
            signal: self.signal(),
            oom: self.is_oom(),
            oom_limit: self.oom_limit(),
            forks_refused: self.met.forks_refused,
            throttled: self.met.throttled,
            sender,
            cpu: self.cpu,
            peak_memory: self.peak_memory,
            uptime,
        }
    }

    fn is_oom(&self) -> bool {
        self.oom == Some(true) && self.signal().is_some_and(|(number, _)| number == libc::SIGKILL)
    }
}

/// The end as the predicate of a sentence: `exited with code 1`, `killed by SIGKILL`.
impl fmt::Display for ExitReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.exit {
            Some(Exit::Code(code)) => write!(f, "exited with code {code}"),
            Some(Exit::Signal { .. }) => write!(f, "killed by {}", Cause(self)),
            None => f.write_str("ended"),
        }
    }
}

/// The end without a verb: `SIGTERM`, `exit code 1`, `the OOM killer`.
pub(super) struct Cause<'a>(pub(super) &'a ExitReport);

impl fmt::Display for Cause<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cause(end) = self;
        if end.is_oom() {
            f.write_str("the OOM killer")?;
            return match end.oom_limit() {
                Some(most) => write!(f, " at --worker-memory-max ({})", Size(most)),
                None => Ok(()),
            };
        }
        match end.exit {
            Some(Exit::Code(code)) => write!(f, "exit code {code}")?,
            Some(Exit::Signal { number, dumped }) => {
                f.write_str(&signal_names::name(number))?;
                if dumped {
                    f.write_str(" (core dumped)")?;
                }
            }
            None => f.write_str("exit status unknown")?,
        }
        let Some(killer) = &end.killer else { return Ok(()) };
        write!(f, " from {} (", killer.name)?;
        match killer.pid {
            Some(pid) => write!(f, "pid {pid}")?,
            None => f.write_str("outside this PID namespace")?,
        }
        write!(f, ", uid {})", killer.uid)
    }
}

/// The resources that the worker used, in parentheses; empty if none is available.
pub(super) struct Used<'a>(pub(super) &'a ExitReport);

impl fmt::Display for Used<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Used(report) = self;
        let parts = [
            report.cpu.map(|cpu| format!("cpu {}", Span(cpu))),
            report.peak_memory.map(|peak| format!("peak memory {}", Size(peak))),
            report.forks_refused().map(|count| format!("{count} forks refused by a limit")),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        if parts.is_empty() { Ok(()) } else { write!(f, " ({})", parts.join(", ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn death(exit: Exit) -> Option<Death> {
        Some(Death { exit, cpu: Duration::from_millis(1500), peak_memory: Some(3 << 20) })
    }

    fn killed(number: i32) -> Exit {
        Exit::Signal { number, dumped: false }
    }

    fn by(signal: i32, pid: Option<i32>) -> Option<Killer> {
        Some(Killer { signal, pid, uid: 1000, name: "bash".to_owned() })
    }

    fn text(exit: Exit, details: ExitDetails) -> String {
        let report = ExitReport::new(death(exit), details);
        format!("{report}{}", Used(&report))
    }

    #[test]
    fn an_end_says_what_was_used() {
        assert_eq!(
            text(Exit::Code(3), ExitDetails::default()),
            "exited with code 3 (cpu 1.5s, peak memory 3.0 MiB)"
        );
        let details = ExitDetails { peak_memory: Some(5 << 20), ..ExitDetails::default() };
        assert_eq!(text(Exit::Code(0), details), "exited with code 0 (cpu 1.5s, peak memory 5.0 MiB)");
    }

    #[test]
    fn a_killer_is_named_if_its_signal_was_the_one() {
        let details = |signal, pid| ExitDetails { killer: by(signal, pid), ..ExitDetails::default() };
        let says = |signal, pid| text(killed(libc::SIGKILL), details(signal, pid));
        assert!(says(libc::SIGKILL, Some(7)).starts_with("killed by SIGKILL from bash (pid 7, uid 1000) ("));
        assert!(says(libc::SIGKILL, None).contains("from bash (outside this PID namespace, uid 1000)"));
        assert!(says(libc::SIGTERM, Some(7)).starts_with("killed by SIGKILL ("));
    }

    #[test]
    fn the_limit_of_the_cgroup_is_named_where_it_was_the_one() {
        let text = |exit, met| {
            let report = ExitReport::new(death(exit), ExitDetails::default()).at_limits(met);
            (format!("{report}{}", Used(&report)), report.as_end(Duration::ZERO))
        };
        let at_limit = LimitsMet { oom: true, memory_max: Some(64 << 20), ..LimitsMet::default() };
        let (line, end) = text(killed(libc::SIGKILL), at_limit);
        assert!(
            line.starts_with("killed by the OOM killer at --worker-memory-max (64.0 MiB) (cpu "),
            "{line}"
        );
        assert_eq!((end.reason(), end.oom_limit), (crate::control::EndReason::Oom, Some(64 << 20)));
        let above = LimitsMet { oom: true, ..LimitsMet::default() };
        assert!(text(killed(libc::SIGKILL), above).0.starts_with("killed by the OOM killer (cpu "));
        let (line, end) = text(Exit::Code(1), at_limit);
        assert!(line.starts_with("exited with code 1 (cpu "), "another process was killed: {line}");
        assert_eq!((end.reason(), end.oom_limit), (crate::control::EndReason::Exit, None));
        let refused = LimitsMet { forks_refused: 12, ..LimitsMet::default() };
        let (line, _) = text(Exit::Code(1), refused);
        let expected = "exited with code 1 (cpu 1.5s, peak memory 3.0 MiB, 12 forks refused by a limit)";
        assert_eq!(line, expected);
    }

    #[test]
    fn the_cause_of_a_stop_has_no_verb() {
        let cause = |exit, details| Cause(&ExitReport::new(death(exit), details)).to_string();
        assert_eq!(cause(killed(libc::SIGTERM), ExitDetails::default()), "SIGTERM");
        assert_eq!(cause(Exit::Code(1), ExitDetails::default()), "exit code 1");
        let dumped = Exit::Signal { number: libc::SIGSEGV, dumped: true };
        assert_eq!(cause(dumped, ExitDetails::default()), "SIGSEGV (core dumped)");
        let details = ExitDetails { oom: Some(true), ..ExitDetails::default() };
        assert_eq!(cause(killed(libc::SIGKILL), details), "the OOM killer");
        assert_eq!(Cause(&ExitReport::default()).to_string(), "exit status unknown");
    }

    #[test]
    fn the_supervisor_is_no_killer() {
        let ours = i32::try_from(std::process::id()).ok();
        let details = ExitDetails { killer: by(libc::SIGKILL, ours), ..ExitDetails::default() };
        assert!(text(killed(libc::SIGKILL), details).starts_with("killed by SIGKILL ("));
    }

    #[test]
    fn want_of_memory_is_said_in_place_of_a_killer() {
        let details =
            ExitDetails { oom: Some(true), killer: by(libc::SIGKILL, Some(7)), ..ExitDetails::default() };
        assert!(text(killed(libc::SIGKILL), details).starts_with("killed by the OOM killer ("));
        let details = ExitDetails { oom: Some(true), ..ExitDetails::default() };
        assert!(text(Exit::Code(1), details).starts_with("exited with code 1 ("));
    }
}
