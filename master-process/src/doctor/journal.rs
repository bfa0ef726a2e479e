//! The journal, and how many lines it takes.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::row::{Fix, Group, Row};
use crate::config::Config;

const GROUP: Group = Group::Log;
const CHECK: &str = "journald";

/// Where journald listens.
const SOCKET: &str = "/run/systemd/journal/socket";

/// The directories of its configuration, the strongest first: journald.conf(5).
const DIRECTORIES: [&str; 4] = ["/etc/systemd", "/run/systemd", "/usr/local/lib/systemd", "/usr/lib/systemd"];

/// The lines that the supervisor logs in a reload, for each worker: the new one is ready, the old one stopped.
const LINES: u64 = 2;

/// The lines that journald takes of a service in an interval. It drops the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RateLimit {
    /// Zero: no limit.
    interval: Duration,
    /// Zero: no limit.
    burst: u64,
}

/// The defaults of journald.
const DEFAULT: RateLimit = RateLimit { interval: Duration::from_secs(30), burst: 10_000 };

/// What was found out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    /// `None`: no journald runs here.
    pub(super) rate_limit: Option<RateLimit>,
}

impl Facts {
    pub(super) fn gather() -> Facts {
        let answers = UnixDatagram::unbound().and_then(|socket| socket.connect(SOCKET)).is_ok();
        Facts { rate_limit: answers.then(|| configured(Path::new("/"))) }
    }
}

/// The row.
pub(super) fn rows(facts: &Facts, config: &Config) -> Vec<Row> {
    let Some(limit) = facts.rate_limit else {
        return vec![Row::unused(GROUP, CHECK, "no journald here: the log goes to stderr alone")];
    };
    let RateLimit { interval, burst } = limit;
    let needed = LINES * u64::from(config.workers);
    let is_limited = !interval.is_zero() && burst > 0;
    let seconds = interval.as_secs_f64();
    let row = if is_limited && burst < needed {
        let why = format!(
            "journald drops the lines of a service above {burst} in {seconds} s, and a reload of {} workers logs \
             {needed}, besides their own output",
            config.workers
        );
        let fix =
            Fix::command("add to [Service] of its unit: LogRateLimitIntervalSec=0", "systemctl edit UNIT");
        Row::degraded(GROUP, CHECK, format!("{burst} lines in {seconds} s"), why, fix)
    } else if is_limited {
        Row::ok(GROUP, CHECK, format!("{burst} lines in {seconds} s, those of workers included"))
    } else {
        Row::ok(GROUP, CHECK, "no rate limit")
    };
    vec![
        row.with("rate_limit_interval_seconds", seconds)
            .with("rate_limit_burst_lines", burst)
            .with("reload_lines", needed),
    ]
}

/// The limit of the configuration files below `root`. A unit can have its own.
fn configured(root: &Path) -> RateLimit {
    let directories = DIRECTORIES.map(|directory| root.join(directory.trim_start_matches('/')));
    let main = directories.iter().map(|directory| directory.join("journald.conf")).find(|path| path.exists());
    let mut files: Vec<PathBuf> = main.into_iter().collect();
    // A file of a stronger directory replaces one of the same name.
    let mut by_name: BTreeMap<OsString, PathBuf> = BTreeMap::new();
    for directory in directories.iter().rev() {
        let entries = std::fs::read_dir(directory.join("journald.conf.d")).into_iter().flatten().flatten();
        let files = entries.filter(|entry| entry.path().extension().is_some_and(|end| end == "conf"));
        by_name.extend(files.map(|entry| (entry.file_name(), entry.path())));
    }
    files.extend(by_name.into_values());
    let texts = files.iter().filter_map(|path| std::fs::read_to_string(path).ok());
    texts.fold(DEFAULT, |limit, text| with_file(limit, &text))
}

/// The limit with what one file says.
fn with_file(mut limit: RateLimit, text: &str) -> RateLimit {
    let mut in_journal = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            in_journal = line == "[Journal]";
        }
        let Some((name, value)) = line.split_once('=').filter(|_| in_journal) else { continue };
        match (name.trim(), value.trim()) {
            ("RateLimitIntervalSec" | "RateLimitInterval", value) => {
                limit.interval = span(value, DEFAULT.interval).unwrap_or(limit.interval);
            }
            ("RateLimitBurst", "") => limit.burst = DEFAULT.burst,
            ("RateLimitBurst", value) => limit.burst = value.parse().unwrap_or(limit.burst),
            _other => {}
        }
    }
    limit
}

/// A time span of systemd.time(7). An empty one is the default, and a bare number counts seconds.
fn span(text: &str, default: Duration) -> Option<Duration> {
    if text.is_empty() {
        return Some(default);
    }
    match text.parse::<u64>() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_with_a_unit) => humantime::parse_duration(text).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::row::State;

    fn limit(interval: u64, burst: u64) -> RateLimit {
        RateLimit { interval: Duration::from_secs(interval), burst }
    }

    fn state(rate_limit: Option<RateLimit>, workers: u32) -> State {
        let config = Config { workers, ..crate::doctor::tests::config() };
        rows(&Facts { rate_limit }, &config)[0].state
    }

    #[test]
    fn a_reload_must_fit() {
        assert_eq!(state(Some(DEFAULT), 5000), State::Ok);
        assert_eq!(state(Some(DEFAULT), 5001), State::Degraded);
        assert_eq!(state(Some(limit(0, 1)), 5001), State::Ok);
        assert_eq!(state(Some(limit(30, 0)), 5001), State::Ok);
        assert_eq!(state(None, 5001), State::Unused);
    }

    #[test]
    fn a_file_changes_what_it_names() {
        let of = |text| with_file(DEFAULT, text);
        assert_eq!(of("[Journal]\n#RateLimitBurst=1\n"), DEFAULT);
        assert_eq!(of("[Journal]\nRateLimitBurst = 7\nRateLimitIntervalSec=1min 5s"), limit(65, 7));
        assert_eq!(of("[Journal]\nRateLimitInterval=10\nRateLimitBurst="), limit(10, 10_000));
        assert_eq!(of("[Other]\nRateLimitBurst=7"), DEFAULT);
        assert_eq!(of("[Journal]\nRateLimitBurst=many\nRateLimitIntervalSec=soon"), DEFAULT);
    }

    #[test]
    fn etc_is_stronger_than_usr_and_later_names_are_stronger() {
        let root = tempfile::tempdir().expect("a folder");
        let write = |path: &str, burst: u32| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("ours");
            std::fs::write(path, format!("[Journal]\nRateLimitBurst={burst}\n")).expect("ours");
        };
        assert_eq!(configured(root.path()), DEFAULT);
        write("usr/lib/systemd/journald.conf", 1);
        assert_eq!(configured(root.path()).burst, 1);
        write("etc/systemd/journald.conf", 2);
        assert_eq!(configured(root.path()).burst, 2);
        write("usr/lib/systemd/journald.conf.d/50-a.conf", 3);
        assert_eq!(configured(root.path()).burst, 3);
        write("etc/systemd/journald.conf.d/40-b.conf", 4);
        assert_eq!(configured(root.path()).burst, 3);
        write("etc/systemd/journald.conf.d/50-a.conf", 5);
        assert_eq!(configured(root.path()).burst, 5);
    }
}
