//! Choosing the format of the log, and starting it.

use std::io::IsTerminal;
use std::str::FromStr;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;

use super::format::ForPeople;
use super::spanless::Spanless;
use super::writer::Stderr;
use crate::config::{LogFormat, Verbosity};

/// Whether the environment leaves colours to us: `NO_COLOR` (no-color.org) is not set, and the terminal can show some.
pub(crate) fn wants_colour() -> bool {
    let forbidden = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    !forbidden && !dumb
}

/// Starts the log on stderr. A second call has no effect.
pub fn start_logging(format: LogFormat, verbosity: &Verbosity) {
    let filter = filter(verbosity);
    let format = resolve(format);
    let layer = tracing_subscriber::fmt::layer().with_writer(Stderr::new(format));
    let has_colour = std::io::stderr().is_terminal() && wants_colour();
    let subscriber: Box<dyn tracing::Subscriber + Send + Sync> = match format {
        LogFormat::Json => {
            let layer = layer.json().flatten_event(true).with_current_span(false).with_span_list(false);
            Box::new(Spanless.with(filter).with(layer))
        }
        LogFormat::Journald => {
            let layer = layer.with_ansi(false).event_format(ForPeople::Journal);
            Box::new(Spanless.with(filter).with(layer))
        }
        LogFormat::Pretty | LogFormat::Auto => {
            let layer = layer.with_ansi(has_colour).event_format(ForPeople::Plain);
            Box::new(Spanless.with(filter).with(layer))
        }
    };
    // This fails only if the log was started before.
    let _started_before = tracing::subscriber::set_global_default(subscriber);
}

fn filter(verbosity: &Verbosity) -> Targets {
    let level = match verbosity {
        Verbosity::Quiet => LevelFilter::WARN,
        Verbosity::Normal => LevelFilter::INFO,
        Verbosity::Verbose => LevelFilter::DEBUG,
        Verbosity::Filter(text) => {
            // The text was validated when it was read.
            return Targets::from_str(text).unwrap_or_default();
        }
    };
    Targets::new().with_default(level)
}

fn resolve(format: LogFormat) -> LogFormat {
    if format != LogFormat::Auto {
        return format;
    }
    if is_journal(std::env::var("JOURNAL_STREAM").ok().as_deref()) {
        LogFormat::Journald
    } else {
        LogFormat::Pretty
    }
}

/// Whether stderr is the stream that `JOURNAL_STREAM` names; see systemd.exec(5).
fn is_journal(named: Option<&str>) -> bool {
    let actual = rustix::fs::fstat(std::io::stderr()).map(|stat| format!("{}:{}", stat.st_dev, stat.st_ino));
    actual.is_ok_and(|actual| named == Some(actual.as_str()))
}
