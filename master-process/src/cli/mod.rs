//! From the command line and the environment to [`Config`].
//!
//! The table of options holds the parser and the default of each value, and clap applies them. Everything that needs an
//! answer of the host, such as the id of a user, is resolved here, once: nothing after start-up parses text.

mod addresses;
mod arguments;
mod cpu_count;
mod environment;
mod host;
mod markdown;
mod option_table;
mod rules;
mod usage_error;
mod users;
mod values;

use std::ffi::OsString;

use crate::config::Config;
use arguments::{Answer, Arguments};
use host::{Host, ThisHost};

/// Parses a duration as every option does: with units, or a bare number of milliseconds.
///
/// # Errors
/// What would be accepted.
pub fn duration(text: &str) -> Result<std::time::Duration, std::borrow::Cow<'static, str>> {
    values::duration(text)
}

/// Parses the address that a command serves on.
///
/// # Errors
/// What would be accepted.
pub fn address(text: &str) -> Result<crate::config::ListenAddr, std::borrow::Cow<'static, str>> {
    addresses::plain(text, &ThisHost)
}

pub use markdown::options_as_markdown;
pub use usage_error::UsageError;

/// The request of the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Run the supervisor.
    Run(Box<Config>),
    /// Print this text on stdout and exit with 0. It ends with a newline.
    Help(String),
    /// Print this text on stdout and exit with 0. It ends with a newline.
    Version(String),
}

/// Reads the arguments, the first of which is the name of the program, and the environment.
///
/// # Errors
///
/// One line for the user about the first error.
pub fn parse(args: impl Iterator<Item = OsString>) -> Result<Command, UsageError> {
    parse_on(&ThisHost, args)
}

/// Adds the options of the supervisor to the command line of `doctor`, which examines the host for them.
#[must_use]
pub fn add_options(command: clap::Command) -> clap::Command {
    arguments::add_to(command, &ThisHost)
}

/// The configuration of a supervisor with the options of such a command line, and of the environment. Without
/// `--workers` it has as many as there are CPUs. It has no command.
///
/// # Errors
/// As those of [`parse`].
pub fn config_of(line: &clap::ArgMatches) -> Result<Config, UsageError> {
    let command = arguments::command(&ThisHost);
    let arguments = Arguments::with_environment(line.clone(), command, &ThisHost)?;
    let config = rules::with_command(Vec::new(), &arguments, &ThisHost)?;
    let workers = if arguments.is_explicit("workers") { config.workers } else { ThisHost.cpus() };
    Ok(Config { workers, ..config })
}

fn parse_on(host: &'static dyn Host, args: impl Iterator<Item = OsString>) -> Result<Command, UsageError> {
    match arguments::read(args, host)? {
        Answer::Run(arguments) => Ok(Command::Run(Box::new(rules::config(&arguments, host)?))),
        Answer::Help(text) => Ok(Command::Help(text)),
        Answer::Version(text) => Ok(Command::Version(text)),
    }
}

#[cfg(test)]
mod tests;
