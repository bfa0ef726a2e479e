//! Events of socket sharing, for the log.

use std::fmt;
use std::io;

use crate::policy::WorkerId;

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
    /// No worker listens on an address any more.
    Closed {
        /// The address.
        address: String,
    },
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
            Report::Closed { address } => write!(f, "closed {address}: no worker listens on it"),
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
    fn a_refused_bind_names_the_address_and_the_reason_once() {
        let line = |why: &str| {
            let worker = WorkerId { slot: 0, serial: 1 };
            Report::Refused { worker, address: "[::]:80".to_owned(), why: why.to_owned() }.to_string()
        };
        assert_eq!(line("bind: Permission denied"), "cannot bind [::]:80: permission denied");
        assert_eq!(line("stat: Permission denied"), "cannot bind [::]:80: stat: Permission denied");
    }
}
