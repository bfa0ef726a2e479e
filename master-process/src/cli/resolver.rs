//! Who decides a value: the flag, else our variable, else the ancestor's, else the default.

use std::ffi::OsString;
use std::fmt;

use clap::ArgMatches;

use super::env::Env;
use super::error::{Parsed, UsageError};
use super::options::{self, Opt, Unset};

/// Where a value came from, as the user would name it.
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

/// A value, and where it came from for the checks that compare two of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Resolved<T> {
    /// The value.
    pub(super) value: T,
    /// Who gave it.
    pub(super) source: Source,
    /// What was written.
    pub(super) text: String,
}

impl<T> Resolved<T> {
    /// Whether somebody asked for this value.
    pub(super) fn is_explicit(&self) -> bool {
        match self.source {
            Source::Flag(_) | Source::Variable(_) => true,
            Source::Default(_) => false,
        }
    }

    /// The error that this value, which parsed, does not fit.
    pub(super) fn misfit(&self, reason: &str) -> UsageError {
        UsageError::value(&self.source, &self.text, reason)
    }
}

/// The command line and the environment.
pub(super) struct Resolver<'a> {
    matches: &'a ArgMatches,
    /// The host, for the parsers that have to ask it.
    pub(super) env: &'a dyn Env,
}

impl<'a> Resolver<'a> {
    pub(super) fn new(matches: &'a ArgMatches, env: &'a dyn Env) -> Self {
        Self { matches, env }
    }

    /// Whether the switch is on.
    pub(super) fn switch(&self, long: &str) -> bool {
        self.matches.get_flag(long)
    }

    /// The value of an option that has a default.
    pub(super) fn one<T>(&self, long: &str, parse: impl Fn(&str) -> Parsed<T>) -> Result<T, UsageError> {
        self.resolve(long, parse).map(|resolved| resolved.value)
    }

    /// The same, with its source.
    pub(super) fn resolve<T>(
        &self,
        long: &str,
        parse: impl Fn(&str) -> Parsed<T>,
    ) -> Result<Resolved<T>, UsageError> {
        let opt = option(long);
        if let Some(resolved) = self.optional(long, &parse)? {
            return Ok(resolved);
        }
        match opt.unset {
            Unset::Default(text) | Unset::GivesWay(text) => {
                read(Source::Default(opt.long), OsString::from(text), parse)
            }
            Unset::Nothing(_) => unreachable!("--{long} is asked for a default that it has not"),
        }
    }

    /// The value of an option without a default.
    pub(super) fn optional<T>(
        &self,
        long: &str,
        parse: impl Fn(&str) -> Parsed<T>,
    ) -> Result<Option<Resolved<T>>, UsageError> {
        let opt = option(long);
        let flag = self.matches.get_one::<OsString>(long).map(|text| (Source::Flag(opt.long), text.clone()));
        flag.or_else(|| self.variable(opt)).map(|(source, text)| read(source, text, parse)).transpose()
    }

    /// The values of a repeatable option.
    pub(super) fn many<T>(
        &self,
        long: &str,
        parse: impl Fn(&str) -> Parsed<T>,
    ) -> Result<Vec<Resolved<T>>, UsageError> {
        let opt = option(long);
        if let Some(texts) = self.matches.get_many::<OsString>(long) {
            return texts.map(|text| read(Source::Flag(opt.long), text.clone(), &parse)).collect();
        }
        let Some((source, list)) = self.variable(opt) else {
            return Ok(Vec::new());
        };
        let list = utf8(&source, list)?;
        list.split(',').map(|text| read(source.clone(), OsString::from(text.trim()), &parse)).collect()
    }

    /// The values of a repeatable option whose flag separates by commas, as its variable does.
    pub(super) fn list<T>(
        &self,
        long: &str,
        parse: impl Fn(&str) -> Parsed<T>,
    ) -> Result<Vec<T>, UsageError> {
        let flags = self.many(long, |text| Ok(text.to_owned()))?;
        let entries =
            flags.iter().flat_map(|flag| flag.text.split(',').map(|entry| (&flag.source, entry.trim())));
        entries
            .map(|(source, text)| parse(text).map_err(|reason| UsageError::value(source, text, &reason)))
            .collect()
    }

    /// A variable that is not empty.
    pub(super) fn variable_named(&self, name: &str) -> Option<OsString> {
        self.env.var(name).filter(|text| !text.is_empty())
    }

    fn variable(&self, opt: &Opt) -> Option<(Source, OsString)> {
        let found = |name: String| self.variable_named(&name).map(|text| (Source::Variable(name), text));
        opt.all_variables().into_iter().find_map(found)
    }
}

fn option(long: &str) -> &'static Opt {
    options::find(long).unwrap_or_else(|| unreachable!("--{long} is not in the table"))
}

fn read<T>(
    source: Source,
    text: OsString,
    parse: impl Fn(&str) -> Parsed<T>,
) -> Result<Resolved<T>, UsageError> {
    let text = utf8(&source, text)?;
    match parse(&text) {
        Ok(value) => Ok(Resolved { value, source, text }),
        Err(reason) => Err(UsageError::value(&source, &text, &reason)),
    }
}

/// The text that `source` gave.
pub(super) fn utf8(source: &Source, text: OsString) -> Result<String, UsageError> {
    text.into_string()
        .map_err(|raw| UsageError::value(source, &raw.to_string_lossy(), "is not UTF-8; give plain text"))
}
