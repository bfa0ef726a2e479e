//! One address, many workers: the sockets that we hold for them.
//!
//! [`Broker`] answers the calls that the workers' filters send us, from a [`Table`](table::Table) of sockets
//! of our own: every worker that binds an address is given ours in the place of its own. No worker is
//! special, the first neither, and between two workers the connections wait in our socket's queue.

mod address;
mod broker;
mod caller;
mod handed;
mod table;
mod unix;

pub use broker::{Broker, Remark, Reply};
pub use handed::{HandedOver, OpenError};
pub use unix::{Access, Refused};
