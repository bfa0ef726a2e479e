//! What each worker uses and how it was killed, from one of two sources with the same units. Nothing here judges.

mod killer;

pub use killer::{Killer, LastWords};
