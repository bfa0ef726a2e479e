//! Tests of the policy in virtual time, against a simulated kernel that is slow and bounded.

mod defaults;
mod gate;
mod hangup;
mod histories;
mod lifecycle;
mod limits;
mod preload;
mod pss;
mod reload;
mod remains;
mod replacement_queue;
mod saved;
mod sim;
mod sparse;
mod steering;
