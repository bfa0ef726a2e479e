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
            Report::Refused { address, why, .. } => write!(f, "cannot have {address}: {why}"),
            Report::Held { address, by } => write!(f, "{address} is held by {by}"),
            Report::TakenOver { what, .. } => f.write_str(what),
            Report::Unseen { call, error, .. } => {
                write!(f, "its {call} cannot be looked into ({error}): its address is not shared")
            }
            Report::NotSelected { address, error } => {
                write!(
                    f,
                    "{address}: new connections go to all workers alike: SO_ATTACH_REUSEPORT_CBPF: {error}"
                )
            }
            Report::NotRenamed { address, error } => {
                write!(f, "{address}: the new workers' socket cannot be put there: renameat2: {error}")
            }
            Report::Stalled { address, waiting, .. } => {
                write!(f, "does not accept on {address}, where {waiting} wait: new connections go to others")
            }
            Report::Accepts { address, .. } => write!(f, "accepts on {address} again"),
            Report::Bypassed { address, .. } => write!(
                f,
                "listens on {address} by io_uring or by calls of another architecture: that is not shared"
            ),
            Report::Unshared { address, .. } => write!(
                f,
                "binds {address} long after it was ready, where no worker listened before: such addresses are not \
                 shared (--share-only names those that are)"
            ),
            Report::TooManyListeners { limit, .. } => {
                write!(f, "has {limit} listeners: what it opens beyond is not shared")
            }
            Report::Unwatched { error } => {
                write!(f, "epoll_ctl: {error}: a worker that does not accept may not be noticed")
            }
            Report::Closed { address } => write!(f, "no worker listens on {address} any more: it is closed"),
        }
    }
}
