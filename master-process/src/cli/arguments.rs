//! clap's command, and the values that it read from the command line, the environment and the defaults.

use std::ffi::OsString;
use std::fmt;

use clap::builder::OsStringValueParser;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::environment::Variables;
use super::host::Host;
use super::option_table::{Kind, OPTIONS, Opt, Unset};
use super::usage_error::{USAGE, UsageError};

/// clap's name for the worker's command. No flag has this name.
const WORKER: &str = "COMMAND";

const AFTER_HELP: &str = "\
A running instance is seen and steered with master-process status, ls, top,
reload, stop, scale, restart, pause, resume, upgrade, events, why, metrics; what
this host gives says doctor. Each has a --help.

Every option that takes a value can also be given as a variable: --ready-timeout
as MASTER_PROCESS_READY_TIMEOUT. A flag wins over that, and that over the older
names shown above. An empty variable is unset.

Durations take units (300ms, 5s, 2min); a bare number is milliseconds.";

/// The value of every option, in the order of precedence: flag, variable, default.
pub(super) struct Arguments {
    /// The command line, with the defaults.
    line: ArgMatches,
    /// The variables that apply, read by clap as flags.
    environment: ArgMatches,
    variables: Variables,
}

/// The request of the command line.
pub(super) enum Answer {
    /// Run the supervisor.
    Run(Box<Arguments>),
    /// Print the help.
    Help(String),
    /// Print the version.
    Version(String),
}

/// Where a value comes from, as the user names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// A flag.
    Flag(&'static str),
    /// A variable.
    Variable(String),
    /// The default of a flag.
    Default(&'static str),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(long) => write!(f, "--{long}"),
            Self::Variable(name) => f.write_str(name),
            Self::Default(long) => write!(f, "the default of --{long}"),
        }
    }
}

/// Reads the command line, and then the variables of the options that it does not give. A variable that does not apply
/// is not validated.
pub(super) fn read(
    args: impl Iterator<Item = OsString>,
    host: &'static dyn Host,
) -> Result<Answer, UsageError> {
    let mut command = command(host);
    let line = match command.try_get_matches_from_mut(args) {
        Ok(line) => line,
        Err(answer) if answer.kind() == ErrorKind::DisplayHelp => {
            return Ok(Answer::Help(answer.render().to_string()));
        }
        Err(answer) if answer.kind() == ErrorKind::DisplayVersion => {
            return Ok(Answer::Version(answer.render().to_string()));
        }
        Err(error) => return Err(UsageError::of_clap(&error, &Variables::default())),
    };
    Ok(Answer::Run(Box::new(Arguments::with_environment(line, command, host)?)))
}

impl Arguments {
    /// Adds the variables of the options that a command line does not give.
    pub(super) fn with_environment(
        line: ArgMatches,
        mut command: Command,
        host: &'static dyn Host,
    ) -> Result<Arguments, UsageError> {
        let variables = Variables::of_options(host, |opt| !is_set(&line, opt.long));
        let environment = command
            .try_get_matches_from_mut(variables.arguments())
            .map_err(|error| UsageError::of_clap(&error, &variables))?;
        Ok(Arguments { line, environment, variables })
    }

    /// The worker's command and its arguments, byte for byte.
    pub(super) fn worker(&self) -> Result<Vec<OsString>, UsageError> {
        let worker: Vec<OsString> = self.line.get_many(WORKER).into_iter().flatten().cloned().collect();
        match worker.first() {
            None => Err(UsageError::new(format!("no command to run: expected {USAGE}"))),
            // `-- "$APP"` without APP: the error of the kernel would not name what is missing.
            Some(program) if program.is_empty() => {
                Err(UsageError::new(format!("the command to run is empty: expected {USAGE}")))
            }
            Some(_) => Ok(worker),
        }
    }

    /// Whether the switch is on.
    pub(super) fn switch(&self, long: &str) -> bool {
        self.line.get_flag(long)
    }

    /// The value of an option that has a default.
    pub(super) fn one<T: Clone + Send + Sync + 'static>(&self, long: &str) -> T {
        self.optional(long).unwrap_or_else(|| unreachable!("--{long} has no default"))
    }

    /// The value of an option that has no default.
    pub(super) fn optional<T: Clone + Send + Sync + 'static>(&self, long: &str) -> Option<T> {
        self.matches(long).get_one(long).cloned()
    }

    /// The values of an option that can have several.
    pub(super) fn many<T: Clone + Send + Sync + 'static>(&self, long: &str) -> Vec<T> {
        self.matches(long).get_many(long).into_iter().flatten().cloned().collect()
    }

    /// Whether a flag or a variable gives this option.
    pub(super) fn is_explicit(&self, long: &str) -> bool {
        is_set(self.matches(long), long)
    }

    /// Where the value of this option comes from.
    pub(super) fn source(&self, long: &'static str) -> Source {
        match self.variables.name(long) {
            _ if is_set(&self.line, long) => Source::Flag(long),
            Some(variable) => Source::Variable(variable.to_owned()),
            None => Source::Default(long),
        }
    }

    /// The text of this option's value, as the user wrote it.
    pub(super) fn text(&self, long: &str) -> String {
        let raw = self.matches(long).get_raw(long).and_then(|mut raw| raw.next());
        raw.map(|raw| raw.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// The error for a value that is valid by itself but not beside the others.
    pub(super) fn misfit(&self, long: &'static str, reason: &str) -> UsageError {
        UsageError::value(&self.source(long), &self.text(long), reason)
    }

    fn matches(&self, long: &str) -> &ArgMatches {
        if is_set(&self.environment, long) { &self.environment } else { &self.line }
    }
}

fn is_set(matches: &ArgMatches, long: &str) -> bool {
    matches.value_source(long) == Some(ValueSource::CommandLine)
}

/// Adds the options of the supervisor and a worker's command to another command, whose help does not list them.
pub(super) fn add_to(command: Command, host: &'static dyn Host) -> Command {
    let is_option = |opt: &&Opt| !matches!(opt.kind, Kind::Help | Kind::Version);
    let options = OPTIONS.iter().filter(is_option).map(|opt| flag(opt, host).hide(true));
    command.args(options).mut_arg("verbose", |verbose| verbose.conflicts_with("quiet")).arg(worker())
}

fn worker() -> Arg {
    Arg::new(WORKER).last(true).num_args(0..).value_parser(OsStringValueParser::new()).hide(true)
}

pub(super) fn command(host: &'static dyn Host) -> Command {
    Command::new("master-process")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Runs COMMAND as N supervised workers")
        .override_usage(USAGE)
        .after_help(AFTER_HELP)
        .disable_help_flag(true)
        .disable_version_flag(true)
        .next_line_help(true)
        .term_width(80)
        .args(OPTIONS.iter().map(|opt| flag(opt, host)))
        .mut_arg("verbose", |verbose| verbose.conflicts_with("quiet"))
        .arg(worker())
}

fn flag(opt: &'static Opt, host: &'static dyn Host) -> Arg {
    let arg = Arg::new(opt.long).long(opt.long).short(opt.short).help(help(opt));
    // A negative number is a wrong value, not an unknown flag. `help` shows the default.
    let value = |arg: Arg, form| arg.value_name(form).allow_negative_numbers(true).hide_default_value(true);
    let arg = match opt.kind {
        Kind::Value(form, parser) => value(arg, form).value_parser(parser(host)).action(ArgAction::Set),
        Kind::Repeated(form, parser) => value(arg, form).value_parser(parser(host)).action(ArgAction::Append),
        Kind::List(form, parser) => {
            value(arg, form).value_parser(parser(host)).action(ArgAction::Append).value_delimiter(',')
        }
        Kind::Switch => arg.action(ArgAction::SetTrue),
        Kind::Help => arg.action(ArgAction::Help),
        Kind::Version => arg.action(ArgAction::Version),
    };
    match opt.unset {
        Unset::Default(default) | Unset::Adaptive(default) => arg.default_value(default),
        Unset::Nothing(_) => arg,
    }
}

fn help(opt: &Opt) -> String {
    let mut text = opt.meaning.replace('`', "");
    match opt.unset {
        Unset::Default(default) => text.push_str(&format!(" [default: {default}]")),
        Unset::Adaptive(default) => text.push_str(&format!(" [default: {default}, adaptive]")),
        Unset::Nothing(_) => {}
    }
    if opt.value().is_some() && !opt.variables.is_empty() {
        text.push_str(&format!(" [also: {}]", opt.variables.join(", ")));
    }
    text
}
