//! Events of socket sharing, for the log.

use std::fmt;
use std::io;

use crate::policy::WorkerId;
use crate::sys::accept_queue::AcceptQueue;

/// A log event.
#[derive(Debug)]
pub enum Report {
    /// A worker listens on an address that had no listener.
    Listening {
        /// The address.
        address: String,
    },
    /// A worker's bind was refused.
    Refused {
        /// The worker.
        worker: WorkerId,
        /// The address.
        address: String,
        /// The reason.
        why: String,
    },
    /// An unrelated process holds an address that a worker binds.
    Held {
        /// The address.
        address: String,
        /// The process, and how to end it.
        by: String,
    },
    /// A process that an earlier supervisor has left held an address. It was ended, or could not be ended.
    TakenOver {
        /// The address.
        address: String,
        /// The process, and what became of it.
        what: String,
    },
    /// A worker's call could not be inspected. It is carried out unshared.
    Unseen {
        /// The worker.
        worker: WorkerId,
        /// The call.
        call: &'static str,
        /// The reason.
        error: io::Error,
    },
    /// The kernel refused the program that selects the workers for new connections of an address.
    NotSelected {
        /// The address.
        address: String,
        /// The reason.
        error: io::Error,
    },
    /// A socket file could not be moved to its path.
    NotRenamed {
        /// The address.
        address: String,
        /// The reason.
        error: io::Error,
    },
    /// A worker does not accept while connections wait for it.
    Stalled {
        /// The worker.
        worker: WorkerId,
        /// The address.
        address: String,
        /// The number of connections that wait.
        waiting: u32,
    },
    /// A stalled worker accepts again.
    Accepts {
        /// The worker.
        worker: WorkerId,
        /// The address.
        address: String,
    },
    /// A worker listens on a socket that it bound in a way that its filter does not see.
    Bypassed {
        /// The worker.
        worker: WorkerId,
        /// The address.
        address: String,
    },
    /// A worker that has been ready for a long time binds an address that no worker had before.
    Unshared {
        /// The worker.
        worker: WorkerId,
        /// The address.
        address: String,
    },
    /// A worker has the maximum number of kept listeners.
    TooManyListeners {
        /// The worker.
        worker: WorkerId,
        /// The maximum.
        limit: usize,
    },
    /// A queue cannot be watched.
    Unwatched {
        /// The reason.
        error: io::Error,
    },
    /// The accept queue of an address is full, or was since it was read last.
    QueueFull {
        /// The worker that has the listener alone.
        worker: Option<WorkerId>,
        /// The address.
        address: String,
        /// The queue.
        queue: FullQueue,
    },
    /// No worker listens on an address any more.
    Closed {
        /// The address.
        address: String,
    },
    /// Listeners of an earlier supervisor were taken over.
    Restored {
        /// The address.
        address: String,
        /// Their number.
        count: usize,
    },
    /// A listener of an earlier supervisor was not taken over.
    NotRestored {
        /// Its name at the service manager.
        name: String,
        /// The reason.
        why: &'static str,
    },
}

/// An accept queue that is full, or was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FullQueue {
    /// The queue, as it is now.
    pub queue: AcceptQueue,
    /// Whether it is that of a Unix socket.
    pub is_unix: bool,
    /// The backlog that the program passed to `listen`; `None`: the service manager called it.
    pub backlog: Option<i32>,
    /// Whether it is the same one after a reload. `listen` is not called again for it then, so it keeps its limit.
    pub survives_reload: bool,
    /// `net.core.somaxconn` of its network namespace; `None`: unknown.
    pub somaxconn: Option<u32>,
}

impl fmt::Display for FullQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AcceptQueue { length, limit } = self.queue;
        match self.queue.is_full() {
            true => write!(f, "is full ({length} connections, limit {limit}), ")?,
            false => write!(f, "was full (limit {limit}), ")?,
        }
        f.write_str(match (self.is_unix, self.queue.is_full()) {
            (true, _) => "new connections wait or get EAGAIN: ",
            (false, true) => "new connections are dropped: ",
            (false, false) => "connections were dropped: ",
        })?;
        let backlog = match self.backlog {
            Some(backlog) => format!("listen was called with a backlog of {backlog}"),
            None => "the service manager called listen".to_owned(),
        };
        let somaxconn = match self.somaxconn {
            Some(number) => format!("net.core.somaxconn is {number}"),
            None => "net.core.somaxconn of its network namespace is not known".to_owned(),
        };
        // A negative backlog is the largest one: listen(2) takes the number as unsigned.
        let is_capped = self.backlog.is_some_and(|backlog| backlog.cast_unsigned() > limit);
        let was_raised = self.somaxconn.is_some_and(|now| now > limit);
        let remedy = match (self.backlog, is_capped, was_raised, self.survives_reload) {
            (None, ..) => "raise it and Backlog= of the socket unit",
            (Some(_), false, ..) => "pass a larger backlog",
            (Some(_), true, false, false) => "raise it and reload",
            (Some(_), true, false, true) => "raise it and restart the supervisor",
            (Some(_), true, true, false) => "it was less then: reload",
            (Some(_), true, true, true) => "it was less then: restart the supervisor",
        };
        write!(f, "{backlog}, {somaxconn}; {remedy}, or use more workers")
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Report::Listening { address } => write!(f, "listening on {address}, shared by all workers"),
            Report::Refused { address, why, .. } => write!(f, "cannot bind {address}: {}", without_call(why)),
            Report::Held { address, by } => write!(f, "{address} is held by {by}"),
            Report::TakenOver { what, .. } => f.write_str(what),
            Report::Unseen { call, error, .. } => {
                write!(f, "cannot inspect its {call} call: {error}; the address is not shared")
            }
            Report::NotSelected { address, error } => {
                write!(
                    f,
                    "cannot choose the workers for new connections of {address}: SO_ATTACH_REUSEPORT_CBPF: {error}; all of \
                     them get some"
                )
            }
            Report::NotRenamed { address, error } => {
                write!(
                    f,
                    "cannot put the new workers' socket at {address}: renameat2: {error}; clients still reach the old one"
                )
            }
            Report::Stalled { address, waiting, .. } => {
                write!(
                    f,
                    "is not accepting on {address} ({waiting} connections queued): routing new connections to other workers"
                )
            }
            Report::Accepts { address, .. } => write!(f, "is accepting on {address} again"),
            Report::Bypassed { address, .. } => write!(
                f,
                "listens on {address} through io_uring or system calls of another architecture: this socket is not shared"
            ),
            Report::Unshared { address, .. } => write!(
                f,
                "bound {address} long after it was ready, and no worker listened there before: the address is not \
                 shared (name it with --share-only to share it)"
            ),
            Report::TooManyListeners { limit, .. } => {
                write!(f, "has {limit} listeners, the most that are shared: further ones are not shared")
            }
            Report::Unwatched { error } => {
                write!(
                    f,
                    "cannot watch a queue: epoll_ctl: {error}; a worker that stops accepting may go unnoticed"
                )
            }
            Report::QueueFull { address, queue, .. } => write!(f, "accept queue of {address} {queue}"),
            Report::Closed { address } => write!(f, "closed {address}: no worker listens on it"),
            Report::Restored { address, count } => {
                let listeners = if *count == 1 { "listener" } else { "listeners" };
                write!(
                    f,
                    "took over {count} {listeners} of {address} from the service manager: connections wait there"
                )
            }
            Report::NotRestored { name, why } => {
                write!(f, "closed {name} of the service manager: {why}; connections that wait there are lost")
            }
        }
    }
}

/// The reason without the call that the line names already: `bind: Address already in use` becomes `address already
/// in use`.
fn without_call(why: &str) -> String {
    let Some(reason) = why.strip_prefix("bind: ") else { return why.to_owned() };
    let mut letters = reason.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_names_what_limits_it_and_what_to_do() {
        let line = |length, limit, backlog, somaxconn, is_unix| {
            let queue = AcceptQueue { length, limit };
            FullQueue { queue, is_unix, backlog, survives_reload: false, somaxconn }.to_string()
        };
        assert_eq!(
            line(9, 8, Some(8), Some(4096), false),
            "is full (9 connections, limit 8), new connections are dropped: listen was called with a backlog of 8, \
             net.core.somaxconn is 4096; pass a larger backlog, or use more workers"
        );
        let ends = |line: String, end: &str| {
            assert!(line.ends_with(&format!("; {end}, or use more workers")), "{line}")
        };
        ends(line(129, 128, Some(511), Some(128), false), "raise it and reload");
        ends(line(129, 128, Some(-1), None, false), "raise it and reload");
        ends(line(129, 128, Some(511), Some(4096), false), "it was less then: reload");
        ends(line(129, 128, None, Some(128), false), "raise it and Backlog= of the socket unit");
        let kept = |somaxconn| {
            let queue = AcceptQueue { length: 129, limit: 128 };
            FullQueue { queue, is_unix: false, backlog: Some(4096), survives_reload: true, somaxconn }
                .to_string()
        };
        ends(kept(Some(128)), "raise it and restart the supervisor");
        ends(kept(Some(4096)), "it was less then: restart the supervisor");
        let was = line(3, 8, Some(8), None, false);
        assert!(was.starts_with("was full (limit 8), connections were dropped: "), "{was}");
        assert!(was.contains("net.core.somaxconn of its network namespace is not known"), "{was}");
        assert!(line(9, 8, Some(8), Some(8), true).contains("new connections wait or get EAGAIN"));
    }

    #[test]
    fn a_refused_bind_names_the_address_and_the_reason_once() {
        let line = |why: &str| {
            let worker = WorkerId { slot: 0, serial: 1 };
            Report::Refused { worker, address: "[::]:80".to_owned(), why: why.to_owned() }.to_string()
        };
        assert_eq!(line("bind: Permission denied"), "cannot bind [::]:80: permission denied");
        assert_eq!(line("stat: Permission denied"), "cannot bind [::]:80: stat: Permission denied");
    }
}
