//! clap's errors, of several lines with usage and tips, reduced to our one.

use clap::Error;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::command::USAGE;
use super::error::UsageError;
use super::options;

/// The one line of a clap error.
pub(super) fn reduce(error: &Error) -> UsageError {
    let arg = text(error, ContextKind::InvalidArg).unwrap_or_default();
    let flag = flag_of(&arg);
    let kind = error.kind();
    if kind == ErrorKind::UnknownArgument {
        unknown(error, &arg)
    } else if kind == ErrorKind::ArgumentConflict {
        conflict(flag, text(error, ContextKind::PriorArg).as_deref().map(flag_of))
    } else if kind == ErrorKind::InvalidValue && !flag.is_empty() {
        // Our parsers run after clap, so the only value that it rejects is one that is not there.
        missing(flag)
    } else if kind == ErrorKind::TooManyValues && !flag.is_empty() {
        let value = text(error, ContextKind::InvalidValue).unwrap_or_default();
        UsageError::value(&flag, &value, "is one too much; the flag takes no value")
    } else {
        first_line(error)
    }
}

fn unknown(error: &Error, arg: &str) -> UsageError {
    if !arg.starts_with('-') {
        return UsageError::new(format!("{arg:?}: put the command behind --, as in {USAGE}"));
    }
    let hint = match text(error, ContextKind::SuggestedArg) {
        Some(similar) => format!("; did you mean {}?", flag_of(&similar)),
        None => "; a worker's own arguments stand behind --, and --help lists ours".to_owned(),
    };
    UsageError::new(format!("{arg:?} is not a flag of master-process{hint}"))
}

fn conflict(flag: &str, prior: Option<&str>) -> UsageError {
    match prior {
        Some(prior) if prior != flag => {
            UsageError::new(format!("{flag} and {prior} exclude each other; give one"))
        }
        Some(_) | None => UsageError::new(format!("{flag} is given more than once; give it once")),
    }
}

fn missing(flag: &str) -> UsageError {
    let form = options::find(flag.trim_start_matches('-')).and_then(|opt| opt.value()).unwrap_or("VALUE");
    UsageError::new(format!("{flag} needs a value; the form is {flag} {form}"))
}

/// For the kinds that these options cannot cause.
fn first_line(error: &Error) -> UsageError {
    let message = error.to_string();
    let line = message.lines().next().unwrap_or_default();
    UsageError::new(line.strip_prefix("error: ").unwrap_or(line))
}

/// clap shows a flag with its value's form, `--workers <N|max|auto>`.
fn flag_of(shown: &str) -> &str {
    shown.split(' ').next().unwrap_or(shown)
}

fn text(error: &Error, kind: ContextKind) -> Option<String> {
    match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => texts.first().cloned(),
        _ => None,
    }
}
