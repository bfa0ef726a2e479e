//! What each worker uses and how it was killed, from one of two sources with the same units. Nothing here judges.

mod choice;
pub mod ebpf;
mod inspector;
mod killer;
mod meter;
pub mod procfs;
mod threads;

pub use inspector::{Inspector, Members, Question, TIME_OUT};
pub use killer::{Killer, LastWords};
pub use meter::Meter;
