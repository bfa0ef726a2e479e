//! The policy, played in virtual time against a kernel that is slow and bounded.

mod hangup;
mod histories;
mod lifecycle;
mod limits;
mod reload;
mod remains;
mod sim;
