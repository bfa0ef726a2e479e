//! Variables: one of each option's, read as its flag, and those of the log.
//!
//! An empty variable is unset. clap's own `env` supports one variable for an option and takes an empty one as a value.

use std::ffi::OsString;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;

use super::arguments::Arguments;
use super::host::Host;
use super::option_table::{Kind, OPTIONS, Opt};
use super::usage_error::UsageError;
use super::values::is_digits;
use crate::config::Verbosity;

/// The older variable whose bare number counts MiB.
const COUNTS_MIB: &str = "MAX_MEMORY_ALLOWED_MB";

/// Our name in `DEBUG`.
const NAME: &str = "master-process";

/// Our name in `RUST_LOG`.
const CRATE: &str = "master_process";

/// The variables that apply: at most one for each option.
#[derive(Debug, Default)]
pub(super) struct Variables(Vec<Variable>);

#[derive(Debug)]
struct Variable {
    opt: &'static Opt,
    name: String,
    text: OsString,
}

impl Variables {
    /// The first variable that is set of each option that `applies`.
    pub(super) fn of_options(host: &dyn Host, applies: impl Fn(&Opt) -> bool) -> Self {
        let first = |opt: &'static Opt| {
            let mut names = opt.all_variables().into_iter();
            names.find_map(|name| set(host, &name).map(|text| Variable { opt, name, text }))
        };
        let with_value = OPTIONS.iter().filter(|opt| opt.value().is_some());
        Self(with_value.filter(|opt| applies(opt)).filter_map(first).collect())
    }

    /// A command line that gives the same values as flags.
    pub(super) fn arguments(&self) -> Vec<OsString> {
        let program = OsString::from(NAME);
        std::iter::once(program).chain(self.0.iter().flat_map(Variable::arguments)).collect()
    }

    /// The variable that gives this option.
    pub(super) fn name(&self, long: &str) -> Option<&str> {
        self.0.iter().find(|variable| variable.opt.long == long).map(|variable| variable.name.as_str())
    }

    /// The variable that gives the option of this flag, and its text if that is a single value.
    pub(super) fn of_flag(&self, flag: &str) -> Option<(&str, Option<String>)> {
        let variable = self.0.iter().find(|variable| flag.strip_prefix("--") == Some(variable.opt.long))?;
        let text = match variable.opt.kind {
            Kind::Value(..) => Some(variable.text.to_string_lossy().into_owned()),
            Kind::Repeated(..) | Kind::List(..) | Kind::Switch | Kind::Help | Kind::Version => None,
        };
        Some((&variable.name, text))
    }
}

impl Variable {
    fn arguments(&self) -> Vec<OsString> {
        let flag = |value: &str| OsString::from(format!("--{}={value}", self.opt.long));
        match (self.opt.kind, self.text.to_str()) {
            (Kind::Repeated(..), Some(list)) => list.split(',').map(|value| flag(value.trim())).collect(),
            (_, Some(number)) if self.name == COUNTS_MIB && is_digits(number) => {
                vec![flag(&format!("{number}MiB"))]
            }
            _ => {
                let mut argument = flag("");
                argument.push(&self.text);
                vec![argument]
            }
        }
    }
}

/// The text of a variable that is not empty.
fn set(host: &dyn Host, name: &str) -> Option<OsString> {
    host.var(name).filter(|text| !text.is_empty())
}

/// How much the supervisor logs: `-q`, `-v`, `RUST_LOG`, `DEBUG`, in this order.
pub(super) fn verbosity(arguments: &Arguments, host: &dyn Host) -> Result<Verbosity, UsageError> {
    if arguments.switch("quiet") {
        return Ok(Verbosity::Quiet);
    }
    if arguments.switch("verbose") {
        return Ok(Verbosity::Verbose);
    }
    // The workers read `RUST_LOG` as well: a directive for another crate is not validated and changes nothing here.
    let filter = set(host, "RUST_LOG").map(|filter| our_directives(&filter.to_string_lossy()));
    if let Some(filter) = filter.filter(|filter| !filter.is_empty()) {
        return directives(filter).map(Verbosity::Filter);
    }
    // Every program of the host can read `DEBUG`: an entry that does not name us is never an error.
    let debug = set(host, "DEBUG").unwrap_or_default();
    Ok(if is_debugged(&debug.to_string_lossy()) { Verbosity::Verbose } else { Verbosity::Normal })
}

/// The directives of a filter that name our crate or no crate.
fn our_directives(filter: &str) -> String {
    let ours = |directive: &&str| {
        let target = directive.split(['=', '[']).next().unwrap_or_default().trim();
        let names_no_crate = target.parse::<LevelFilter>().is_ok();
        names_no_crate || target == CRATE || target.starts_with(&format!("{CRATE}::"))
    };
    filter.split(',').filter(ours).collect::<Vec<_>>().join(",")
}

fn directives(text: String) -> Result<String, UsageError> {
    match text.parse::<Targets>() {
        Ok(_) => Ok(text),
        Err(error) => {
            let reason =
                format!("{error}; expected levels or target=level, such as info,master_process=debug");
            Err(UsageError::value(&"RUST_LOG", &text, &reason))
        }
    }
}

/// Whether a list of Node's `debug` package names us. An exclusion wins, wherever it is in the list.
fn is_debugged(list: &str) -> bool {
    let entries = || list.split(|c: char| c == ',' || c.is_whitespace());
    let excluded = entries().filter_map(|entry| entry.strip_prefix('-')).any(names_us);
    !excluded && entries().any(names_us)
}

/// Whether an entry is our name, or its beginning and a star.
fn names_us(entry: &str) -> bool {
    match entry.strip_suffix('*') {
        Some(beginning) => NAME.starts_with(beginning),
        None => entry == NAME,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_names_us_or_has_a_star() {
        for list in
            ["master-process", "*", "http,master-process", "http master-process", "http, *", "master-*"]
        {
            assert!(is_debugged(list), "{list}");
        }
    }

    #[test]
    fn debug_can_name_other_programs_or_exclude_us() {
        for list in [
            "",
            ",",
            "http",
            "master-process2",
            "Master-Process",
            "*,-master-process",
            "-master-process *",
            "*,-*",
            "1",
            "true",
        ] {
            assert!(!is_debugged(list), "{list}");
        }
    }

    #[test]
    fn only_our_directives_of_a_filter_count() {
        assert_eq!(our_directives("debug,hyper=off"), "debug");
        assert_eq!(our_directives("hyper=off,a[{x}]=info,info/regex"), "");
        assert_eq!(our_directives("master_process::share=trace,app=loud"), "master_process::share=trace");
        assert_eq!(our_directives("master_process=loud"), "master_process=loud");
        assert_eq!(our_directives("master_processor=debug"), "");
    }

    #[test]
    fn filters_are_validated() {
        for good in ["info", "debug,hyper=off", "master_process=trace", "a::b[{x}]=info"] {
            assert_eq!(directives(good.to_owned()).as_deref(), Ok(good));
        }
        for garbage in ["master_process=loud", "a=b=c", "a[{x=info"] {
            let error = directives(garbage.to_owned()).expect_err(garbage).to_string();
            assert!(error.starts_with(&format!("invalid value {garbage:?} for RUST_LOG: ")), "{error}");
        }
    }
}
