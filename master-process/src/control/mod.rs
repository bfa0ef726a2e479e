//! The control socket: what a supervisor tells of itself, and what can be asked of it.
//!
//! [`Snapshot`] is the one model of the state, [`Event`] that of what happens; both sides of the socket, and all
//! commands, use them. `docs/control.md` is the protocol.

mod accepting;
mod clients;
mod connection;
mod event;
mod journal;
mod location;
mod log_limit;
mod protocol;
mod rate;
mod ring;
mod server;
mod snapshot;

/// The version of the protocol. Fields are only ever added.
pub const SCHEMA: u32 = 1;

pub(crate) use accepting::Accepting;
pub use accepting::NextAccept;
pub(crate) use connection::{Broken, Connection, SavedConnection, Watch};
pub use event::Event;
pub use journal::{End, Journal, Restarts, SavedJournal};
pub(crate) use journal::{ReloadRecord, seconds, time};
pub use location::{
    MAX_NAME, MAX_NUMBER, create, default_name, directories, file_name, instances, is_name, name_of,
};
pub(crate) use log_limit::LogLimit;
pub use protocol::{Accepted, ErrorReply, Line, MAX_REQUEST, Reply, Request, Why, parse_request};
pub(crate) use rate::{REQUESTS, Rate};
pub(crate) use ring::{Ended, What};
pub use server::{Asked, SavedServer, Server};
pub use snapshot::{
    CgroupLimits, Durations, EndReason, FailedReload, LastEnd, Preload, Process, Reload, ReloadState,
    ReloadTotals, Sender, Snapshot, Stamp, State, Upgraded, Worker, WorkerState,
};
