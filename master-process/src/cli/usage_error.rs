//! Usage errors: one line each. clap's errors, of several lines with usage and tips, are reduced to one.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::environment::Variables;
use super::option_table;

/// The form of a command line.
pub(super) const USAGE: &str = "master-process [OPTIONS] -- COMMAND [ARG]...";

/// Why a value is invalid: `expected …`, or what is wrong with it and `; expected …`.
pub(super) type Reason = Cow<'static, str>;

/// The result of a value parser.
pub(super) type Parsed<T> = Result<T, Reason>;

/// One line that names the flag or variable, the value, and what would be accepted.
///
/// Every usage error has the same exit code, so the line is all that it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageError(String);

impl UsageError {
    /// An error that is not about one value.
    pub(super) fn new(line: impl AsRef<str>) -> Self {
        // Messages of clap and of the host can have several lines, or control sequences of a terminal.
        Self(line.as_ref().split(|c: char| c.is_control()).collect::<Vec<_>>().join(" "))
    }

    /// An invalid value.
    pub(super) fn value(source: &impl fmt::Display, text: &str, reason: &str) -> Self {
        Self::new(format!("invalid value {text:?} for {source}: {reason}"))
    }

    /// The line of a clap error. `variables` are those that clap read as flags.
    pub(super) fn of_clap(error: &clap::Error, variables: &Variables) -> Self {
        let arg = context(error, ContextKind::InvalidArg).unwrap_or_default();
        let flag = flag_of(&arg);
        let value = || context(error, ContextKind::InvalidValue).unwrap_or_default();
        let kind = error.kind();
        if kind == ErrorKind::ValueValidation {
            let reason = error.source().map(ToString::to_string).unwrap_or_default();
            match variables.of_flag(flag) {
                Some((name, text)) => Self::value(&name, &text.unwrap_or_else(value), &reason),
                None => Self::value(&flag, &value(), &reason),
            }
        } else if kind == ErrorKind::UnknownArgument {
            unknown(error, &arg)
        } else if kind == ErrorKind::ArgumentConflict {
            conflict(flag, context(error, ContextKind::PriorArg).as_deref().map(flag_of))
        } else if kind == ErrorKind::InvalidValue && !flag.is_empty() {
            // Values are validated by parsers of our own: clap itself finds only that there is none.
            missing(flag)
        } else if kind == ErrorKind::TooManyValues && !flag.is_empty() {
            Self::new(format!("unexpected value {:?} for {flag}: expected none", value()))
        } else {
            first_line(error)
        }
    }
}

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for UsageError {}

fn unknown(error: &clap::Error, arg: &str) -> UsageError {
    if crate::client::is_command(arg.as_ref()) {
        return UsageError::new(format!(
            "unexpected argument {arg:?}: expected it first, as in master-process {arg}, or a program of this name \
             after --"
        ));
    }
    if !arg.starts_with('-') {
        return UsageError::new(format!(
            "unexpected argument {arg:?}: expected the command after --, as in {USAGE}"
        ));
    }
    let hint = match context(error, ContextKind::SuggestedArg) {
        Some(similar) => format!("did you mean {}?", flag_of(&similar)),
        None => "expected an option of --help, or -- before the arguments of the command".to_owned(),
    };
    UsageError::new(format!("unknown option {arg:?}: {hint}"))
}

fn conflict(flag: &str, prior: Option<&str>) -> UsageError {
    match prior {
        Some(prior) if prior != flag => {
            UsageError::new(format!("{flag} and {prior} given together: expected one of them"))
        }
        Some(_) | None => UsageError::new(format!("{flag} given more than once: expected once")),
    }
}

fn missing(flag: &str) -> UsageError {
    let opt = option_table::find(flag.trim_start_matches('-'));
    let form = opt.and_then(|opt| opt.value()).unwrap_or("VALUE");
    UsageError::new(format!("missing value for {flag}: expected {form}"))
}

/// For the kinds of errors that the table of options cannot cause.
fn first_line(error: &clap::Error) -> UsageError {
    let message = error.to_string();
    let line = message.lines().next().unwrap_or_default();
    UsageError::new(line.strip_prefix("error: ").unwrap_or(line))
}

/// The flag alone. clap shows it with the form of its value: `--workers <N|max|auto>`.
fn flag_of(shown: &str) -> &str {
    shown.split(' ').next().unwrap_or(shown)
}

fn context(error: &clap::Error, kind: ContextKind) -> Option<String> {
    match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => texts.first().cloned(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_one_line_whatever_the_value() {
        let error = UsageError::value(&"--user", "a\nb\u{1b}[31m\"", "is\nwrong");
        assert_eq!(error.to_string(), r#"invalid value "a\nb\u{1b}[31m\"" for --user: is wrong"#);
    }
}
