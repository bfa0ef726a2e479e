//! The command line of a command.

use std::ffi::OsString;
use std::io::Write;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::Topic;
use super::exit::{codes, usage};

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
        .term_width(80);
    (topic.arguments)(command).arg(help)
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
