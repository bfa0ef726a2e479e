//! clap's view of the options: what is a flag, what is a value, where the worker's command begins.

use std::ffi::OsString;

use clap::builder::OsStringValueParser;
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::error::UsageError;
use super::options::{Kind, OPTIONS, Opt, Unset};

/// The form of a command line.
pub(super) const USAGE: &str = "master-process [OPTIONS] -- COMMAND [ARG]...";

/// clap's name for the worker's command; no flag can be called so.
const WORKER: &str = "COMMAND";

/// Where the help breaks its lines: what a terminal shows, less clap's indent.
const HELP_COLUMNS: usize = 70;

const ENVIRONMENT: &str = "\
Every option that takes a value can also be given as a variable: --ready-timeout
as MASTER_PROCESS_READY_TIMEOUT. A flag wins over that, and that over the older
names shown above. An empty variable is unset.

Durations take units (300ms, 5s, 2min); a bare number is milliseconds.";

/// The command line as clap is to read it.
pub(super) fn build() -> Command {
    let worker =
        Arg::new(WORKER).last(true).num_args(0..).value_parser(OsStringValueParser::new()).hide(true);
    Command::new("master-process")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Runs COMMAND as N supervised workers")
        .override_usage(USAGE)
        .after_help(ENVIRONMENT)
        .disable_help_flag(true)
        .disable_version_flag(true)
        .next_line_help(true)
        .args(OPTIONS.iter().map(flag))
        .mut_arg("verbose", |verbose| verbose.conflicts_with("quiet"))
        .arg(worker)
}

/// The worker's command and its arguments, byte for byte.
pub(super) fn worker(matches: &mut ArgMatches) -> Result<Vec<OsString>, UsageError> {
    let worker: Vec<OsString> = matches.remove_many(WORKER).into_iter().flatten().collect();
    match worker.first() {
        None => Err(UsageError::new(format!("there is no command to run; the form is {USAGE}"))),
        // `-- "$APP"` with APP unset; the kernel's own "not found" would not say what is missing.
        Some(program) if program.is_empty() => {
            Err(UsageError::new(format!("the command to run is empty; the form is {USAGE}")))
        }
        Some(_) => Ok(worker),
    }
}

fn flag(opt: &'static Opt) -> Arg {
    let arg = Arg::new(opt.long).long(opt.long).help(help(opt));
    let arg = match opt.short {
        Some(short) => arg.short(short),
        None => arg,
    };
    match opt.kind {
        Kind::Value(form) => value(arg, form).action(ArgAction::Set),
        Kind::Values(form) => value(arg, form).action(ArgAction::Append),
        Kind::Switch => arg.action(ArgAction::SetTrue),
        Kind::Help => arg.action(ArgAction::Help),
        Kind::Version => arg.action(ArgAction::Version),
    }
}

fn value(arg: Arg, form: &'static str) -> Arg {
    // A negative number is a wrong value that deserves its own message, not an unknown flag.
    arg.value_name(form).value_parser(OsStringValueParser::new()).allow_negative_numbers(true)
}

fn help(opt: &Opt) -> String {
    let mut text = opt.meaning.replace('`', "");
    match opt.unset {
        Unset::Default(default) => text.push_str(&format!(" [default: {default}]")),
        Unset::GivesWay(default) => text.push_str(&format!(" [default: {default}, gives way]")),
        Unset::Nothing(_) => {}
    }
    if opt.value().is_some() && !opt.variables.is_empty() {
        text.push_str(&format!(" [also: {}]", opt.variables.join(", ")));
    }
    wrap(&text, HELP_COLUMNS)
}

/// Breaks a text at its spaces. clap's own wrapping comes only together with a search for the terminal's width.
fn wrap(text: &str, columns: usize) -> String {
    let mut wrapped = String::with_capacity(text.len());
    let mut column = 0;
    for word in text.split(' ') {
        let length = word.chars().count();
        if column > 0 {
            let fits = column + 1 + length <= columns;
            wrapped.push(if fits { ' ' } else { '\n' });
            column = if fits { column + 1 } else { 0 };
        }
        wrapped.push_str(word);
        column += length;
    }
    wrapped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clap_finds_no_fault_with_the_table() {
        build().debug_assert();
    }

    #[test]
    fn lines_break_at_spaces() {
        assert_eq!(wrap("one two three", 7), "one two\nthree");
        assert_eq!(wrap("unbreakable x", 3), "unbreakable\nx");
        assert_eq!(wrap("", 3), "");
    }
}
