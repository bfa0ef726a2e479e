//! How a worker ended, as far as anybody knows.

use std::fmt;
use std::time::Duration;

use bytesize::ByteSize;

use super::Span;
use crate::metrics::{Killer, LastWords};
use crate::sys::pidfd::{Death, Exit};
use crate::sys::signal_names;

/// Everything that is known of a worker's end.
#[derive(Debug, Clone, Default)]
pub struct Certificate {
    exit: Option<Exit>,
    /// CPU time of the worker and of those of its children that it waited for.
    cpu: Option<Duration>,
    /// In bytes.
    peak_memory: Option<u64>,
    killer: Option<Killer>,
    oom: Option<bool>,
}

impl Certificate {
    /// Puts together what the kernel said when it was reaped, and what the source of the samples had to say. The
    /// supervisor is no killer worth a word: its own signals have lines of their own.
    pub fn new(death: Option<Death>, words: LastWords) -> Certificate {
        let ours = i32::try_from(std::process::id()).ok();
        let exit = death.map(|death| death.exit);
        let number = match exit {
            Some(Exit::Signal { number, .. }) => Some(number),
            Some(Exit::Code(_)) | None => None,
        };
        let killer = words.killer.filter(|killer| Some(killer.signal) == number && killer.pid != ours);
        Certificate {
            exit,
            cpu: death.map(|death| death.cpu),
            peak_memory: death.and_then(|death| death.peak_memory).max(words.peak_memory),
            killer,
            oom: words.oom,
        }
    }

    /// The exit code, where it exited.
    pub(super) fn code(&self) -> Option<i32> {
        match self.exit {
            Some(Exit::Code(code)) => Some(code),
            Some(Exit::Signal { .. }) | None => None,
        }
    }

    /// The signal that ended it, where one did, and whether it left a core dump.
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

    fn is_oom(&self) -> bool {
        self.oom == Some(true) && self.signal().is_some_and(|(number, _)| number == libc::SIGKILL)
    }
}

/// How it ended, as the predicate of a sentence.
impl fmt::Display for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.exit {
            Some(Exit::Code(code)) => write!(f, "exited with code {code}")?,
            Some(Exit::Signal { number, dumped }) => {
                write!(f, "was killed by {}", signal_names::name(number))?;
                if dumped {
                    f.write_str(" (core dumped)")?;
                }
            }
            None => f.write_str("ended")?,
        }
        if self.is_oom() {
            return f.write_str(" of the kernel's OOM killer");
        }
        let Some(killer) = &self.killer else { return Ok(()) };
        write!(f, " from {} (", killer.name)?;
        match killer.pid {
            Some(pid) => write!(f, "pid {pid}")?,
            None => f.write_str("outside of this PID namespace")?,
        }
        write!(f, ", uid {})", killer.uid)
    }
}

/// What it used, in parentheses; nothing where nothing is known.
pub(super) struct Used<'a>(pub(super) &'a Certificate);

impl fmt::Display for Used<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Used(certificate) = self;
        let peak = certificate.peak_memory.map(|bytes| ByteSize(bytes).display().iec());
        match (certificate.cpu, peak) {
            (Some(cpu), Some(peak)) => write!(f, " ({} of CPU, at most {peak})", Span(cpu)),
            (Some(cpu), None) => write!(f, " ({} of CPU)", Span(cpu)),
            (None, Some(peak)) => write!(f, " (at most {peak})"),
            (None, None) => Ok(()),
        }
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

    fn text(exit: Exit, words: LastWords) -> String {
        let certificate = Certificate::new(death(exit), words);
        format!("{certificate}{}", Used(&certificate))
    }

    #[test]
    fn an_end_says_what_was_used() {
        assert_eq!(
            text(Exit::Code(3), LastWords::default()),
            "exited with code 3 (1.5s of CPU, at most 3.0 MiB)"
        );
        let words = LastWords { peak_memory: Some(5 << 20), ..LastWords::default() };
        assert_eq!(text(Exit::Code(0), words), "exited with code 0 (1.5s of CPU, at most 5.0 MiB)");
    }

    #[test]
    fn a_killer_is_named_if_its_signal_was_the_one() {
        let words = |signal, pid| LastWords { killer: by(signal, pid), ..LastWords::default() };
        let says = |signal, pid| text(killed(libc::SIGKILL), words(signal, pid));
        assert!(
            says(libc::SIGKILL, Some(7)).starts_with("was killed by SIGKILL from bash (pid 7, uid 1000) (")
        );
        assert!(says(libc::SIGKILL, None).contains("from bash (outside of this PID namespace, uid 1000)"));
        assert!(says(libc::SIGTERM, Some(7)).starts_with("was killed by SIGKILL ("));
    }

    #[test]
    fn the_supervisor_is_no_killer() {
        let ours = i32::try_from(std::process::id()).ok();
        let words = LastWords { killer: by(libc::SIGKILL, ours), ..LastWords::default() };
        assert!(text(killed(libc::SIGKILL), words).starts_with("was killed by SIGKILL ("));
    }

    #[test]
    fn want_of_memory_is_said_in_place_of_a_killer() {
        let words = LastWords { oom: Some(true), killer: by(libc::SIGKILL, Some(7)), ..LastWords::default() };
        assert!(
            text(killed(libc::SIGKILL), words)
                .starts_with("was killed by SIGKILL of the kernel's OOM killer (")
        );
        let words = LastWords { oom: Some(true), ..LastWords::default() };
        assert!(text(Exit::Code(1), words).starts_with("exited with code 1 ("));
    }
}
