//! Starting and stopping workers, and waiting for events.

use super::advice::Setting;
use super::cgroups;
use super::host::{self, Host};
use super::row::{Fix, Group, Row};
use crate::config::CgroupLimits;
use crate::driver::trial::{PollerTrial, Trial};
use crate::sys::fds;

const GROUP: Group = Group::Processes;

/// What was found out.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) poller: Result<PollerTrial, String>,
    /// Value of `kernel.io_uring_disabled`, if there is one.
    pub(super) io_uring_disabled: Option<u64>,
    pub(super) has_close_range: bool,
    pub(super) cgroups: cgroups::Facts,
    /// Whether `/proc` shows this process.
    pub(super) has_proc: bool,
}

impl Facts {
    pub(super) fn gather(poller: Result<PollerTrial, String>) -> Facts {
        Facts {
            poller,
            io_uring_disabled: host::number("/proc/sys/kernel/io_uring_disabled"),
            has_close_range: fds::has_close_range(),
            cgroups: cgroups::Facts::gather(),
            has_proc: std::path::Path::new("/proc/self/exe").exists(),
        }
    }
}

/// The rows. `trial` is the worker that was started, or why there is none.
pub(super) fn rows(
    facts: &Facts,
    trial: Result<&Trial, &str>,
    limits: &CgroupLimits,
    host: &Host,
) -> Vec<Row> {
    let mut rows = vec![start(trial, facts.has_proc)];
    if let Ok(trial) = trial {
        rows.push(clone3(trial, host));
        rows.push(pidfd(trial));
    }
    rows.push(close_range(facts.has_close_range, host));
    rows.push(event_loop(facts, host));
    if let Ok(trial) = trial {
        rows.extend(cgroups::rows(&facts.cgroups, trial, limits, host));
        rows.push(runtime_directory(trial, host));
    }
    rows
}

fn start(trial: Result<&Trial, &str>, has_proc: bool) -> Row {
    match trial {
        Ok(_) => Row::ok(GROUP, "start", "a worker was started, and ended"),
        Err(why) => {
            let fix = if has_proc {
                Fix::by_hand("correct this first: the supervisor cannot start its workers either")
            } else {
                Fix::command("mount /proc: what is tried needs it", "mount -t proc proc /proc")
            };
            Row::missing(GROUP, "start", "no worker can be started", why, fix)
        }
    }
}

fn clone3(trial: &Trial, host: &Host) -> Row {
    if trial.by_clone3 {
        return Row::ok(GROUP, "clone3", "clone3");
    }
    let why = "clone3(2) is denied; a worker enters its cgroup after its start, not with it";
    Row::degraded(GROUP, "clone3", "clone", why, host.manager.allow("clone3"))
}

fn pidfd(trial: &Trial) -> Row {
    let row = if trial.pidfd_names_groups {
        Row::ok(GROUP, "pidfd", "pidfd, for processes and groups")
    } else {
        let why = "before Linux 6.9 a pidfd does not name a process group; a group is signalled by its number, and \
                   only while that cannot be reused";
        Row::degraded(GROUP, "pidfd", "pidfd for processes, numbers for groups", why, Fix::kernel("6.9"))
    };
    row.with("names_groups", trial.pidfd_names_groups)
}

fn close_range(has_close_range: bool, host: &Host) -> Row {
    if has_close_range {
        return Row::ok(GROUP, "close_range", "close_range");
    }
    let why = "close_range(2) is denied; each start copies the supervisor's whole descriptor table";
    Row::degraded(GROUP, "close_range", "a copy of the table", why, host.manager.allow("close_range"))
}

fn event_loop(facts: &Facts, host: &Host) -> Row {
    let row = match &facts.poller {
        Err(why) => {
            let fix = Fix::by_hand("unset MASTER_PROCESS_LOOP, or correct what it asks for");
            Row::missing(GROUP, "io_uring", "no supervisor can start", why, fix)
        }
        Ok(PollerTrial { is_io_uring: true, .. }) => Row::ok(GROUP, "io_uring", "io_uring"),
        Ok(PollerTrial { refused: None, .. }) => {
            Row::unused(GROUP, "io_uring", "epoll, as MASTER_PROCESS_LOOP asks")
        }
        Ok(PollerTrial { refused: Some(error), .. }) => {
            let why = format!("io_uring_setup: {error}; each watch costs one more system call");
            let fix = if facts.io_uring_disabled.is_some_and(|disabled| disabled > 0) {
                host.manager.sysctl("kernel.io_uring_disabled", 0)
            } else if host.is_filtered {
                host.manager.allow("io_uring_setup, io_uring_enter and io_uring_register")
            } else {
                Fix::kernel_with("5.11", "CONFIG_IO_URING")
            };
            Row::degraded(GROUP, "io_uring", "epoll", why, fix)
        }
    };
    row.with("io_uring_disabled", facts.io_uring_disabled)
}

fn runtime_directory(trial: &Trial, host: &Host) -> Row {
    const CHECK: &str = "runtime_dir";
    let notify = &trial.notify;
    let failed = match notify.failed.as_slice() {
        [] => "neither RUNTIME_DIRECTORY nor XDG_RUNTIME_DIR is set".to_owned(),
        failed => failed.join("; "),
    };
    let fix = || host.manager.give(Setting::RuntimeDirectory);
    let base = base_of(&notify.address);
    let row = if !notify.is_private {
        let why = format!("{failed}; every local user can send to the notify socket");
        Row::degraded(GROUP, CHECK, "an abstract address", why, fix())
    } else if base == LAST_RESORT {
        let why = format!("{failed}; the notify socket is in /tmp, which all users share");
        Row::degraded(GROUP, CHECK, base, why, fix())
    } else {
        Row::ok(GROUP, CHECK, base)
    };
    row.with("is_private", notify.is_private)
}

/// Where the notify socket goes if no other directory can be used.
const LAST_RESORT: &str = "/tmp";

/// The directory in which a supervisor makes its own.
fn base_of(address: &str) -> String {
    let base = std::path::Path::new(address).ancestors().nth(2);
    base.map(|base| base.display().to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::advice::Manager;
    use crate::doctor::row::State;

    fn host(is_filtered: bool) -> Host {
        Host::with(u64::MAX, is_filtered)
    }

    fn facts(poller: Result<PollerTrial, String>) -> Facts {
        Facts {
            poller,
            io_uring_disabled: None,
            has_close_range: true,
            cgroups: cgroups::Facts::default(),
            has_proc: true,
        }
    }

    fn refused(io_uring_disabled: Option<u64>, is_filtered: bool) -> Fix {
        let error = std::io::Error::from_raw_os_error(libc::EPERM);
        let poller = Ok(PollerTrial { is_io_uring: false, refused: Some(error) });
        let row = event_loop(&Facts { io_uring_disabled, ..facts(poller) }, &host(is_filtered));
        assert_eq!(row.state, State::Degraded);
        row.problem.expect("a problem").fix
    }

    #[test]
    fn the_advice_for_io_uring_names_what_denies_it() {
        assert_eq!(refused(Some(2), true), Manager::Systemd.sysctl("kernel.io_uring_disabled", 0));
        assert!(refused(Some(0), true).text.contains("SystemCallFilter="));
        assert!(refused(None, false).text.contains("Linux 5.11"));
    }

    #[test]
    fn epoll_by_choice_is_no_problem() {
        let poller = Ok(PollerTrial { is_io_uring: false, refused: None });
        assert_eq!(event_loop(&facts(poller), &host(false)).state, State::Unused);
    }

    #[test]
    fn without_a_worker_only_what_needs_none_is_reported() {
        let poller = Ok(PollerTrial { is_io_uring: true, refused: None });
        let rows = rows(&facts(poller), Err("clone3: no"), &CgroupLimits::default(), &host(false));
        let checks: Vec<&str> = rows.iter().map(|row| row.check).collect();
        assert_eq!(checks, ["start", "close_range", "io_uring"]);
        assert_eq!(rows[0].state, State::Missing);
    }

    #[test]
    fn the_base_is_two_levels_above_the_socket() {
        assert_eq!(base_of("/run/master-process/master-process-1-ab/notify"), "/run/master-process");
    }
}
