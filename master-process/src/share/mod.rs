//! Sharing of listening addresses between workers.
//!
//! Every worker binds and listens with its own socket and its own privileges. [`Broker`] answers the calls that the
//! workers' seccomp filters send to the supervisor. It lets the kernel bind, puts the sockets of an address into one
//! group, and keeps a copy of each listener, so that its queue outlives its worker. `core` decides without any I/O; the
//! other modules gather facts and carry out the decisions. A call comes to `broker.rs`, which hands it to `bind.rs`,
//! `listening.rs` or `paths.rs`.

mod address;
mod bind;
mod broker;
mod call;
mod caller_socket;
mod callers;
mod copies;
mod core;
mod kept;
mod listen_fds;
mod listening;
mod occupants;
mod path_use;
mod paths;
mod queue_history;
mod queues;
mod readiness;
mod report;
mod scans;
mod selection;
mod sockets;
mod stall;
mod unix;
mod unix_queues;

pub use broker::{Broker, Saved};
pub use call::{Decision, Listens, Reply};
pub use core::CLOSE_CHECK;
pub use listen_fds::{InheritedListeners, OpenError};
pub use occupants::{Answerer, Takeover};
pub use queues::{AcceptQueues, QueueTotals};
pub use readiness::{Because, Missing};
pub use report::{FullQueue, Report};
pub use selection::HostSelection;
pub use sockets::Watch;
pub use unix::{Access, Refused};
