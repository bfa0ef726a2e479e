//! What comes up while sockets are shared, and the user may want to know.

use std::fmt;
use std::io;

use crate::policy::WorkerId;

/// Something to tell.
#[derive(Debug)]
pub enum Report {
    /// A worker listens on an address that nobody did.
    Listening {
        /// Which.
        address: String,
    },
    /// A worker cannot have an address, and is told so.
    Refused {
        /// Who.
        worker: WorkerId,
        /// Which.
        address: String,
        /// Why.
        why: String,
    },
    /// A process that is no worker of ours holds an address that one wants.
    Held {
        /// Which.
        address: String,
        /// Who, and what can be done about it.
        by: String,
    },
    /// What an earlier supervisor has left behind held an address, and was ended, or could not be.
    TakenOver {
        /// Which.
        address: String,
        /// What became of whom.
        what: String,
    },
    /// A worker's call could not be looked at: it is carried out unshared.
    Unseen {
        /// Who.
        worker: WorkerId,
        /// What it called.
        call: &'static str,
        /// Why we cannot look.
        error: io::Error,
    },
    /// The kernel does not let us choose who gets new connections of an address.
    NotSelected {
        /// Which.
        address: String,
        /// Why.
        error: io::Error,
    },
    /// A socket file could not be put in its place.
    NotRenamed {
        /// Which.
        address: String,
        /// Why.
        error: io::Error,
    },
    /// A worker has stopped accepting while connections wait for it.
    Stalled {
        /// Who.
        worker: WorkerId,
        /// Where.
        address: String,
        /// How many wait.
        waiting: u32,
    },
    /// It accepts again.
    Accepts {
        /// Who.
        worker: WorkerId,
        /// Where.
        address: String,
    },
    /// A worker listens on what it has bound by a way that its filter does not see.
    Bypassed {
        /// Who.
        worker: WorkerId,
        /// Where.
        address: String,
    },
    /// A worker that has long been ready binds an address that no worker had before.
    Unshared {
        /// Who.
        worker: WorkerId,
        /// Which.
        address: String,
    },
    /// A worker has as many listeners as are kept of one.
    TooManyListeners {
        /// Who.
        worker: WorkerId,
        /// How many.
        limit: usize,
    },
    /// A queue cannot be watched.
    Unwatched {
        /// Why.
        error: io::Error,
    },
    /// No worker listens on an address any more.
    Closed {
        /// Which.
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

/// The reason without the call that the line names already: `bind: Address already in use` is `address already in use`.
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
