//! What each worker uses, and which signal ended it. Two sources measure it in the same units. This module makes no
//! decisions about workers.

mod choice;
pub mod ebpf;
mod examination;
mod exit_details;
mod inspector;
mod meter;
pub mod procfs;
mod threads;

pub use choice::Chosen;
pub use examination::{EbpfFacts, Examination, examine};
pub use exit_details::{ExitDetails, Killer};
pub use inspector::{Inspector, Members, Question, TIME_OUT};
pub use meter::Meter;
