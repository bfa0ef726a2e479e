//! The log.

mod exit_report;
mod format;
mod late;
mod lines;
mod requested;
mod setup;
mod shorten;
mod size;
mod span;
mod spanless;
mod upgrade;
mod writer;

pub use exit_report::ExitReport;
pub use late::{FailedReload, late, reload_failed, slow, waits};
pub use lines::{Named, banner, launch_failed, note, start_failure};
pub use requested::requested;
pub use setup::start_logging;
pub(crate) use setup::wants_colour;
pub use size::Size;
pub use span::Span;
pub use upgrade::{came_back, closed_descriptors, upgraded};
