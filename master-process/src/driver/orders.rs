//! What the supervisor does on a signal.

use super::Driver;
use crate::policy::Event;
use crate::sys::signalfd::{Received, Sender};
use crate::sys::{proc_stat, signal_names};

/// Signals, and what they do, in the order of the table in the documentation.
pub const TABLE: [(&str, &str); 8] = [
    (
        "HUP",
        "reload: new workers start, and each old one is asked to leave when its own successor is ready; when the controlling terminal is gone: stop, unless HUP was ignored at the start (nohup)",
    ),
    (
        "TERM, INT, QUIT",
        "stop every worker, clean the sockets up, exit 0; a second one, more than 500 ms later, kills what is left at once",
    ),
    ("TTIN", "one worker more"),
    ("TTOU", "one worker fewer, never below 1"),
    (
        "TSTP",
        "the workers stop and the supervisor with them, as Ctrl-Z stops a program that runs alone; CONT lets all of them go on",
    ),
    ("CHLD", "orphans that were handed to the supervisor are reaped"),
    (
        "USR2",
        "passed on to every worker that has a handler for it (one without would die: it is skipped and logged); the first pauses the limits of all workers, the next lets them hold again, and so on",
    ),
    ("USR1", "nothing yet: logged, and harmless"),
];

/// What a signal asks for.
enum Order {
    Tell(Event),
    Stop(Received),
    HangUp(Sender),
    Suspend(i32),
    ScaleUp,
    Reap,
    PassOn,
    NotYet(&'static str),
    Nothing,
}

impl Order {
    fn of(received: Received) -> Order {
        match received.number {
            libc::SIGHUP => Order::HangUp(received.sender),
            libc::SIGTSTP => Order::Suspend(libc::SIGTSTP),
            // The terminal stops our process group, because another process in it is in the background and wants to read or
            // write: nobody asks for workers.
            number @ (libc::SIGTTIN | libc::SIGTTOU) if received.sender == Sender::Kernel => {
                Order::Suspend(number)
            }
            libc::SIGTERM | libc::SIGINT | libc::SIGQUIT => Order::Stop(received),
            libc::SIGTTIN => Order::ScaleUp,
            libc::SIGTTOU => Order::Tell(Event::ScaleDown),
            libc::SIGCHLD => Order::Reap,
            libc::SIGUSR1 => Order::NotYet("SIGUSR1"),
            libc::SIGUSR2 => Order::PassOn,
            _unasked => Order::Nothing,
        }
    }
}

impl Driver {
    /// Does what the signals that have come ask for.
    pub(super) fn read_signals(&mut self) {
        while let Some(received) = self.signals.next() {
            match Order::of(received) {
                Order::Tell(event) => self.event(event),
                Order::Stop(received) => {
                    self.stop_cause = cause(received);
                    self.event(Event::Stop);
                }
                Order::HangUp(sender) => self.hang_up(sender),
                Order::Suspend(number) => self.suspend(number),
                Order::ScaleUp if self.tty.is_lent() => {
                    tracing::warn!(
                        "ignored SIGTTIN: only one worker can read the terminal (--stdin inherit)"
                    );
                }
                Order::ScaleUp => self.event(Event::ScaleUp),
                Order::Reap => {
                    self.reap_orphans();
                    self.look_at_stops();
                }
                Order::PassOn => self.pass_on_usr2(),
                Order::NotYet(what) => tracing::info!("ignored {what}: not used in this version"),
                Order::Nothing => {}
            }
        }
        self.watch_signals();
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
