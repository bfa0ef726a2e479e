//! Sharing of listening addresses between workers.
//!
//! Every worker binds and listens with its own socket and its own privileges. [`Broker`] answers the calls that the
//! workers' seccomp filters send to the supervisor. It lets the kernel bind, puts the sockets of an address into one
//! group, and keeps a copy of each listener, so that its queue outlives its worker. `core` decides without any I/O;
//! the other modules gather facts and carry out the decisions.

mod address;
mod bind;
mod bind_path;
mod broker;
mod caller;
mod calls;
mod copies;
mod core;
mod listen_fds;
mod listening;
mod looks;
mod occupants;
mod options;
mod paths;
mod queues;
mod readiness;
mod removals;
mod report;
mod selection;
mod stall;
mod unix;
mod upkeep;

pub use broker::{Broker, Decision, Listens, Reply};
pub use core::CLOSE_CHECK;
pub use listen_fds::{InheritedListeners, OpenError};
pub use occupants::{Answerer, Takeover};
pub use queues::Watch;
pub use readiness::{Because, Missing};
pub use report::Report;
pub use unix::{Access, Refused};
