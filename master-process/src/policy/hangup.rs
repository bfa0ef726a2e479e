//! The meaning of a SIGHUP: a request for a reload, or the end of the supervisor's terminal.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Time;

/// Terminal emulators, `screen` and `sudo` send SIGHUP a moment before they close the terminal. A SIGHUP from an
/// ancestor waits this long to see whether the terminal goes. A longer wait would delay the reload that a parent
/// script may mean.
const TERMINAL_MAY_FOLLOW: Duration = Duration::from_millis(400);

/// The interval of the checks of the terminal during that wait.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A SIGHUP that comes within this time after the end of the terminal is about that end: a shell on a busy machine is
/// slow to pass it on. With a longer time, a later reload of a disowned job would be taken for it.
const ABOUT_THE_TERMINAL: Duration = Duration::from_secs(10);

/// The same under `nohup`. It is shorter, because a SIGHUP about the terminal is ignored there, and a reload would be
/// ignored with it.
const ABOUT_THE_TERMINAL_NOHUP: Duration = Duration::from_secs(2);

/// What a SIGHUP requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hangup {
    /// A reload.
    Reload,
    /// Stop: the terminal is gone.
    Stop,
    /// Nothing: the terminal is gone, and the supervisor was started to outlive it.
    Outlive,
    /// Unknown yet: check the terminal again after this time.
    LookAgain(Duration),
}

/// The state of the terminal.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum Terminal {
    None,
    There,
    Gone { since: Time },
}

/// Distinguishes the two meanings of SIGHUP.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Hangups {
    terminal: Terminal,
    /// Whether SIGHUP was ignored at the start.
    outlives: bool,
    /// When the SIGHUP came that waits for the end of the terminal.
    waiting: Option<Time>,
}

impl Hangups {
    /// For a supervisor with or without a terminal, started with SIGHUP ignored or not.
    pub fn new(has_terminal: bool, outlives: bool) -> Hangups {
        let terminal = if has_terminal { Terminal::There } else { Terminal::None };
        Hangups { terminal, outlives, waiting: None }
    }

    /// Whether the terminal still matters.
    pub fn has_terminal(&self) -> bool {
        matches!(self.terminal, Terminal::There)
    }

    /// The terminal is gone.
    pub fn terminal_gone(&mut self, now: Time) {
        if self.has_terminal() {
            self.terminal = Terminal::Gone { since: now };
        }
    }

    /// A SIGHUP came; `from_above`: from the kernel or from an ancestor. Returns `None` if an earlier SIGHUP still
    /// waits: both are one.
    pub fn signal(&mut self, now: Time, from_above: bool) -> Option<Hangup> {
        match self.terminal {
            Terminal::None => Some(Hangup::Reload),
            Terminal::There if !from_above => Some(Hangup::Reload),
            Terminal::There if self.waiting.is_some() => None,
            Terminal::There => {
                self.waiting = Some(now);
                Some(Hangup::LookAgain(LOOK_EVERY))
            }
            Terminal::Gone { since } => Some(self.about(now, since)),
        }
    }

    /// The terminal was checked again. Returns `None` if no SIGHUP waits.
    pub fn looked(&mut self, now: Time) -> Option<Hangup> {
        let came = self.waiting?;
        let (verdict, waits) = match self.terminal {
            Terminal::There if now.since(came) < TERMINAL_MAY_FOLLOW => {
                (Hangup::LookAgain(LOOK_EVERY), self.waiting)
            }
            Terminal::There | Terminal::None => (Hangup::Reload, None),
            Terminal::Gone { since } => (self.about(now, since), None),
        };
        self.waiting = waits;
        Some(verdict)
    }

    fn about(&self, now: Time, since: Time) -> Hangup {
        let gone_for = now.since(since);
        match self.outlives {
            true if gone_for <= ABOUT_THE_TERMINAL_NOHUP => Hangup::Outlive,
            false if gone_for <= ABOUT_THE_TERMINAL => Hangup::Stop,
            true | false => Hangup::Reload,
        }
    }
}
