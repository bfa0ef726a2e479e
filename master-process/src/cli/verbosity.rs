//! How much is said: `-q`, `-v`, `RUST_LOG`, `DEBUG`, in this order.

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;

use super::error::UsageError;
use super::resolver::{Resolver, Source};
use crate::config::Verbosity;

/// Our name in `DEBUG`.
const NAME: &str = "master-process";

/// Our name in `RUST_LOG`.
const CRATE: &str = "master_process";

/// How much the supervisor says.
pub(super) fn resolve(from: &Resolver<'_>) -> Result<Verbosity, UsageError> {
    if from.switch("quiet") {
        return Ok(Verbosity::Quiet);
    }
    if from.switch("verbose") {
        return Ok(Verbosity::Verbose);
    }
    // `RUST_LOG` is the workers' as well: only what is said to us can be wrong, or change what we say.
    let source = Source::Variable("RUST_LOG".to_owned());
    let filter = from.variable_named("RUST_LOG").map(|filter| our_directives(&filter.to_string_lossy()));
    if let Some(filter) = filter.filter(|filter| !filter.is_empty()) {
        return directives(&source, filter).map(Verbosity::Filter);
    }
    // `DEBUG` belongs to everybody: whatever is not about us, garbage included, is not our business.
    let debug = from.variable_named("DEBUG").unwrap_or_default();
    Ok(if is_debugged(&debug.to_string_lossy()) { Verbosity::Verbose } else { Verbosity::Normal })
}

/// The directives of a filter that are for everybody, or for our crate by name.
fn our_directives(filter: &str) -> String {
    let ours = |directive: &&str| {
        let target = directive.split(['=', '[']).next().unwrap_or_default().trim();
        let for_everybody = target.parse::<LevelFilter>().is_ok();
        for_everybody || target == CRATE || target.starts_with(&format!("{CRATE}::"))
    };
    filter.split(',').filter(ours).collect::<Vec<_>>().join(",")
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
    let excluded = entries().filter_map(|entry| entry.strip_prefix('-')).any(means_us);
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
        for list in
            ["master-process", "*", "http,master-process", "http master-process", "http, *", "master-*"]
        {
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
    fn only_what_is_said_to_us_of_a_filter_counts() {
        assert_eq!(our_directives("debug,hyper=off"), "debug");
        assert_eq!(our_directives("hyper=off,a[{x}]=info,info/regex"), "");
        assert_eq!(our_directives("master_process::share=trace,app=loud"), "master_process::share=trace");
        assert_eq!(our_directives("master_process=loud"), "master_process=loud");
        assert_eq!(our_directives("master_processor=debug"), "");
    }

    #[test]
    fn filters_are_validated() {
        let source = Source::Variable("RUST_LOG".to_owned());
        for good in ["info", "debug,hyper=off", "master_process=trace", "a::b[{x}]=info"] {
            assert_eq!(directives(&source, good.to_owned()).as_deref(), Ok(good));
        }
        for garbage in ["master_process=loud", "a=b=c", "a[{x=info"] {
            let error = directives(&source, garbage.to_owned()).expect_err(garbage).to_string();
            assert!(error.starts_with(&format!("RUST_LOG: {garbage:?} is not a filter (")), "{error}");
        }
    }
}
