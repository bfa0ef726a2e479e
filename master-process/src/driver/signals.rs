//! The signals that the supervisor reads, what each of them does, and the controlling terminal, which sends some of
//! them.
//!
//! A shell starts, stops and continues the process group of the supervisor. Workers are in process groups of their own,
//! which the terminal treats as background jobs.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};
use tracing::{debug, info, warn};

use super::context::{Context, Deferred, Token};
use super::workers::Workers;
use crate::config::{Config, Stdin};
use crate::policy::{Event, Hangup, Hangups, Time, WorkerId};
use crate::sys::pidfd::{self, Exit};
use crate::sys::signal_disposition::{self, SignalDisposition};
use crate::sys::signalfd::{self, Received, Sender, SignalFd};
use crate::sys::terminal::{self, Ancestors, Terminal};
use crate::sys::{proc_stat, signal_names};

/// The number of workers that one log line names. A longer line can exceed the size that a pipe writes atomically, and
/// would lose its end.
const NAMED: usize = 8;

/// The number of stops that one round handles. A worker that stops and continues repeatedly must not block the loop.
const MAX_STOPS: usize = 64;

/// The wait before a worker that the terminal stops repeatedly is continued. It doubles each time, up to the maximum.
const RESUME_AFTER: Duration = Duration::from_secs(1);
const MAX_RESUME_WAIT: Duration = Duration::from_secs(60);

/// What a signal does.
#[derive(Debug, Clone, Copy)]
enum SignalAction {
    ReloadOrHangUp,
    Stop,
    ScaleUp,
    ScaleDown,
    Suspend,
    Reap,
    PassOn,
    Upgrade,
}

/// Signals with the same effect.
#[derive(Debug)]
struct Row {
    numbers: &'static [i32],
    action: SignalAction,
    effect: &'static str,
}

/// Every signal that the supervisor reads, in the order of the table in the documentation. All others that can be
/// blocked have no effect.
const TABLE: [Row; 8] = [
    Row {
        numbers: &[libc::SIGHUP],
        action: SignalAction::ReloadOrHangUp,
        effect: "reload: new workers start, and each old one leaves rotation when its own successor is ready, and is stopped when the successor has outlived the throttle; when the controlling terminal is gone: stop, unless HUP \
                 was ignored at the start (nohup)",
    },
    Row {
        numbers: &[libc::SIGTERM, libc::SIGINT, libc::SIGQUIT],
        action: SignalAction::Stop,
        effect: "stop every worker, clean the sockets up, exit 0; a second one, more than 500 ms later, kills what is left at \
                 once",
    },
    Row { numbers: &[libc::SIGTTIN], action: SignalAction::ScaleUp, effect: "one worker more" },
    Row {
        numbers: &[libc::SIGTTOU],
        action: SignalAction::ScaleDown,
        effect: "one worker fewer, never below 1",
    },
    Row {
        numbers: &[libc::SIGTSTP],
        action: SignalAction::Suspend,
        effect: "the workers stop and the supervisor with them, as Ctrl-Z stops a program that runs alone; CONT lets all of \
                 them go on",
    },
    Row {
        numbers: &[libc::SIGCHLD],
        action: SignalAction::Reap,
        effect: "adopted processes that have ended are reaped",
    },
    Row {
        numbers: &[libc::SIGUSR2],
        action: SignalAction::PassOn,
        effect: "passed on to every worker that has a handler for it (one without would die: it is skipped and logged); the \
                 first pauses the limits of all workers, the next resumes them, and so on",
    },
    Row {
        numbers: &[libc::SIGUSR1],
        action: SignalAction::Upgrade,
        effect: "upgrade in place: the program that is at this program's path now takes over with the same pid, and the \
                 workers are not touched",
    },
];

/// The number of every signal that the supervisor reads.
pub fn numbers() -> impl Iterator<Item = i32> {
    TABLE.iter().flat_map(|row| row.numbers).copied()
}

/// The names of the signals, such as `TERM, INT, QUIT`, and their effect, for the documentation.
#[must_use]
pub fn effects() -> Vec<(String, &'static str)> {
    let name = |number: &i32| signal_names::name(*number).trim_start_matches("SIG").to_owned();
    let names = |row: &Row| row.numbers.iter().map(name).collect::<Vec<_>>().join(", ");
    TABLE.iter().map(|row| (names(row), row.effect)).collect()
}

/// The signals, and the terminal that sends some of them.
pub(super) struct Signals {
    fd: SignalFd,
    pub(super) tty: Tty,
}

impl Signals {
    pub(super) fn new(config: &Config, fd: SignalFd, now: Time) -> Signals {
        let tty = Tty::new(config, &fd, now);
        Signals { fd, tty }
    }

    /// Handles the signals that have arrived.
    pub(super) fn read(&mut self, cx: &mut Context) {
        while let Some(received) = self.fd.next() {
            let row = TABLE.iter().find(|row| row.numbers.contains(&received.number));
            if let Some(row) = row {
                self.handle(cx, row.action, received);
            }
        }
        if let Err(error) = cx.poller.watch(self.fd.as_fd(), Token::Signals.encode()) {
            warn!("cannot watch signals: {error}; they are not read");
        }
    }

    fn handle(&mut self, cx: &mut Context, action: SignalAction, received: Received) {
        match action {
            SignalAction::ReloadOrHangUp => self.tty.hang_up(cx, received),
            SignalAction::Stop => cx.request(Event::Stop, cause(received)),
            // The terminal stops the supervisor's process group, because another process in it is in the background and
            // wants to read or write.
            SignalAction::ScaleUp | SignalAction::ScaleDown if received.sender == Sender::Kernel => {
                self.tty.suspend(cx, received.number);
            }
            SignalAction::ScaleUp if self.tty.is_lent => {
                warn!("ignored SIGTTIN: only one worker can read the terminal (--stdin inherit)");
            }
            SignalAction::ScaleUp => cx.request(Event::ScaleUp, cause(received)),
            SignalAction::ScaleDown => cx.request(Event::ScaleDown, cause(received)),
            SignalAction::Suspend => self.tty.suspend(cx, received.number),
            SignalAction::Reap => {
                // After the other events of this round of the loop, and what follows from them.
                cx.schedule(Duration::ZERO, Deferred::Reap);
                self.tty.handle_stops(cx);
            }
            SignalAction::PassOn => pass_on_usr2(cx, received),
            SignalAction::Upgrade => cx.request_upgrade(cause(received)),
        }
    }
}

/// Passes SIGUSR2 of the user on to the workers that handle it, and pauses or resumes the limits.
fn pass_on_usr2(cx: &mut Context, received: Received) {
    let mut unhandled = Vec::new();
    for entry in cx.workers.alive() {
        match signal_disposition::of(entry.pid, libc::SIGUSR2) {
            Some(SignalDisposition::Handled) => cx.workers.signal(entry.id, libc::SIGUSR2),
            Some(SignalDisposition::Ignored) => {}
            Some(SignalDisposition::Default) | None => unhandled.push(entry.id),
        }
    }
    if !unhandled.is_empty() {
        unhandled.sort_unstable();
        let workers = unhandled.len();
        let named: Vec<String> =
            unhandled.iter().take(NAMED).map(|worker| cx.workers.name(*worker).to_string()).collect();
        let mut names = named.join(", ");
        if workers > NAMED {
            names += &format!(" and {} more", workers - NAMED);
        }
        warn!(workers, "SIGUSR2 not passed on to {names}: without a handler it would end them");
    }
    cx.request(Event::ToggleMonitoring, cause(received));
    cx.meter.report_anew(None);
}

/// The signal and its sender: `SIGTERM from systemd (pid 1, uid 0)`.
fn cause(received: Received) -> String {
    let (signal, uid) = (signal_names::name(received.number), received.uid);
    match received.sender {
        Sender::Kernel => format!("{signal} from the terminal"),
        Sender::Outside => format!("{signal} from outside this PID namespace (uid {uid})"),
        Sender::Process(pid) => {
            // A sender that has ended by now has no name.
            let name = proc_stat::name(pid).unwrap_or_else(|| "a process".to_owned());
            format!("{signal} from {name} (pid {}, uid {uid})", pid.as_raw_pid())
        }
    }
}

/// The state of the terminal.
#[derive(Debug)]
pub(super) struct Tty {
    terminal: Option<Terminal>,
    ancestors: Ancestors,
    hangups: Hangups,
    /// Whether the terminal is given to the worker that reads it (`--stdin inherit`): then only one worker is possible.
    is_lent: bool,
    /// Whether the supervisor has switched the terminal's `tostop` off.
    tostop_is_off: bool,
    /// The last SIGHUP and its sender, for the log.
    last_hup: String,
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

/// What a supervisor hands over of the terminal. The rest is found anew.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct SavedTty {
    hangups: Hangups,
    tostop_is_off: bool,
    last_hup: String,
}

impl Tty {
    pub(super) fn save(&self) -> SavedTty {
        let (hangups, last_hup) = (self.hangups.clone(), self.last_hup.clone());
        SavedTty { hangups, tostop_is_off: self.tostop_is_off, last_hup }
    }

    /// Goes on with it.
    pub(super) fn take_over(&mut self, saved: SavedTty) {
        (self.hangups, self.last_hup) = (saved.hangups, saved.last_hup);
        self.tostop_is_off = saved.tostop_is_off;
    }

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
        Tty { terminal, ancestors, hangups, is_lent, tostop_is_off: false, last_hup: String::new() }
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

    pub(super) fn watch(&self, cx: &mut Context) {
        if let Some(terminal) = &self.terminal
            && let Err(error) = cx.poller.watch_hang_up(terminal.as_fd(), Token::Terminal.encode())
        {
            warn!("cannot watch the terminal: {error}; its end may go unnoticed");
        }
    }

    /// Whether the terminal is given to the only worker.
    pub(super) fn is_lent(&self) -> bool {
        self.is_lent
    }

    /// Whether there is a controlling terminal that can go away.
    pub(super) fn has_terminal(&self) -> bool {
        self.hangups.has_terminal()
    }

    /// Checks whether the terminal is gone: on an event of its watch, and at intervals, because the end of a session
    /// leader takes the terminal from all processes without waking the watch. The terminal's hangup sends SIGHUP, which
    /// stops the supervisor; a later SIGHUP is a reload.
    pub(super) fn check(&mut self, cx: &Context) {
        if self.hangups.has_terminal() && self.observe(cx, false) {
            debug!("the terminal is gone: the next SIGHUP from it stops all workers");
        }
    }

    /// Records whether the terminal is gone, and returns it. If a SIGHUP came `from_above`, the terminal of a wrapper
    /// counts as the supervisor's: `sudo` passes the signal on, and keeps the terminal that it has made for the
    /// supervisor.
    fn observe(&mut self, cx: &Context, from_above: bool) -> bool {
        let gone = self.terminal.as_ref().is_some_and(Terminal::is_gone)
            || from_above && self.ancestors.lost_terminal();
        if gone {
            self.hangups.terminal_gone(cx.now());
        }
        gone
    }

    /// Handles SIGHUP.
    fn hang_up(&mut self, cx: &mut Context, received: Received) {
        self.last_hup = cause(received);
        let from_above = match received.sender {
            Sender::Kernel | Sender::Outside => true,
            Sender::Process(pid) => self.ancestors.contain(pid),
        };
        if self.hangups.has_terminal() {
            self.observe(cx, from_above);
        }
        let verdict = self.hangups.signal(cx.now(), from_above);
        self.follow_hang_up(cx, verdict);
    }

    /// Continues the handling of a SIGHUP that waits for the state of the terminal.
    pub(super) fn continue_hang_up(&mut self, cx: &mut Context) {
        self.observe(cx, true);
        let verdict = self.hangups.looked(cx.now());
        self.follow_hang_up(cx, verdict);
    }

    fn follow_hang_up(&self, cx: &mut Context, verdict: Option<Hangup>) {
        match verdict {
            None => {}
            Some(Hangup::LookAgain(wait)) => cx.schedule(wait, Deferred::Hangup),
            Some(Hangup::Reload) => cx.request(Event::Reload, self.last_hup.clone()),
            Some(Hangup::Outlive) => {
                info!("ignored SIGHUP: the terminal is gone, and SIGHUP was ignored at the start (nohup)");
            }
            Some(Hangup::Stop) => cx.request(Event::Hangup, "SIGHUP, the terminal is gone".to_owned()),
        }
    }

    /// Whether the next worker gets the foreground of the terminal: it reads the terminal, and the shell has given the
    /// terminal to the supervisor.
    pub(super) fn next_worker_is_in_foreground(&self, workers: &Workers) -> bool {
        self.is_lent && self.foreground(workers) != Foreground::Other
    }

    fn foreground(&self, workers: &Workers) -> Foreground {
        let Some(group) = self.terminal.as_ref().and_then(Terminal::foreground) else {
            return Foreground::Other;
        };
        if Some(group) == terminal::own_group() {
            return Foreground::Ours;
        }
        workers.serial_of(group).map_or(Foreground::Other, Foreground::Worker)
    }

    /// Takes the terminal back from a worker that has ended. The worker is not reaped yet, so its process group's
    /// number is not reused. Returns true if the worker had the terminal and a key of the terminal ended it: without a
    /// supervisor, this would have ended the shell's job.
    pub(super) fn take_back_from(&self, workers: &Workers, serial: u64, exit: Option<Exit>) -> bool {
        if self.foreground(workers) != Foreground::Worker(serial) {
            return false;
        }
        self.take_back();
        // A shell reports with its exit code that a signal ended its program.
        let signal = match exit {
            Some(Exit::Signal { number, .. }) => number,
            Some(Exit::Code(code)) => code - 128,
            None => 0,
        };
        self.is_lent && matches!(signal, libc::SIGINT | libc::SIGQUIT)
    }

    /// Restores the terminal at the end.
    pub(super) fn restore(&mut self, workers: &Workers) {
        self.restore_tostop();
        // The foreground can still belong to a worker, for example to one that was killed and is not gone yet.
        if matches!(self.foreground(workers), Foreground::Worker(_)) {
            self.take_back();
        }
    }

    /// Handles stops and continuations of children. Without a terminal, only deliberate stops occur, and they need no
    /// handling.
    pub(super) fn handle_stops(&mut self, cx: &mut Context) {
        if self.terminal.is_none() {
            return;
        }
        for _ in 0..MAX_STOPS {
            let Ok(Some(paused)) = pidfd::next_paused() else {
                return;
            };
            let Some(serial) = cx.workers.serial_of(paused.pid) else { continue };
            let has_terminal = self.is_lent && self.foreground(&cx.workers) == Foreground::Worker(serial);
            if let Some(entry) = cx.workers.get_mut(serial) {
                entry.is_held = paused.by == Some(libc::SIGSTOP) && !has_terminal;
            }
            match paused.by {
                Some(number @ (libc::SIGTTIN | libc::SIGTTOU)) => {
                    self.stopped_by_terminal(cx, serial, number)
                }
                // Ctrl-Z reaches the process group in the foreground, and a program may then stop itself. For the
                // shell, the supervisor is the job.
                Some(libc::SIGTSTP | libc::SIGSTOP) if has_terminal => self.suspend(cx, libc::SIGTSTP),
                // The stop is deliberate, for example by a debugger or an operator.
                Some(_) | None => {}
            }
        }
        cx.schedule(Duration::ZERO, Deferred::Stops);
    }

    /// Handles a worker that the terminal stopped because it read (SIGTTIN) or wrote (SIGTTOU) from the background.
    fn stopped_by_terminal(&mut self, cx: &mut Context, serial: u64, number: i32) {
        let foreground = self.foreground(&cx.workers);
        if self.is_lent && foreground == Foreground::Other {
            // The supervisor stops as the program alone would: a background job that needs the terminal is stopped
            // until the shell brings it to the foreground.
            return self.suspend(cx, number);
        }
        let helped = self.grant(&cx.workers, serial, number, foreground);
        let Some(entry) = cx.workers.get_mut(serial) else { return };
        let (id, times) = (entry.id, entry.stops);
        entry.stops = entry.stops.saturating_add(1);
        if times == 0 && !(helped && self.is_lent) {
            let (name, signal) = (cx.workers.name(id), signal_names::name(number));
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
            return cx.workers.signal_group(id, Signal::CONT);
        }
        // Until the terminal is free, the worker stops again at once.
        let wait = match times {
            0 => Duration::ZERO,
            more => RESUME_AFTER.saturating_mul(2u32.saturating_pow(more - 1)).min(MAX_RESUME_WAIT),
        };
        cx.schedule(wait, Deferred::Resume(id, number));
    }

    /// Continues a worker that the terminal has stopped.
    pub(super) fn resume(&mut self, cx: &mut Context, worker: WorkerId, number: i32) {
        let foreground = self.foreground(&cx.workers);
        self.grant(&cx.workers, worker.serial, number, foreground);
        cx.workers.signal_group(worker, Signal::CONT);
    }

    /// Removes the cause of a worker's stop. Returns false if the supervisor may not.
    fn grant(&mut self, workers: &Workers, serial: u64, number: i32, foreground: Foreground) -> bool {
        match foreground {
            Foreground::Worker(other) => other == serial,
            Foreground::Other => false,
            Foreground::Ours if self.is_lent => {
                self.give_to(workers, serial);
                true
            }
            Foreground::Ours => {
                let Some(terminal) = self.terminal.as_ref().filter(|_| number == libc::SIGTTOU) else {
                    return false;
                };
                // The user's shell has put this job into the foreground, and the workers belong to it.
                let switched_off = terminal.set_tostop(false);
                self.tostop_is_off |= switched_off;
                switched_off
            }
        }
    }

    fn give_to(&self, workers: &Workers, serial: u64) {
        if let Some(entry) = workers.get(serial).filter(|entry| !entry.reaped) {
            self.set_foreground(entry.pid);
        }
    }

    /// Handles Ctrl-Z and the other stop signals of a job: the workers stop with the supervisor, and continue with it
    /// when the shell continues the job.
    fn suspend(&mut self, cx: &mut Context, number: i32) {
        // In an orphaned process group the kernel ignores the signal, as it does for a daemon.
        if terminal::is_group_orphaned() {
            if let Foreground::Worker(serial) = self.foreground(&cx.workers)
                && let Some(id) = cx.workers.get(serial).map(|entry| entry.id)
            {
                // The worker's group is not orphaned: its parent, the supervisor, can continue it.
                cx.workers.signal_group(id, Signal::CONT);
            }
            return;
        }
        let mut with_us: Vec<WorkerId> =
            cx.workers.alive().filter(|entry| !entry.is_held).map(|entry| entry.id).collect();
        with_us.sort_unstable_by_key(|worker| worker.serial);
        for worker in &with_us {
            cx.workers.signal_group(*worker, Signal::TSTP);
        }
        self.restore(&cx.workers);
        let since = Instant::now();
        signalfd::take_default_action(number);
        cx.exclude(since.elapsed());
        if self.is_lent
            && self.foreground(&cx.workers) == Foreground::Ours
            && let Some(reader) = with_us.last()
        {
            self.give_to(&cx.workers, reader.serial);
        }
        for worker in with_us {
            cx.workers.signal_group(worker, Signal::CONT);
        }
    }
}
