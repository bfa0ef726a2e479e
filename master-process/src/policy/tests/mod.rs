//! The policy, played in virtual time against a kernel that is slow and bounded.

mod defaults;
mod histories;
mod lifecycle;
mod limits;
mod pss;
mod reload;
mod replacement_queue;
mod sim;
