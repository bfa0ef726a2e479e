//! Measuring workers.

use super::advice::Setting;
use super::host::Host;
use super::row::{Fix, Group, Row};
use super::sharing::bpf_fix;
use crate::config::{Config, Monitor};
use crate::driver::trial::Trial;
use crate::metrics::{Chosen, EbpfFacts, Examination, ebpf, examine};

const GROUP: Group = Group::Monitoring;

/// The kernel that has everything that the programs call.
const KERNEL: &str = "6.10 (in a PID namespace 6.13)";

/// What was found out.
#[derive(Debug)]
pub(super) struct Facts {
    /// Whether the kernel's type information has what the programs need, or what it lacks.
    pub(super) types: Result<(), String>,
    pub(super) examination: Examination,
}

impl Facts {
    pub(super) fn gather(config: &Config) -> Facts {
        Facts {
            types: ebpf::find_kernel_types().map_err(|error| error.to_string()),
            examination: examine(config.monitor, config.account, config.workers, &config.limits),
        }
    }
}

/// The rows. `trial` is the worker that was started, if there is one.
pub(super) fn rows(facts: &Facts, trial: Option<&Trial>, host: &Host, config: &Config) -> Vec<Row> {
    let mut rows = vec![
        types(facts, config.monitor),
        sampling(facts, host, config.monitor),
        exit_causes(facts, config.monitor),
    ];
    rows.extend(trial.map(proc));
    rows.extend(trial.map(|trial| pss(trial, host, config)));
    rows
}

/// Whether eBPF is tried at all.
fn wants_ebpf(monitor: Monitor) -> bool {
    match monitor {
        Monitor::Auto | Monitor::Ebpf => true,
        Monitor::Procfs | Monitor::Off => false,
    }
}

fn types(facts: &Facts, monitor: Monitor) -> Row {
    if !wants_ebpf(monitor) {
        return Row::unused(GROUP, "btf", "not needed without eBPF");
    }
    match &facts.types {
        Ok(()) => Row::ok(GROUP, "btf", "the types of the running kernel"),
        Err(why) => {
            let fix = Fix::kernel_with(KERNEL, "CONFIG_DEBUG_INFO_BTF");
            Row::missing(GROUP, "btf", "no eBPF", why, fix)
        }
    }
}

fn sampling(facts: &Facts, host: &Host, monitor: Monitor) -> Row {
    const CHECK: &str = "sampling";
    const PROCFS: &str = "procfs: /proc is read at each interval";
    let ebpf_fix = || {
        if facts.types.is_err() { Fix::by_hand("see btf above") } else { bpf_fix(host, KERNEL) }
    };
    let refused = match &facts.examination.ebpf {
        Some(Err(why)) => Some(format!("eBPF unavailable: {why}")),
        Some(Ok(_)) | None => None,
    };
    match (&facts.examination.source, refused) {
        (Ok(Chosen::Ebpf), _) => Row::ok(GROUP, CHECK, "eBPF: a timer in the kernel"),
        (Ok(Chosen::Procfs), None) => Row::ok(GROUP, CHECK, PROCFS),
        (Ok(Chosen::Procfs), Some(why)) => Row::degraded(GROUP, CHECK, PROCFS, why, ebpf_fix()),
        (Ok(Chosen::Off), None) => Row::unused(GROUP, CHECK, "nothing, as --monitor off asks"),
        (Ok(Chosen::Off), Some(why)) => {
            let procfs = facts.examination.procfs.as_ref().and_then(|result| result.as_ref().err());
            let why = format!("{why}; procfs unavailable: {}", procfs.map_or("", String::as_str));
            Row::missing(GROUP, CHECK, "nothing: limits have no effect", why, Fix::by_hand("mount /proc"))
        }
        (Err(why), _) => {
            let fix = if monitor == Monitor::Ebpf { ebpf_fix() } else { Fix::by_hand("mount /proc") };
            Row::missing(GROUP, CHECK, "no supervisor can start", why, fix)
        }
    }
}

fn exit_causes(facts: &Facts, monitor: Monitor) -> Row {
    const CHECK: &str = "exit_causes";
    let row = match &facts.examination.ebpf {
        Some(Ok(EbpfFacts { sees_oom: true })) => Row::ok(GROUP, CHECK, "senders of signals, OOM kills"),
        Some(Ok(EbpfFacts { sees_oom: false })) => {
            let why = "this kernel lacks the tracepoint mark_victim; an OOM kill is reported as SIGKILL";
            Row::degraded(GROUP, CHECK, "senders of signals", why, Fix::kernel(KERNEL))
        }
        None if !wants_ebpf(monitor) => Row::unused(GROUP, CHECK, "signals without their senders"),
        Some(Err(_)) | None => {
            let why = "without eBPF the line about an exit does not name who killed the worker";
            Row::missing(
                GROUP,
                CHECK,
                "signals without their senders",
                why,
                Fix::by_hand("see sampling above"),
            )
        }
    };
    let loaded = facts.examination.ebpf.as_ref().and_then(|ebpf| ebpf.as_ref().ok());
    row.with("senders", loaded.is_some()).with("oom", loaded.is_some_and(|facts| facts.sees_oom))
}

fn proc(trial: &Trial) -> Row {
    match &trial.stat {
        Ok(()) => Row::ok(GROUP, "proc", "processes of workers"),
        Err(error) => {
            let fix = Fix::command("show the supervisor all processes", "mount -o remount,hidepid=0 /proc");
            let why = format!("/proc/PID/stat of a worker: {error}; processes of workers are not found");
            Row::missing(GROUP, "proc", "-", why, fix)
        }
    }
}

fn pss(trial: &Trial, host: &Host, config: &Config) -> Row {
    if config.limits.max_memory.is_none() || config.monitor == Monitor::Off {
        return Row::unused(GROUP, "pss", "not needed without --max-memory");
    }
    match &trial.pss {
        Ok(_) => Row::ok(GROUP, "pss", "decides before a replacement"),
        Err(error) => {
            let why =
                format!("/proc/PID/smaps_rollup of a worker: {error}; shared pages count for each process");
            let fix = pss_fix(host);
            Row::degraded(GROUP, "pss", "resident memory decides", why, fix)
        }
    }
}

fn pss_fix(host: &Host) -> Fix {
    let missing = host.lacks(&["SYS_PTRACE"]);
    if missing.is_empty() {
        return Fix::kernel_with("5.10", "CONFIG_PROC_PAGE_MONITOR");
    }
    host.manager.give(Setting::Capabilities(missing))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::row::State;

    fn host(capabilities: u64) -> Host {
        Host::with(capabilities, false)
    }

    fn facts(source: Result<Chosen, String>, ebpf: Option<Result<EbpfFacts, String>>) -> Facts {
        Facts { types: Ok(()), examination: Examination { source, ebpf, procfs: Some(Ok(())) } }
    }

    #[test]
    fn procfs_is_a_problem_unless_it_was_asked_for() {
        let refused = facts(Ok(Chosen::Procfs), Some(Err("no".to_owned())));
        let row = sampling(&refused, &host(0), Monitor::Auto);
        assert_eq!(row.state, State::Degraded);
        let problem = row.problem.expect("a problem");
        assert!(problem.why.contains("eBPF unavailable: no") && problem.fix.text.contains("CAP_BPF"));
        assert_eq!(sampling(&facts(Ok(Chosen::Procfs), None), &host(0), Monitor::Procfs).state, State::Ok);
        assert_eq!(exit_causes(&refused, Monitor::Auto).state, State::Missing);
        assert_eq!(exit_causes(&facts(Ok(Chosen::Procfs), None), Monitor::Procfs).state, State::Unused);
    }

    #[test]
    fn ebpf_that_was_asked_for_and_is_unavailable_is_missing() {
        let row = sampling(
            &facts(Err("no".to_owned()), Some(Err("no".to_owned()))),
            &host(u64::MAX),
            Monitor::Ebpf,
        );
        assert_eq!(row.state, State::Missing);
        assert!(row.problem.expect("a problem").fix.text.contains("Linux 6.10"));
    }

    #[test]
    fn without_oom_kills_it_is_degraded() {
        let loaded = facts(Ok(Chosen::Ebpf), Some(Ok(EbpfFacts { sees_oom: false })));
        assert_eq!(sampling(&loaded, &host(0), Monitor::Auto).state, State::Ok);
        assert_eq!(exit_causes(&loaded, Monitor::Auto).state, State::Degraded);
    }
}
