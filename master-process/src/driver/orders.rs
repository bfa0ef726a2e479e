//! What the supervisor does on a signal.

use super::Driver;
use crate::policy::Event;

/// Signals, and what they do, in the order of the README's table.
pub const TABLE: [(&str, &str); 7] = [
    ("HUP", "reload: new workers start, and each old one is asked to leave when its own successor is ready"),
    (
        "TERM, INT, QUIT",
        "stop every worker, clean the sockets up, exit 0; a second one, more than 500 ms later, kills what is left at once",
    ),
    ("TTIN", "one worker more"),
    ("TTOU", "one worker fewer, never below 1"),
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
    Reap,
    PassOn,
    NotYet(&'static str),
    Nothing,
}

impl Order {
    fn of(number: i32) -> Order {
        match number {
            libc::SIGHUP => Order::Tell(Event::Reload),
            libc::SIGTERM | libc::SIGINT | libc::SIGQUIT => Order::Tell(Event::Stop),
            libc::SIGTTIN => Order::Tell(Event::ScaleUp),
            libc::SIGTTOU => Order::Tell(Event::ScaleDown),
            libc::SIGCHLD => Order::Reap,
            libc::SIGUSR1 => Order::NotYet("SIGUSR1: taking over in place is not in this version"),
            libc::SIGUSR2 => Order::PassOn,
            _unasked => Order::Nothing,
        }
    }
}

impl Driver {
    /// Does what the signals that have come ask for.
    pub(super) fn read_signals(&mut self) {
        while let Some(number) = self.signals.next() {
            match Order::of(number) {
                Order::Tell(event) => self.event(event),
                Order::Reap => self.reap_orphans(),
                Order::PassOn => self.pass_on_usr2(),
                Order::NotYet(what) => tracing::info!("{what}; nothing was done"),
                Order::Nothing => {}
            }
        }
        self.watch_signals();
    }
}
