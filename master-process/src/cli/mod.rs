//! From arguments and environment to [`Config`].
//!
//! Text comes in, plain data goes out: whatever has to be asked of the host is asked through [`Env`], once, here, so
//! that nothing after start-up parses or looks up again. The first value that does not parse ends it with one line.

mod accounts;
mod batch;
mod capabilities;
mod choice;
mod clap_error;
mod command;
mod count;
mod cpus;
mod directory;
mod duration;
mod env;
mod error;
mod give_up;
mod identity;
mod limits;
mod listen;
mod name_service;
mod octal;
mod options;
mod owner;
mod percent;
mod readme;
mod ready;
mod resolver;
mod settings;
mod share_rules;
mod signal;
mod size;
#[cfg(test)]
mod testing;
mod verbosity;
mod workers;

use std::ffi::OsString;

use clap::error::ErrorKind;

use crate::config::Config;

pub use accounts::{User, UserKey};
pub use env::{Env, ProcessEnv};
pub use error::UsageError;
pub use options::{Kind, OPTIONS, Opt, Unset};
pub use readme::option_table;

/// What the command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Supervise; everything is resolved and valid.
    Run(Box<Config>),
    /// Print this on stdout and leave with 0; ends with a newline.
    Help(String),
    /// Print this on stdout and leave with 0; ends with a newline.
    Version(String),
}

/// Reads arguments, the first of which is the program's own name, and the environment.
///
/// # Errors
///
/// One line for the user on the first thing that is wrong.
pub fn parse(args: impl Iterator<Item = OsString>, env: &dyn Env) -> Result<Command, UsageError> {
    let mut clap = command::build();
    let mut matches = match clap.try_get_matches_from_mut(args) {
        Ok(matches) => matches,
        Err(answer) if answer.kind() == ErrorKind::DisplayHelp => {
            return Ok(Command::Help(answer.render().to_string()));
        }
        Err(answer) if answer.kind() == ErrorKind::DisplayVersion => {
            return Ok(Command::Version(answer.render().to_string()));
        }
        Err(error) => return Err(clap_error::reduce(&error)),
    };
    let worker = command::worker(&mut matches)?;
    let resolver = resolver::Resolver::new(&matches, env);
    Ok(Command::Run(Box::new(settings::config(worker, &resolver)?)))
}

#[cfg(test)]
mod tests;
