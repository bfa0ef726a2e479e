//! One address, many workers: the sockets that we hold for them.
//!
//! [`Broker`] answers the calls that the workers' filters send us, from a table of sockets
//! of our own: every worker that binds an address is given ours in the place of its own. No worker is
//! special, the first neither, and between two workers the connections wait in our socket's queue.

mod address;
mod binding;
mod broker;
mod caller;
mod calls;
mod generations;
mod handed;
mod lanes;
mod listening;
mod orphans;
mod remark;
mod renaming;
mod rotation;
mod steering;
mod stillness;
mod sweep;
mod table;
mod unix;
mod watch;
mod workers;

pub use broker::{Broker, Listens, Reply};
pub use handed::{HandedOver, OpenError};
pub use remark::Remark;
pub use unix::{Access, Refused};
pub use watch::Watch;
