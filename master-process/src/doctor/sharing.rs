//! Sharing addresses between workers.

use super::advice::Setting;
use super::host::{self, Host};
use super::row::{Fix, Group, Row};
use crate::config::{Config, Share};
use crate::driver::trial::{Binding, Trial};
use crate::share::HostSelection;

const GROUP: Group = Group::Sharing;

/// What was found out.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) selection: HostSelection,
    /// Value of `net.ipv4.tcp_migrate_req`; `None`: this kernel does not have it.
    pub(super) migrate_req: Option<u64>,
    /// Value of `kernel.yama.ptrace_scope`, if there is one.
    pub(super) ptrace_scope: Option<u64>,
}

impl Facts {
    pub(super) fn gather(selection: HostSelection) -> Facts {
        Facts {
            selection,
            migrate_req: host::number("/proc/sys/net/ipv4/tcp_migrate_req"),
            ptrace_scope: host::number("/proc/sys/kernel/yama/ptrace_scope"),
        }
    }
}

/// The rows. `trial` is the worker that was started, if there is one.
pub(super) fn rows(facts: &Facts, trial: Option<&Trial>, host: &Host, config: &Config) -> Vec<Row> {
    let mut rows = Vec::new();
    if let Some(trial) = trial {
        rows.extend([
            seccomp(trial, host),
            binding(trial, facts, host, config.share),
            pidfd_getfd(trial, facts, host),
        ]);
    }
    rows.extend([selector(facts, host, config.share), migrate_req(facts, host, config.share)]);
    rows
}

fn seccomp(trial: &Trial, host: &Host) -> Row {
    let row = match &trial.filter_refused {
        Some(why) => {
            let fix = if host.is_filtered {
                host.manager.allow("seccomp")
            } else {
                Fix::kernel_with("5.10", "CONFIG_SECCOMP_FILTER")
            };
            let why = format!("{why}; ports are not shared, except those of --listen");
            Row::missing(GROUP, "seccomp", "no notifications", why, fix)
        }
        None if trial.needs_no_new_privs => {
            Row::ok(GROUP, "seccomp", "notifications; workers have NO_NEW_PRIVS")
        }
        None => Row::ok(GROUP, "seccomp", "notifications"),
    };
    row.with("sets_no_new_privs", trial.needs_no_new_privs && trial.filter_refused.is_none())
}

fn binding(trial: &Trial, facts: &Facts, host: &Host, share: Share) -> Row {
    const NOT_SHARED: &str = "ports are not shared";
    match &trial.binding {
        Binding::Shared => match share {
            Share::Auto | Share::Slots => Row::ok(GROUP, "bind", "answered; a socket for each worker"),
            Share::Shared => Row::ok(GROUP, "bind", "answered; one socket for all workers"),
            Share::Off => Row::ok(GROUP, "bind", "answered"),
        },
        Binding::Seen => Row::unused(GROUP, "bind", "not answered, as --share off asks"),
        Binding::Unseen => {
            let fix = Fix::by_hand("see seccomp above");
            Row::missing(GROUP, "bind", NOT_SHARED, "a worker without a filter binds by itself", fix)
        }
        Binding::Failed(why) => {
            let fix = if yama_denies(facts, host) {
                host.manager.sysctl("kernel.yama.ptrace_scope", 1)
            } else if why.contains("assign requested address") {
                Fix::command("bring loopback up", "ip link set lo up")
            } else {
                Fix::by_hand("see docs/sharing.md, and the log of a supervisor with -v")
            };
            Row::missing(GROUP, "bind", NOT_SHARED, format!("a worker was tried on 127.0.0.1: {why}"), fix)
        }
    }
}

fn pidfd_getfd(trial: &Trial, facts: &Facts, host: &Host) -> Row {
    let Err(error) = &trial.copies else {
        return Row::ok(GROUP, "pidfd_getfd", "copies of workers' sockets");
    };
    let (uses, effect) = match &trial.binding {
        Binding::Shared => {
            ("sockets that stand in", "; a socket of the supervisor stands in for a worker's own")
        }
        Binding::Seen | Binding::Unseen | Binding::Failed(_) => {
            ("nothing", "; sockets of workers cannot be inspected")
        }
    };
    let why = format!("pidfd_getfd: {error}{effect}");
    let fix = if yama_denies(facts, host) {
        host.manager.sysctl("kernel.yama.ptrace_scope", 1)
    } else if host.is_filtered {
        host.manager.allow("pidfd_getfd")
    } else {
        host.manager.give(Setting::Capabilities(host.lacks(&["SYS_PTRACE"])))
    };
    Row::degraded(GROUP, "pidfd_getfd", uses, why, fix).with("ptrace_scope", facts.ptrace_scope)
}

/// Whether a kernel parameter keeps this process from inspecting its workers.
fn yama_denies(facts: &Facts, host: &Host) -> bool {
    facts.ptrace_scope.is_some_and(|scope| scope > 1) && !host.has(&["SYS_PTRACE"])
}

fn selector(facts: &Facts, host: &Host, share: Share) -> Row {
    const CHECK: &str = "reuseport_ebpf";
    if share == Share::Off {
        return Row::unused(GROUP, CHECK, "nothing, as --share off asks");
    }
    let Some(error) = &facts.selection.program_refused else {
        return Row::ok(GROUP, CHECK, "eBPF routes new connections");
    };
    let queues = if facts.selection.moves_queues { "" } else { ", and the queue of a crashed worker stays" };
    let why = format!("bpf: {error}; classic BPF routes new connections{queues}");
    Row::degraded(GROUP, CHECK, "classic BPF", why, bpf_fix(host, "5.14"))
}

/// What makes bpf(2) available.
pub(super) fn bpf_fix(host: &Host, version: &str) -> Fix {
    let missing = host.lacks(&["BPF", "PERFMON"]);
    if !missing.is_empty() {
        return host.manager.give(Setting::Capabilities(missing));
    }
    if host.is_filtered { host.manager.allow("bpf") } else { Fix::kernel(version) }
}

fn migrate_req(facts: &Facts, host: &Host, share: Share) -> Row {
    const CHECK: &str = "tcp_migrate_req";
    let HostSelection { program_refused, moves_queues } = &facts.selection;
    let row = if share == Share::Off {
        Row::unused(GROUP, CHECK, "nothing, as --share off asks")
    } else if program_refused.is_none() {
        Row::unused(GROUP, CHECK, "not needed: eBPF moves queues")
    } else if *moves_queues {
        Row::ok(GROUP, CHECK, "queues move to the other workers")
    } else {
        let effect = "the queue of a crashed worker waits for the next worker of its slot";
        let (why, fix) = match facts.migrate_req {
            None => ("this kernel does not have it", Fix::kernel("5.14")),
            Some(0) => ("it is 0", host.manager.sysctl("net.ipv4.tcp_migrate_req", 1)),
            Some(_) => (
                "it is set, and no connection over loopback moved",
                Fix::by_hand("bring loopback up, and run Linux 5.14 or later"),
            ),
        };
        Row::degraded(GROUP, CHECK, "queues stay", format!("{why}; {effect}"), fix)
    };
    row.with("value", facts.migrate_req)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::row::State;

    fn facts(refused: bool, moves_queues: bool, migrate_req: u64) -> Facts {
        let program_refused = refused.then(|| std::io::Error::from_raw_os_error(libc::EPERM));
        let selection = HostSelection { program_refused, moves_queues };
        Facts { selection, migrate_req: Some(migrate_req), ptrace_scope: None }
    }

    fn host(capabilities: u64, is_filtered: bool) -> Host {
        Host::with(capabilities, is_filtered)
    }

    #[test]
    fn the_setting_matters_only_without_ebpf() {
        let state = |facts: &Facts, share| migrate_req(facts, &host(0, false), share).state;
        assert_eq!(state(&facts(false, true, 0), Share::Slots), State::Unused);
        assert_eq!(state(&facts(true, true, 1), Share::Slots), State::Ok);
        assert_eq!(state(&facts(true, false, 0), Share::Slots), State::Degraded);
        assert_eq!(state(&facts(true, false, 0), Share::Off), State::Unused);
        let ignored =
            migrate_req(&facts(true, false, 1), &host(0, false), Share::Auto).problem.expect("a problem");
        assert!(ignored.fix.text.contains("5.14"), "the setting alone does not help: {ignored:?}");
    }

    #[test]
    fn the_advice_for_bpf_names_what_is_missing() {
        assert!(bpf_fix(&host(0, true), "6.10").text.contains("CAP_BPF"));
        assert!(bpf_fix(&host(u64::MAX, true), "6.10").text.contains("SystemCallFilter="));
        assert!(bpf_fix(&host(u64::MAX, false), "6.10").text.contains("Linux 6.10"));
    }
}
