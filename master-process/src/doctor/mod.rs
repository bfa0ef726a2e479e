//! `master-process doctor`: what this host gives, what a supervisor with these options will use, why not the best form
//! where that is so, and what changes it.
//!
//! Each check tries the thing with the functions of the supervisor's own start, so that the report cannot differ from
//! it. A group of checks first gathers facts, and a pure function turns these into rows. Nothing that is tried remains,
//! and whatever does not answer in time is a row of its own.

mod advice;
mod cgroups;
mod directories;
mod host;
mod journal;
mod limits;
mod monitoring;
mod process;
mod render;
mod row;
mod sharing;

use std::ffi::OsString;
use std::sync::mpsc::channel;
use std::time::Duration;

pub use render::{Report, WIDTH};
pub use row::{Fix, Group, Problem, Row, State};

use crate::config::Config;
use crate::driver::trial;
use crate::metrics::Chosen;
use crate::share::HostSelection;
use host::Host;

/// The time for a group of checks. On an idle machine, all of them take a fifth of a second.
const LIMIT: Duration = Duration::from_secs(15);

/// Examines the host for a supervisor with this configuration. `worker` is the command line of the worker that is tried;
/// a port follows.
#[must_use]
pub fn examine(config: &Config, worker: Vec<OsString>) -> Report {
    let host = Host::of_this_process();
    // The trial raises the limit of open files of this process.
    let of_limits = {
        let host = host.clone();
        within_limit(move || limits::Facts::gather(&host))
    };
    let of_worker = {
        let config = config.clone();
        within_limit(move || trial::try_worker(&config, &worker).map_err(|error| format!("{error:#}")))
    };
    let of_worker = of_worker.unwrap_or_else(Err);
    let of_process =
        within_limit(|| process::Facts::gather(trial::try_poller().map_err(|error| format!("{error:#}"))));
    let of_directories = {
        let config = config.clone();
        within_limit(move || directories::Facts::gather(&config))
    };
    let of_sharing = within_limit(|| sharing::Facts::gather(HostSelection::probe()));
    let of_monitoring = {
        let config = config.clone();
        within_limit(move || monitoring::Facts::gather(&config))
    };
    let of_log = within_limit(journal::Facts::gather);

    let uses_procfs =
        of_monitoring.as_ref().is_ok_and(|facts| matches!(facts.examination.source, Ok(Chosen::Procfs)));
    let tried = of_worker.as_ref().map_err(String::as_str);
    let in_cgroups = tried.is_ok_and(|tried| matches!(&tried.cgroup, Some(Ok(cgroup)) if cgroup.entered));
    let mut rows = Vec::new();
    rows.extend(rows_or(Group::Processes, of_process, |facts| {
        process::rows(facts, tried, &config.cgroup_limits, &host)
    }));
    rows.extend(rows_or(Group::Processes, of_directories, |facts| directories::rows(facts, &host)));
    rows.extend(rows_or(Group::Sharing, of_sharing, |facts| sharing::rows(facts, tried.ok(), &host, config)));
    rows.extend(rows_or(Group::Monitoring, of_monitoring, |facts| {
        monitoring::rows(facts, tried.ok(), &host, config)
    }));
    rows.extend(rows_or(Group::Limits, of_limits, |facts| {
        limits::rows(facts, &host, config, uses_procfs, in_cgroups)
    }));
    rows.extend(rows_or(Group::Log, of_log, |facts| journal::rows(facts, config)));
    Report {
        version: env!("CARGO_PKG_VERSION"),
        kernel: host.kernel,
        uid: host.uid,
        workers: config.workers,
        rows,
    }
}

/// The rows of a group, or the one row that says that there was no answer.
fn rows_or<T>(group: Group, facts: Result<T, String>, rows: impl Fn(&T) -> Vec<Row>) -> Vec<Row> {
    match facts {
        Ok(facts) => rows(&facts),
        Err(no_answer) => {
            let fix = Fix::by_hand("look at what the kernel waits for: /proc/PID/stack, dmesg");
            vec![Row::unknown(group, group.word(), no_answer, fix)]
        }
    }
}

/// Runs a group of checks in a thread. One that hangs in the kernel is left behind, and ends with this process.
fn within_limit<T: Send + 'static>(gather: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    within(LIMIT, gather)
}

fn within<T: Send + 'static>(
    limit: Duration,
    gather: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let (sender, receiver) = channel();
    let thread = std::thread::Builder::new().name("doctor".to_owned());
    let started = thread.spawn(move || {
        let _nobody_waits = sender.send(gather());
    });
    started.map_err(|error| format!("no thread can be started: {error}"))?;
    receiver.recv_timeout(limit).map_err(|_| format!("no answer within {} s", limit.as_secs_f64()))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The configuration of a supervisor without options.
    pub(crate) fn config() -> Config {
        let line = ["master-process", "--", "app"].map(OsString::from);
        match crate::cli::parse(line.into_iter()) {
            Ok(crate::cli::Command::Run(config)) => *config,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_does_not_answer_is_a_row() {
        let hangs = within(Duration::from_millis(10), || {
            std::thread::sleep(Duration::from_secs(60));
        });
        let rows = rows_or(Group::Log, hangs, |()| Vec::new());
        assert_eq!(rows[0].state, State::Unknown);
        assert!(rows[0].problem.as_ref().is_some_and(|problem| problem.why.contains("no answer within")));
        assert_eq!(within(LIMIT, || 7), Ok(7));
    }
}
