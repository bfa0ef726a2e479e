//! Decides what to do about the workers, without doing it.
//!
//! [`Supervisor`] is a state machine: an [`Event`] and the time go in, [`Action`]s and one deadline come out. It has
//! no clock, descriptor, pid or I/O, so that tests can run every history in virtual time. Handlers record what
//! happened. One function, `reconcile`, compares a slot with its desired state and pushes the actions that lead
//! there.

mod event;
mod gate;
mod hangup;
mod limits;
mod preload;
mod reconcile;
mod reload;
mod replacements;
mod saved;
mod scale;
mod settings;
mod slot;
mod start_times;
mod stopping;
mod supervisor;
mod throttle;
mod time;
mod view;

#[cfg(test)]
mod tests;

pub use event::{
    Action, Before, Busiest, Event, FailedStart, LaunchFailure, Measured, Next, NoPss, OverLimit, Pss, Queue,
    ReadyBy, ReadySignal, Report, Usage, WorkerId,
};
pub use hangup::{Hangup, Hangups};
pub use limits::Limit;
pub use preload::{AfterPreload, PRELOAD, PreloadFailure};
pub use saved::Saved;
pub use settings::Settings;
pub use supervisor::{Outcome, Supervisor};
pub use time::Time;
pub use view::{Progress, WorkerState, WorkerView};
