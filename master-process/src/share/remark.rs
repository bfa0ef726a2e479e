//! What comes up while sockets are shared, and the user may want to know.

use std::fmt;
use std::io;

use crate::policy::WorkerId;

/// Something to tell.
#[derive(Debug)]
pub enum Remark {
    /// We hold a new address from now on.
    Holds {
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
    NotSteered {
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
    Hung {
        /// Who.
        worker: WorkerId,
        /// Where.
        address: String,
        /// How many wait.
        waiting: u32,
    },
    /// It accepts again.
    Moves {
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
    /// Nobody has an address open any more: we let it go.
    LetGo {
        /// Which.
        address: String,
    },
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Remark::Holds { address } => write!(f, "listening on {address}, shared by all workers"),
            Remark::Refused { address, why, .. } => write!(f, "cannot have {address}: {why}"),
            Remark::Unseen { call, error, .. } => {
                write!(f, "its {call} cannot be looked into ({error}): its address is not shared")
            }
            Remark::NotSteered { address, error } => {
                write!(
                    f,
                    "{address}: new connections go to all workers alike: SO_ATTACH_REUSEPORT_CBPF: {error}"
                )
            }
            Remark::NotRenamed { address, error } => {
                write!(f, "{address}: the new workers' socket cannot be put there: renameat2: {error}")
            }
            Remark::Hung { address, waiting, .. } => {
                write!(f, "does not accept on {address}, where {waiting} wait: new connections go to others")
            }
            Remark::Moves { address, .. } => write!(f, "accepts on {address} again"),
            Remark::Bypassed { address, .. } => write!(
                f,
                "listens on {address} by io_uring or by calls of another architecture: that is not shared"
            ),
            Remark::LetGo { address } => write!(f, "no worker listens on {address} any more: it is closed"),
        }
    }
}
