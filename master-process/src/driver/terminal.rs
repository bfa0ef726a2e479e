//! The controlling terminal: its hangup, its keys, and the signals that it sends to workers.
//!
//! A shell starts, stops and continues the process group of the supervisor. Workers are in process groups of their own,
//! which the terminal treats as background jobs.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use tracing::{debug, info, warn};

use super::deferred::Deferred;
use super::{Driver, Token};
use crate::config::{Config, Stdin};
use crate::policy::{Event, Hangup, Hangups, Time, WorkerId};
use crate::sys::pidfd::{self, Exit};
use crate::sys::signal_names;
use crate::sys::signalfd::{self, Sender, SignalFd};
use crate::sys::terminal::{self, Ancestors, Terminal};

/// The number of stops that one round handles. A worker that stops and continues repeatedly must not block the loop.
const MAX_STOPS: usize = 64;

/// The wait before a worker that the terminal stops repeatedly is continued. It doubles each time, up to the maximum.
const RESUME_AFTER: Duration = Duration::from_secs(1);
const MAX_RESUME_WAIT: Duration = Duration::from_secs(60);

/// The state of the terminal.
#[derive(Debug)]
pub(super) struct Tty {
    terminal: Option<Terminal>,
    ancestors: Ancestors,
    hangups: Hangups,
    /// Whether the terminal is given to the one worker that reads it: `--stdin inherit`.
    is_lent: bool,
    /// Whether the supervisor has switched the terminal's `tostop` off.
    tostop_is_off: bool,
}

/// The process group in the foreground of the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Foreground {
    /// The supervisor's process group: the supervisor gets the signals of the keys.
    Ours,
    /// The process group of the worker with this serial.
    Worker(u64),
    /// Another job of the shell, or none.
    Other,
}

impl Tty {
    pub(super) fn new(config: &Config, signals: &SignalFd, now: Time) -> Tty {
        let terminal = Terminal::open();
        let ancestors = if terminal.is_some() { Ancestors::collect() } else { Ancestors::default() };
        let is_lent = config.stdin == Stdin::Inherit && terminal.as_ref().is_some_and(Terminal::is_stdin);
        // The terminal's window may be closed while the supervisor starts; its SIGHUP is then already pending.
        let was_lost = terminal.is_none() && terminal::was_lost();
        let mut hangups = Hangups::new(terminal.is_some() || was_lost, signals.hup_was_ignored());
        if was_lost {
            hangups.terminal_gone(now);
        }
        Tty { terminal, ancestors, hangups, is_lent, tostop_is_off: false }
    }

    /// Whether the worker reads the terminal: then only one worker is possible.
    pub(super) fn is_lent(&self) -> bool {
        self.is_lent
    }

    fn set_foreground(&self, group: Pid) {
        if let Some(terminal) = &self.terminal {
            terminal.set_foreground(group);
        }
    }

    /// Puts the supervisor's own process group into the foreground.
    fn take_back(&self) {
        if let Some(group) = terminal::own_group() {
            self.set_foreground(group);
        }
    }

    fn restore_tostop(&mut self) {
        if std::mem::take(&mut self.tostop_is_off)
            && let Some(terminal) = &self.terminal
        {
            terminal.set_tostop(true);
        }
    }
}

impl Driver {
    pub(super) fn watch_terminal(&mut self) {
        if let Some(terminal) = &self.tty.terminal
            && let Err(error) = self.poller.watch_hang_up(terminal.as_fd(), Token::Terminal.encode())
        {
            warn!("cannot watch the terminal: {error}; its end may go unnoticed");
        }
    }

    /// Checks whether the terminal is gone: on an event of its watch, and at intervals, because the end of a session
    /// leader takes the terminal from all processes without waking the watch. The terminal's hangup sends SIGHUP, which
    /// stops the supervisor; a later SIGHUP is a reload.
    pub(super) fn check_terminal(&mut self) {
        if self.tty.hangups.has_terminal() && self.look_at_terminal(false) {
            debug!("the terminal is gone: the next SIGHUP from it stops all workers");
        }
    }

    /// Records whether the terminal is gone, and returns it. If a SIGHUP came `from_above`, the terminal of a wrapper
    /// counts as the supervisor's: `sudo` passes the signal on, and keeps the terminal that it has made for the
    /// supervisor.
    fn look_at_terminal(&mut self, from_above: bool) -> bool {
        let tty = &self.tty;
        let gone = tty.terminal.as_ref().is_some_and(Terminal::is_gone)
            || from_above && tty.ancestors.lost_terminal();
        if gone {
            let now = self.now();
            self.tty.hangups.terminal_gone(now);
        }
        gone
    }

    /// Handles SIGHUP.
    pub(super) fn hang_up(&mut self, sender: Sender) {
        let from_above = match sender {
            Sender::Kernel | Sender::Outside => true,
            Sender::Process(pid) => self.tty.ancestors.contain(pid),
        };
        if self.tty.hangups.has_terminal() {
            self.look_at_terminal(from_above);
        }
        let verdict = self.tty.hangups.signal(self.now(), from_above);
        self.follow_hang_up(verdict);
    }

    /// Continues the handling of a SIGHUP that waits for the state of the terminal.
    pub(super) fn continue_hang_up(&mut self) {
        self.look_at_terminal(true);
        let verdict = self.tty.hangups.looked(self.now());
        self.follow_hang_up(verdict);
    }

    fn follow_hang_up(&mut self, verdict: Option<Hangup>) {
        match verdict {
            None => {}
            Some(Hangup::LookAgain(wait)) => self.schedule_in(wait, Deferred::Hangup),
            Some(Hangup::Reload) => self.event(Event::Reload),
            Some(Hangup::Outlive) => {
                info!("ignored SIGHUP: the terminal is gone, and SIGHUP was ignored at the start (nohup)");
            }
            Some(Hangup::Stop) => {
                "SIGHUP, the terminal is gone".clone_into(&mut self.stop_cause);
                self.event(Event::Hangup);
            }
        }
    }

    /// Whether the next worker gets the foreground of the terminal: it reads the terminal, and the shell has given the
    /// terminal to the supervisor.
    pub(super) fn next_worker_is_in_foreground(&self) -> bool {
        self.tty.is_lent && self.foreground() != Foreground::Other
    }

    fn foreground(&self) -> Foreground {
        let Some(group) = self.tty.terminal.as_ref().and_then(Terminal::foreground) else {
            return Foreground::Other;
        };
        if Some(group) == terminal::own_group() {
            return Foreground::Ours;
        }
        self.workers.serial_of(group).map_or(Foreground::Other, Foreground::Worker)
    }

    /// Takes the terminal back from a worker that has ended. The worker is not reaped yet, so its process group's
    /// number is not reused. Returns true if the worker had the terminal and a key of the terminal ended it: without a
    /// supervisor, this would have ended the shell's job.
    pub(super) fn take_terminal_back(&self, serial: u64, exit: Option<Exit>) -> bool {
        if self.foreground() != Foreground::Worker(serial) {
            return false;
        }
        self.tty.take_back();
        // A shell reports with its exit code that a signal ended its program.
        let signal = match exit {
            Some(Exit::Signal { number, .. }) => number,
            Some(Exit::Code(code)) => code - 128,
            None => 0,
        };
        self.tty.is_lent && matches!(signal, libc::SIGINT | libc::SIGQUIT)
    }

    /// Restores the terminal at the end.
    pub(super) fn restore_terminal(&mut self) {
        self.tty.restore_tostop();
        // The foreground can still belong to a worker, for example to one that was killed and is not gone yet.
        if matches!(self.foreground(), Foreground::Worker(_)) {
            self.tty.take_back();
        }
    }

    /// Handles stops and continuations of children. Without a terminal, only deliberate stops occur, and they need no
    /// handling.
    pub(super) fn look_at_stops(&mut self) {
        if self.tty.terminal.is_none() {
            return;
        }
        for _ in 0..MAX_STOPS {
            let Ok(Some(paused)) = pidfd::next_paused() else {
                return;
            };
            let Some(serial) = self.workers.serial_of(paused.pid) else { continue };
            let has_terminal = self.tty.is_lent && self.foreground() == Foreground::Worker(serial);
            if let Some(entry) = self.workers.get_mut(serial) {
                entry.is_held = paused.by == Some(libc::SIGSTOP) && !has_terminal;
            }
            match paused.by {
                Some(number @ (libc::SIGTTIN | libc::SIGTTOU)) => self.stopped_by_terminal(serial, number),
                // Ctrl-Z reaches the process group in the foreground, and a program may then stop itself. For the
                // shell, the supervisor is the job.
                Some(libc::SIGTSTP | libc::SIGSTOP) if has_terminal => self.suspend(libc::SIGTSTP),
                // The stop is deliberate, for example by a debugger or an operator.
                Some(_) | None => {}
            }
        }
        self.schedule_in(Duration::ZERO, Deferred::Stops);
    }

    /// Handles a worker that the terminal stopped because it read (SIGTTIN) or wrote (SIGTTOU) from the background.
    fn stopped_by_terminal(&mut self, serial: u64, number: i32) {
        let foreground = self.foreground();
        if self.tty.is_lent && foreground == Foreground::Other {
            // The supervisor stops as the program alone would: a background job that needs the terminal is stopped
            // until the shell brings it to the foreground.
            return self.suspend(number);
        }
        let helped = self.grant_terminal(serial, number, foreground);
        let Some(entry) = self.workers.get_mut(serial) else { return };
        let (id, times) = (entry.id, entry.stops);
        entry.stops = entry.stops.saturating_add(1);
        if times == 0 && !(helped && self.tty.is_lent) {
            let (name, signal) = (self.name(id), signal_names::name(number));
            let did = if number == libc::SIGTTIN { "reading from" } else { "writing to" };
            let next = if helped {
                "continuing it; the terminal's tostop is off while this supervisor runs"
            } else {
                "continuing it repeatedly; -w 1 --stdin inherit gives the terminal to the worker"
            };
            warn!(
                worker = id.slot,
                signal = number,
                "{name} was stopped by {signal} for {did} the terminal from the background: {next}"
            );
        }
        if helped {
            return self.continue_worker(id);
        }
        // Until the terminal is free, the worker stops again at once.
        let wait = match times {
            0 => Duration::ZERO,
            more => RESUME_AFTER.saturating_mul(2u32.saturating_pow(more - 1)).min(MAX_RESUME_WAIT),
        };
        self.schedule_in(wait, Deferred::Resume(id, number));
    }

    /// Continues a worker that the terminal has stopped.
    pub(super) fn resume(&mut self, worker: WorkerId, number: i32) {
        let foreground = self.foreground();
        self.grant_terminal(worker.serial, number, foreground);
        self.continue_worker(worker);
    }

    /// Removes the cause of a worker's stop. Returns false if the supervisor may not.
    fn grant_terminal(&mut self, serial: u64, number: i32, foreground: Foreground) -> bool {
        match foreground {
            Foreground::Worker(other) => other == serial,
            Foreground::Other => false,
            Foreground::Ours if self.tty.is_lent => {
                self.give_terminal_to(serial);
                true
            }
            Foreground::Ours => {
                let Some(terminal) = self.tty.terminal.as_ref().filter(|_| number == libc::SIGTTOU) else {
                    return false;
                };
                // The user's shell has put this job into the foreground, and the workers belong to it.
                let switched_off = terminal.set_tostop(false);
                self.tty.tostop_is_off |= switched_off;
                switched_off
            }
        }
    }

    fn give_terminal_to(&self, serial: u64) {
        if let Some(entry) = self.workers.get(serial).filter(|entry| !entry.reaped) {
            self.tty.set_foreground(entry.pid);
        }
    }

    fn continue_worker(&self, worker: WorkerId) {
        self.signal_group(worker, Signal::CONT);
    }

    fn signal_group(&self, worker: WorkerId, signal: Signal) {
        let Some(entry) = self.workers.get(worker.serial).filter(|entry| !entry.reaped) else {
            return;
        };
        if let Err(error) = pidfd::signal_group(entry.pidfd.as_fd(), entry.pid, signal) {
            self.failed_to_signal(worker, &error);
        }
    }

    /// Handles Ctrl-Z and the other stop signals of a job: the workers stop with the supervisor, and continue with it
    /// when the shell continues the job.
    pub(super) fn suspend(&mut self, number: i32) {
        // In an orphaned process group the kernel ignores the signal, as it does for a daemon.
        if terminal::is_group_orphaned() {
            if let Foreground::Worker(serial) = self.foreground()
                && let Some(id) = self.workers.get(serial).map(|entry| entry.id)
            {
                // The worker's group is not orphaned: its parent, the supervisor, can continue it.
                self.continue_worker(id);
            }
            return;
        }
        let mut with_us: Vec<WorkerId> =
            self.workers.alive().filter(|entry| !entry.is_held).map(|entry| entry.id).collect();
        with_us.sort_unstable_by_key(|worker| worker.serial);
        for worker in &with_us {
            self.signal_group(*worker, Signal::TSTP);
        }
        self.restore_terminal();
        let since = Instant::now();
        signalfd::stop_ourselves(number);
        // Timeouts do not count the time during which the supervisor is stopped.
        self.epoch += since.elapsed();
        if self.tty.is_lent
            && self.foreground() == Foreground::Ours
            && let Some(reader) = with_us.last()
        {
            self.give_terminal_to(reader.serial);
        }
        for worker in with_us {
            self.continue_worker(worker);
        }
    }
}
