//! What to do about the workers, decided without doing it.
//!
//! [`Supervisor`] is a state machine: an [`Event`] and the time go in, [`Action`]s and one deadline come
//! out. It has no clock, descriptor, pid or I/O, so every history can be played in virtual time. Handlers
//! record what happened; one function, `settle`, compares a slot with what it should be and pushes the
//! difference.

mod backoff;
mod event;
mod hangup;
mod leave;
mod limits;
mod monitor;
mod reload;
mod replacement_queue;
mod rollout;
mod settings;
mod settle;
mod slot;
mod start_times;
mod supervisor;
mod throttle;
mod time;
mod timers;

#[cfg(test)]
mod tests;

pub use event::{
    Action, Busiest, Event, FailedStart, LaunchFailure, Measured, Next, NoPss, Note, OverLimit, Pss, Queue,
    ReadyBy, Sign, Usage, WorkerId,
};
pub use hangup::{Hangup, Hangups};
pub use limits::Limit;
pub use settings::Settings;
pub use supervisor::{Outcome, Supervisor};
pub use time::Time;
