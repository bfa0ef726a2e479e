//! What a SIGHUP is: the user's wish for a reload, or the end of the terminal that the supervisor runs in.

use std::time::Duration;

use super::Time;

/// Terminal emulators, `screen` and `sudo` send SIGHUP a moment before they close the terminal. So long a SIGHUP from one
/// of those above us waits for that. Longer would delay the reload that a script above us may mean.
const TERMINAL_MAY_FOLLOW: Duration = Duration::from_millis(400);

/// How often the terminal is looked at meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A SIGHUP that comes so long after the terminal went is still about that: a shell on a busy machine takes a while to
/// pass it on. Longer would take a later reload of a disowned job for it.
const ABOUT_THE_TERMINAL: Duration = Duration::from_secs(10);

/// The same under `nohup`, where a SIGHUP about the terminal is ignored, and so would be a reload: shorter.
const ABOUT_THE_TERMINAL_NOHUP: Duration = Duration::from_secs(2);

/// What a SIGHUP asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hangup {
    /// A reload.
    Reload,
    /// The end: the terminal is gone.
    Stop,
    /// Nothing: the terminal is gone, and the supervisor was started to outlive it.
    Outlive,
    /// That is not known yet: look at the terminal again after this time.
    LookAgain(Duration),
}

/// The terminal as far as SIGHUP goes.
#[derive(Debug, Clone, Copy)]
enum Terminal {
    None,
    There,
    Gone { since: Time },
}

/// Tells the two kinds of SIGHUP apart.
#[derive(Debug)]
pub struct Hangups {
    terminal: Terminal,
    /// Whether SIGHUP was ignored at the start.
    outlives: bool,
    /// When a SIGHUP came that waits for what becomes of the terminal.
    waiting: Option<Time>,
}

impl Hangups {
    /// For a supervisor that has a terminal or not, and that was started to outlive it or not.
    pub fn new(has_terminal: bool, outlives: bool) -> Hangups {
        let terminal = if has_terminal { Terminal::There } else { Terminal::None };
        Hangups { terminal, outlives, waiting: None }
    }

    /// Whether what becomes of the terminal may matter.
    pub fn has_terminal(&self) -> bool {
        matches!(self.terminal, Terminal::There)
    }

    /// The terminal is gone.
    pub fn terminal_gone(&mut self, now: Time) {
        if self.has_terminal() {
            self.terminal = Terminal::Gone { since: now };
        }
    }

    /// A SIGHUP came; `from_above` says that it is from the kernel or from a process that we descend from. `None`: one that
    /// came before waits already, and this one is the same.
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

    /// The terminal was looked at again; `None`: no SIGHUP waits for that.
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
