//! How much is said: `-q`, `-v`, `RUST_LOG`, `DEBUG`, in this order.

use tracing_subscriber::filter::Targets;

use super::error::UsageError;
use super::resolver::{Resolver, Source, utf8};
use crate::config::Verbosity;

/// Our name in `DEBUG`.
const NAME: &str = "master-process";

/// How much the supervisor says.
pub(super) fn resolve(from: &Resolver<'_>) -> Result<Verbosity, UsageError> {
    if from.switch("quiet") {
        return Ok(Verbosity::Quiet);
    }
    if from.switch("verbose") {
        return Ok(Verbosity::Verbose);
    }
    if let Some(filter) = from.variable_named("RUST_LOG") {
        let source = Source::Variable("RUST_LOG".to_owned());
        let filter = utf8(&source, filter)?;
        return directives(&source, filter).map(Verbosity::Filter);
    }
    // `DEBUG` belongs to everybody: whatever is not about us, garbage included, is not our business.
    let debug = from.variable_named("DEBUG").unwrap_or_default();
    Ok(if is_debugged(&debug.to_string_lossy()) {
        Verbosity::Verbose
    } else {
        Verbosity::Normal
    })
}

fn directives(source: &Source, text: String) -> Result<String, UsageError> {
    match text.parse::<Targets>() {
        Ok(_) => Ok(text),
        Err(error) => {
            let reason = format!(
                "is not a filter ({error}); give levels or target=level, such as info,master_process=debug"
            );
            Err(UsageError::value(source, &text, &reason))
        }
    }
}

/// Whether a list in the form of Node's `debug` package means us; an exclusion wins wherever it stands.
fn is_debugged(list: &str) -> bool {
    let entries = || list.split(|c: char| c == ',' || c.is_whitespace());
    let excluded = entries()
        .filter_map(|entry| entry.strip_prefix('-'))
        .any(means_us);
    !excluded && entries().any(means_us)
}

/// Our name, or the beginning of it and a star.
fn means_us(entry: &str) -> bool {
    match entry.strip_suffix('*') {
        Some(beginning) => NAME.starts_with(beginning),
        None => entry == NAME,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_means_us_by_name_or_star() {
        for list in [
            "master-process",
            "*",
            "http,master-process",
            "http master-process",
            "http, *",
            "master-*",
        ] {
            assert!(is_debugged(list), "{list}");
        }
    }

    #[test]
    fn debug_may_mean_others_or_exclude_us() {
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
    fn filters_are_validated() {
        let source = Source::Variable("RUST_LOG".to_owned());
        for good in [
            "info",
            "debug,hyper=off",
            "master_process=trace",
            "a::b[{x}]=info",
        ] {
            assert_eq!(directives(&source, good.to_owned()).as_deref(), Ok(good));
        }
        for garbage in ["master_process=loud", "a=b=c", "a[{x=info"] {
            let error = directives(&source, garbage.to_owned())
                .expect_err(garbage)
                .to_string();
            assert!(
                error.starts_with(&format!("RUST_LOG: {garbage:?} is not a filter (")),
                "{error}"
            );
        }
    }
}
