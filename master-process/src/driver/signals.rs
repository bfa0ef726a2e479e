//! The signals that the supervisor reads, and what each of them does.

use super::Driver;
use crate::policy::Event;
use crate::sys::signalfd::{Received, Sender};
use crate::sys::{proc_stat, signal_names};

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
    Ignore,
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
        action: SignalAction::Ignore,
        effect: "none in this version: it is logged",
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

impl Driver {
    /// Handles the signals that have arrived.
    pub(super) fn read_signals(&mut self) {
        while let Some(received) = self.signals.next() {
            let row = TABLE.iter().find(|row| row.numbers.contains(&received.number));
            if let Some(row) = row {
                self.handle_signal(row.action, received);
            }
        }
        self.watch_signals();
    }

    fn handle_signal(&mut self, action: SignalAction, received: Received) {
        match action {
            SignalAction::ReloadOrHangUp => self.hang_up(received.sender),
            SignalAction::Stop => {
                self.stop_cause = cause(received);
                self.event(Event::Stop);
            }
            // The terminal stops the supervisor's process group, because another process in it is in the background and
            // wants to read or write.
            SignalAction::ScaleUp | SignalAction::ScaleDown if received.sender == Sender::Kernel => {
                self.suspend(received.number);
            }
            SignalAction::ScaleUp if self.tty.is_lent() => {
                tracing::warn!("ignored SIGTTIN: only one worker can read the terminal (--stdin inherit)");
            }
            SignalAction::ScaleUp => self.event(Event::ScaleUp),
            SignalAction::ScaleDown => self.event(Event::ScaleDown),
            SignalAction::Suspend => self.suspend(received.number),
            SignalAction::Reap => {
                self.reap_orphans();
                self.look_at_stops();
            }
            SignalAction::PassOn => self.pass_on_usr2(),
            SignalAction::Ignore => {
                let signal = signal_names::name(received.number);
                tracing::info!("ignored {signal}: not used in this version");
            }
        }
    }
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
