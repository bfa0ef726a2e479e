//! Limits of the host and of this process, against the number of workers.

use rustix::process::{Resource, getrlimit};

use super::advice::Setting;
use super::host::{self, Host, most_workers};
use super::row::{Fix, Group, Row};
use crate::config::{Capabilities, Config, ListenAddr, Monitor, Share};
use crate::sys::cgroup_mounts;

const GROUP: Group = Group::Limits;

/// The descriptors of the supervisor for itself: signals, helper threads, maps and programs of eBPF.
const OWN_DESCRIPTORS: u64 = 64;
/// The descriptors for a worker: its pidfd, the listener of its filter, and a copy of one listening socket.
const DESCRIPTORS: u64 = 3;
/// The descriptors for a worker's cgroup.
const DESCRIPTORS_OF_CGROUP: u64 = 2;
/// With procfs, half of the descriptors are for files of `/proc` that stay open.
const PROCFS_SHARE: u64 = 2;

/// The threads of the supervisor: the loop and its helpers.
const OWN_THREADS: u64 = 8;

/// The queue that a worker should have for itself: what the kernel gave each listener until Linux 5.4.
const QUEUE: u64 = 128;
/// The default of `net.core.somaxconn` since Linux 5.4.
const DEFAULT_SOMAXCONN: u64 = 4096;

/// What was found out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    /// The hard limit of open files; `None`: no limit. A supervisor raises the soft one to it.
    pub(super) open_files: Option<u64>,
    /// The processes and threads that may still be started in this cgroup; `None`: no limit.
    pub(super) pids_room: Option<u64>,
    /// The limit of that cgroup.
    pub(super) pids_max: Option<u64>,
    /// The limit of processes of this user; `None`: no limit, or root.
    pub(super) user_processes: Option<u64>,
    pub(super) somaxconn: Option<u64>,
    /// The lowest port that needs no privilege.
    pub(super) first_free_port: u64,
}

impl Facts {
    pub(super) fn gather(host: &Host) -> Facts {
        let pids = pids_limits().into_iter().min_by_key(|(max, current)| max.saturating_sub(*current));
        Facts {
            open_files: getrlimit(Resource::Nofile).maximum,
            pids_room: pids.map(|(max, current)| max.saturating_sub(current)),
            pids_max: pids.map(|(max, _)| max),
            user_processes: getrlimit(Resource::Nproc).current.filter(|_| host.uid != 0),
            somaxconn: host::number("/proc/sys/net/core/somaxconn"),
            first_free_port: host::number("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or(1024),
        }
    }
}

/// Limit and use of each cgroup with a limit that this process is in.
fn pids_limits() -> Vec<(u64, u64)> {
    let mut limits = Vec::new();
    for place in cgroup_mounts::of_this_process(Some("pids")) {
        for dir in place.dir.ancestors().take_while(|dir| dir.starts_with(&place.mount)) {
            let read = |name| host::number(dir.join(name));
            limits.extend(read("pids.max").zip(read("pids.current")));
        }
    }
    limits
}

/// The rows. `uses_procfs` and `in_cgroups` say what a worker takes descriptors for.
pub(super) fn rows(
    facts: &Facts,
    host: &Host,
    config: &Config,
    uses_procfs: bool,
    in_cgroups: bool,
) -> Vec<Row> {
    vec![
        open_files(facts, host, most_workers(config), uses_procfs, in_cgroups),
        pids(facts, host, most_workers(config)),
        somaxconn(facts, host, config),
        capabilities(facts, host, config),
    ]
}

fn open_files(facts: &Facts, host: &Host, workers: u64, uses_procfs: bool, in_cgroups: bool) -> Row {
    let each = DESCRIPTORS + if in_cgroups { DESCRIPTORS_OF_CGROUP } else { 0 };
    let share = if uses_procfs { PROCFS_SHARE } else { 1 };
    let needed = (OWN_DESCRIPTORS + each * workers) * share;
    let row = match facts.open_files {
        Some(limit) if limit < needed => {
            let why = format!(
                "a reload with {workers} workers takes about {needed} descriptors, and the hard limit of \
                 RLIMIT_NOFILE is {limit}"
            );
            let fix = host.manager.give(Setting::OpenFiles(needed.next_power_of_two()));
            Row::degraded(GROUP, "open_files", limit.to_string(), why, fix)
        }
        Some(limit) => Row::ok(GROUP, "open_files", format!("{limit}, and {needed} are needed")),
        None => Row::ok(GROUP, "open_files", "no limit"),
    };
    row.with("limit", facts.open_files).with("needed", needed)
}

fn pids(facts: &Facts, host: &Host, workers: u64) -> Row {
    const CHECK: &str = "pids";
    let needed = OWN_THREADS + workers;
    let row = match (facts.pids_room, facts.user_processes) {
        (Some(room), _) if room < needed => {
            let why = format!(
                "a reload with {workers} workers takes at least {needed} processes and threads, and pids.max of \
                 this cgroup leaves {room}"
            );
            let limit = (facts.pids_max.unwrap_or(0) + needed).next_power_of_two();
            let fix = host.manager.give(Setting::Pids(limit));
            Row::degraded(GROUP, CHECK, room.to_string(), why, fix)
        }
        (_, Some(limit)) if limit < needed => {
            let why = format!(
                "a reload with {workers} workers takes at least {needed} processes and threads, and RLIMIT_NPROC of \
                 this user is {limit}"
            );
            let fix = host.manager.give(Setting::UserProcesses(needed.next_power_of_two()));
            Row::degraded(GROUP, CHECK, limit.to_string(), why, fix)
        }
        (Some(room), _) => Row::ok(GROUP, CHECK, format!("{room}, and at least {needed} are needed")),
        (None, _) => Row::ok(GROUP, CHECK, "no limit"),
    };
    row.with("pids_max", facts.pids_max)
        .with("pids_left", facts.pids_room)
        .with("user_processes_limit", facts.user_processes)
        .with("needed", needed)
}

fn somaxconn(facts: &Facts, host: &Host, config: &Config) -> Row {
    const CHECK: &str = "somaxconn";
    let Some(somaxconn) = facts.somaxconn else {
        let fix = Fix::by_hand("mount /proc with its sys directory");
        return Row::unknown(GROUP, CHECK, "/proc/sys/net/core/somaxconn cannot be read", fix);
    };
    // Sockets of --listen have one queue for all workers.
    let is_one_queue = config.share == Share::Shared || !config.listen.is_empty();
    let workers = u64::from(config.workers).max(1);
    let each = if is_one_queue { somaxconn / workers } else { somaxconn };
    let row = if each < QUEUE {
        let why = if is_one_queue {
            format!(
                "all workers share a queue of at most {somaxconn} connections, {each} for each worker; a burst of \
                 more waits for a second and longer"
            )
        } else {
            format!(
                "the queue of a worker has at most {somaxconn} connections; a burst of more waits for a second and longer"
            )
        };
        let queues = if is_one_queue { workers } else { 1 };
        let wanted = (QUEUE * queues).next_power_of_two().max(DEFAULT_SOMAXCONN);
        Row::degraded(
            GROUP,
            CHECK,
            somaxconn.to_string(),
            why,
            host.manager.sysctl("net.core.somaxconn", wanted),
        )
    } else {
        let uses = format!("{somaxconn}: {each} connections wait for each worker");
        Row::ok(GROUP, CHECK, uses)
    };
    row.with("somaxconn", somaxconn).with("connections_per_worker", each).with("is_one_queue", is_one_queue)
}

/// The capabilities that these options need, each with the option.
fn needed_capabilities(facts: &Facts, config: &Config) -> Vec<(&'static str, &'static str)> {
    let mut needed = Vec::new();
    if config.identity.is_some() {
        needed.extend([("SETUID", "--user"), ("SETGID", "--user"), ("KILL", "--user")]);
    }
    if config.socket_owner.is_some() {
        needed.push(("CHOWN", "--socket-owner"));
    }
    let is_low = |port: u16| port > 0 && u64::from(port) < facts.first_free_port;
    if config.listen.iter().any(|listen| match &listen.addr {
        ListenAddr::Port(port) => is_low(*port),
        ListenAddr::Inet(address) => is_low(address.port()),
        ListenAddr::Unix(_) => false,
    }) {
        needed.push(("NET_BIND_SERVICE", "--listen"));
    }
    needed
}

/// The capabilities that give a better form of a feature.
const USEFUL: [&str; 4] = ["BPF", "PERFMON", "SYS_PTRACE", "SYS_ADMIN"];

fn capabilities(facts: &Facts, host: &Host, config: &Config) -> Row {
    const CHECK: &str = "capabilities";
    let named = |set: Capabilities| if set.is_empty() { "none".to_owned() } else { set.to_string() };
    let held = {
        let all = USEFUL.iter().filter_map(|name| Capabilities::named(name));
        all.fold(Capabilities::NONE, Capabilities::union).without(host.lacks(&USEFUL))
    };
    let needed = needed_capabilities(facts, config);
    let names: Vec<&str> = needed.iter().map(|(name, _)| *name).collect();
    let missing = host.lacks(&names).union(config.ambient.without(host.capabilities));
    let wants_ebpf = matches!(config.monitor, Monitor::Auto | Monitor::Ebpf);
    let for_ebpf = host.lacks(&["BPF", "PERFMON"]);
    let row = if !missing.is_empty() {
        let mut options: Vec<&str> = needed
            .iter()
            .filter(|(name, _)| !host.has(&[name]))
            .map(|(_, option)| *option)
            .chain((!config.ambient.without(host.capabilities).is_empty()).then_some("--ambient"))
            .collect();
        options.dedup();
        let why = format!("{missing}, which {} needs", options.join(" and "));
        let fix = host.manager.give(Setting::Capabilities(missing));
        Row::missing(GROUP, CHECK, "no supervisor can start", why, fix)
    } else if wants_ebpf && !for_ebpf.is_empty() {
        let why = format!("{for_ebpf}, which eBPF needs");
        Row::degraded(GROUP, CHECK, named(held), why, host.manager.give(Setting::Capabilities(for_ebpf)))
    } else {
        Row::ok(GROUP, CHECK, named(held))
    };
    let list = |set: Capabilities| -> Vec<String> {
        set.numbers().map(|number| Capabilities(1 << number).to_string()).collect()
    };
    row.with("held", list(held)).with("missing", list(missing))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::row::State;

    const FACTS: Facts = Facts {
        open_files: Some(1024),
        pids_room: None,
        pids_max: None,
        user_processes: None,
        somaxconn: Some(4096),
        first_free_port: 1024,
    };

    fn host(capabilities: u64) -> Host {
        Host::with(capabilities, false)
    }

    fn queue(somaxconn: u64, workers: u32, share: Share) -> Row {
        let facts = Facts { somaxconn: Some(somaxconn), ..FACTS };
        super::somaxconn(&facts, &host(0), &Config { workers, share, ..crate::doctor::tests::config() })
    }

    #[test]
    fn open_files_are_compared_with_the_workers_of_a_reload() {
        let state = |workers, procfs, cgroups| open_files(&FACTS, &host(0), workers, procfs, cgroups).state;
        assert_eq!(state(8, false, false), State::Ok);
        assert_eq!(state(320, false, false), State::Ok);
        assert_eq!(state(321, false, false), State::Degraded);
        assert_eq!(state(320, false, true), State::Degraded);
        assert_eq!(state(320, true, false), State::Degraded);
        let none = Facts { open_files: None, ..FACTS };
        assert_eq!(open_files(&none, &host(0), 100_000, true, true).state, State::Ok);
        let fix = open_files(&FACTS, &host(0), 1000, false, false).problem.expect("a problem").fix;
        assert!(fix.text.ends_with("LimitNOFILE=4096"), "{fix:?}");
    }

    #[test]
    fn processes_are_compared_with_what_is_left() {
        let with = |room| Facts { pids_room: Some(room), pids_max: Some(100), ..FACTS };
        assert_eq!(pids(&with(20), &host(0), 8).state, State::Ok);
        assert_eq!(pids(&with(10), &host(0), 8).state, State::Degraded);
        let of_user = Facts { user_processes: Some(10), ..FACTS };
        assert_eq!(pids(&of_user, &host(0), 8).state, State::Degraded);
        assert_eq!(pids(&FACTS, &host(0), 8).state, State::Ok);
    }

    #[test]
    fn one_queue_of_all_workers_is_divided_among_them() {
        assert_eq!(queue(128, 64, Share::Slots).state, State::Ok);
        assert_eq!(queue(127, 1, Share::Slots).state, State::Degraded);
        assert_eq!(queue(4096, 32, Share::Shared).state, State::Ok);
        let row = queue(4096, 64, Share::Shared);
        assert_eq!(row.state, State::Degraded);
        let command = row.problem.expect("a problem").fix.command;
        assert_eq!(command.as_deref(), Some("sysctl -w net.core.somaxconn=8192"));
    }

    #[test]
    fn what_an_option_needs_is_missing_without_its_capability() {
        let config = crate::doctor::tests::config();
        assert_eq!(capabilities(&FACTS, &host(u64::MAX), &config).state, State::Ok);
        let row = capabilities(&FACTS, &host(0), &config);
        assert_eq!(row.state, State::Degraded);
        assert!(row.problem.expect("a problem").fix.text.ends_with("=CAP_PERFMON CAP_BPF"));
        let listen = crate::config::Listen { name: None, addr: ListenAddr::Port(80), text: String::new() };
        let low = Config { listen: vec![listen], ..config.clone() };
        let row = capabilities(&FACTS, &host(0), &low);
        assert_eq!(row.state, State::Missing);
        assert_eq!(row.problem.expect("a problem").why, "CAP_NET_BIND_SERVICE, which --listen needs");
        let procfs = Config { monitor: Monitor::Procfs, ..config };
        assert_eq!(capabilities(&FACTS, &host(0), &procfs).state, State::Ok);
    }
}
