//! What the user reads.

mod certificate;
mod format;
mod lines;
mod setup;
mod shorten;
mod span;
mod writer;

pub use certificate::Certificate;
pub use lines::{Named, banner, launch_failed, note, start_failure};
pub use setup::start_logging;
pub use span::Span;
