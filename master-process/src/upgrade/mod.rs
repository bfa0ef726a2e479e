//! Upgrade in place: another version of this program takes over with the same pid, and the workers are not touched.
//!
//! The supervisor writes its state ([`State`]) into sealed memory and has the new program read it
//! ([`check`](answer_check)). If that accepts it, the supervisor executes it with the state and the open descriptors.
//! The new program goes on from there, or executes the old one again ([`Handover::go_back`]). `driver/upgrade.rs` carries
//! it out; each part of the supervisor has its own `save` and `resume`.

mod check;
mod handover;
mod program;

use std::ffi::OsString;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::driver;
use crate::sys::handover::Described;

pub use check::{ANSWER_FD, Answer, CHECK, PROGRAM_FD, STATE_FD, answer_check, is_check};
pub use handover::{Handover, VARIABLE, environment};
pub use program::{NewProgram, OwnProgram};

/// The version of the form of the state. A program reads the states of its own number; what a later version adds
/// without another number can be ignored.
pub const SCHEMA: u32 = 1;

/// The state of a supervisor that is handed over.
#[derive(Debug, Serialize, Deserialize)]
pub struct State {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The version of the program that wrote it.
    pub version: String,
    /// When it stopped to handle events, by the monotonic clock.
    pub paused_at: u64,
    /// The command line.
    pub arguments: Vec<Argument>,
    /// The path of the program.
    #[serde(with = "crate::forms::path")]
    pub program: PathBuf,
    /// The descriptors that are handed over.
    pub descriptors: Vec<Described>,
    /// What the driver goes on from.
    pub driver: driver::Saved,
}

/// An argument of the command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Argument(#[serde(with = "crate::forms::path")] pub OsString);

/// The version of this program, as logs and events name it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

impl State {
    /// Reads a state.
    ///
    /// # Errors
    /// Why it is not one of this version.
    pub fn parse(bytes: &[u8]) -> Result<State, String> {
        #[derive(Deserialize)]
        struct Schema {
            schema: u32,
        }
        let schema =
            |schema| format!("the state has schema {schema}, and this version reads schema {SCHEMA}");
        match serde_json::from_slice::<State>(bytes) {
            Ok(state) if state.schema == SCHEMA => Ok(state),
            Ok(state) => Err(schema(state.schema)),
            Err(error) => {
                // Another form may be the reason.
                let other = serde_json::from_slice(bytes).ok().map(|Schema { schema }| schema);
                let other = other.filter(|other| *other != SCHEMA);
                Err(other.map_or_else(|| format!("the state is not readable: {error}"), schema))
            }
        }
    }
}

#[cfg(test)]
mod tests;
