//! The command line of a command.

use std::ffi::OsString;
use std::io::Write;
use std::str::FromStr;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::Topic;
use super::exit::{codes, usage};
use super::show;

/// Reads the arguments of a command.
///
/// # Errors
/// The exit code, after the help or an error was printed.
pub(super) fn read(topic: &Topic, arguments: Vec<OsString>) -> Result<ArgMatches, u8> {
    let words = std::iter::once(OsString::from(topic.word)).chain(arguments);
    command(topic).try_get_matches_from(words).map_err(|error| {
        if error.kind() == ErrorKind::DisplayHelp {
            let _closed = std::io::stdout().write_all(error.render().to_string().as_bytes());
            return codes::OK;
        }
        usage(&line(topic, &error))
    })
}

/// clap's command of a topic.
pub(super) fn command(topic: &Topic) -> Command {
    let help = Arg::new("help").short('h').long("help").action(ArgAction::Help).help("Print this help");
    let command = Command::new(topic.word)
        .bin_name(format!("master-process {}", topic.word))
        .about(topic.about)
        .disable_help_flag(true)
        .disable_version_flag(true)
        .term_width(show::size().0.min(show::WIDTH));
    (topic.arguments)(command).arg(help)
}

/// The argument that asks for JSON.
pub(super) fn json() -> Arg {
    Arg::new("json")
        .long("json")
        .action(ArgAction::SetTrue)
        .help("Print JSON: docs/control.md has the fields")
}

/// The arguments of a command for one instance.
pub(super) fn of_one(command: Command) -> Command {
    let name = Arg::new("name")
        .long("name")
        .value_name("NAME")
        .help("Name of the instance; without it the only one that runs [also: MASTER_PROCESS_NAME]");
    let control = Arg::new("control")
        .long("control")
        .value_name("PATH")
        .help("Path of the control socket [also: MASTER_PROCESS_CONTROL]");
    command.arg(name).arg(control).arg(json())
}

/// The arguments of a command that can wait until it is done.
pub(super) fn waiting(command: Command) -> Command {
    let wait = Arg::new("wait")
        .long("wait")
        .action(ArgAction::SetTrue)
        .help("Wait until it is decided; the exit code is the answer");
    let timeout = Arg::new("timeout")
        .long("timeout")
        .value_name("DUR")
        .requires("wait")
        .value_parser(|text: &str| crate::cli::duration(text))
        .help("Stop waiting after this time, with exit code 154; what was asked for goes on");
    command.arg(wait).arg(timeout)
}

/// The time after which a command stops waiting.
pub(super) fn timeout(matches: &ArgMatches) -> Option<Duration> {
    matches.get_one::<Duration>("timeout").copied()
}

/// The number of a slot.
pub(super) fn slot() -> Arg {
    let parser = |text: &str| number(text, 0u32, "the number of a slot, from 0 on");
    Arg::new("SLOT").required(true).value_parser(parser).help("Number of the slot, from 0 on")
}

/// A number from `least` on; otherwise the error says what was expected.
pub(super) fn number<T: FromStr + PartialOrd>(text: &str, least: T, expected: &str) -> Result<T, String> {
    let number = text.parse().ok().filter(|number| *number >= least);
    number.ok_or_else(|| format!("expected {expected}"))
}

/// One line for an error of clap, which has several with usage and tips.
fn line(topic: &Topic, error: &clap::Error) -> String {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => Some(texts.join(" ")),
        _ => None,
    };
    let argument = context(ContextKind::InvalidArg).unwrap_or_default();
    let value = context(ContextKind::InvalidValue).unwrap_or_default();
    let word = topic.word;
    let kind = error.kind();
    let text = if kind == ErrorKind::UnknownArgument {
        format!("unexpected argument {argument:?}: see master-process {word} --help")
    } else if kind == ErrorKind::MissingRequiredArgument {
        format!("{word}: missing {argument}")
    } else if kind == ErrorKind::InvalidValue && value.is_empty() {
        format!("missing value for {argument}")
    } else if kind == ErrorKind::ValueValidation {
        let reason = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
        format!("invalid value {value:?} for {argument}: {reason}")
    } else {
        let message = error.to_string();
        let first = message.lines().next().unwrap_or_default();
        first.strip_prefix("error: ").unwrap_or(first).to_owned()
    };
    text.split(|c: char| c.is_control()).collect::<Vec<_>>().join(" ")
}
