//! Whose a process is that was handed to the supervisor: evidence in, a worker out.

use std::collections::HashMap;

use rustix::process::Pid;

use crate::sys::peer::Environment;

/// What is known of a worker's tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TreeFacts {
    pub(super) serial: u64,
    pub(super) slot: u32,
    pub(super) generation: u32,
    /// The process that was started. Its number stays its own, as a process group and a session, for as long as
    /// anybody is in one.
    pub(super) first: Pid,
    /// When the worker was started, in ticks since the machine was.
    pub(super) started: u64,
    /// The same of its first process: a daemon takes the place of the one that has started it.
    pub(super) first_started: u64,
    pub(super) first_lives: bool,
}

/// What a process has of the worker that it comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Evidence {
    pub(super) started: u64,
    pub(super) group: Option<Pid>,
    pub(super) session: Option<Pid>,
    /// `WORKER_INDEX` and `RELOAD_INDEX` of an environment that names us as its `PPID`.
    pub(super) environment: Option<(u32, u32)>,
    /// The worker whose eBPF account has it, or one of whose listeners it has open.
    pub(super) accounted: Option<u64>,
    /// It may be of a worker that is not among the trees.
    pub(super) is_unsure: bool,
    /// Others than workers leave processes to us: we are pid 1, or had children before we were who we are.
    pub(super) may_be_a_strangers: bool,
}

/// The worker that a process belongs to; none: it cannot be told.
pub(super) fn owner(
    pid: Pid,
    evidence: &Evidence,
    trees: &[TreeFacts],
    owners: &HashMap<Pid, (u64, u64)>,
) -> Option<u64> {
    let is_known = |serial: &u64| trees.iter().any(|tree| tree.serial == *serial);
    let seen =
        owners.get(&pid).filter(|(started, _)| *started == evidence.started).map(|(_, serial)| *serial);
    if let Some(serial) = seen.or(evidence.accounted).filter(is_known) {
        return Some(serial);
    }
    let leads =
        |tree: &&TreeFacts| Some(tree.first) == evidence.group || Some(tree.first) == evidence.session;
    if let Some(tree) = trees.iter().find(leads) {
        return Some(tree.serial);
    }
    if evidence.is_unsure {
        return None;
    }
    if let Some((slot, generation)) = evidence.environment {
        // A worker that was started later than the process is not the one that it comes from. A tick is the least that
        // the two times can differ by.
        let named = |tree: &&TreeFacts| {
            (tree.slot, tree.generation) == (slot, generation) && tree.started <= evidence.started + 1
        };
        if let Some(tree) = trees.iter().filter(named).max_by_key(|tree| (tree.started, tree.serial)) {
            return Some(tree.serial);
        }
    }
    match trees {
        [only] if !evidence.may_be_a_strangers => Some(only.serial),
        _none_or_several => None,
    }
}

/// What an environment says: the slot and the generation, where it is of a worker of this supervisor: its notify socket
/// tells, or its pid. A shell does not hand `PPID` on.
pub(super) fn read_environment(
    environment: &Environment,
    supervisor: Pid,
    notify_socket: &[u8],
) -> Option<(u32, u32)> {
    let is_ours = environment.get("NOTIFY_SOCKET").is_some_and(|address| address == notify_socket)
        || environment.number("PPID") == u32::try_from(supervisor.as_raw_pid()).ok();
    is_ours.then_some(())?;
    Some((environment.number("WORKER_INDEX")?, environment.number("RELOAD_INDEX")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pid(number: i32) -> Pid {
        Pid::from_raw(number).expect("not 0")
    }

    fn tree(serial: u64, slot: u32, generation: u32, started: u64) -> TreeFacts {
        let first = pid(100 + i32::try_from(serial).expect("small"));
        TreeFacts { serial, slot, generation, first, started, first_started: started, first_lives: true }
    }

    fn owner_of(evidence: Evidence, trees: &[TreeFacts]) -> Option<u64> {
        owner(pid(500), &evidence, trees, &HashMap::new())
    }

    #[test]
    fn a_group_or_a_session_names_the_worker() {
        let trees = [tree(1, 0, 0, 10), tree(2, 1, 0, 10)];
        let in_group = Evidence { group: Some(pid(102)), ..Evidence::default() };
        assert_eq!(owner_of(in_group, &trees), Some(2));
        let in_session = Evidence { group: Some(pid(400)), session: Some(pid(101)), ..Evidence::default() };
        assert_eq!(owner_of(in_session, &trees), Some(1));
    }

    #[test]
    fn an_environment_names_the_worker_that_was_started_last_before_the_process() {
        let trees = [tree(1, 0, 0, 10), tree(2, 1, 0, 10), tree(3, 0, 0, 50), tree(4, 0, 1, 60)];
        let from = |started| Evidence { started, environment: Some((0, 0)), ..Evidence::default() };
        assert_eq!(owner_of(from(20), &trees), Some(1));
        assert_eq!(owner_of(from(49), &trees), Some(3), "clocks of a tick");
        assert_eq!(owner_of(from(70), &trees), Some(3));
        assert_eq!(owner_of(from(5), &trees), None);
    }

    #[test]
    fn what_was_seen_counts_more_than_what_the_process_can_change() {
        let trees = [tree(1, 0, 0, 10), tree(2, 1, 0, 10)];
        let evidence =
            Evidence { started: 20, environment: Some((1, 0)), group: Some(pid(102)), ..Evidence::default() };
        let owners = HashMap::from([(pid(500), (20, 1))]);
        assert_eq!(owner(pid(500), &evidence, &trees, &owners), Some(1));
        // The number is another process's by now.
        let owners = HashMap::from([(pid(500), (19, 1))]);
        assert_eq!(owner(pid(500), &evidence, &trees, &owners), Some(2));
        let accounted = Evidence { accounted: Some(1), ..evidence };
        assert_eq!(owner_of(accounted, &trees), Some(1));
    }

    #[test]
    fn without_evidence_it_is_the_only_workers_or_nobodys() {
        let trees = [tree(1, 0, 0, 10), tree(2, 1, 0, 10)];
        assert_eq!(owner_of(Evidence::default(), &trees), None);
        assert_eq!(owner_of(Evidence::default(), &trees[..1]), Some(1));
        assert_eq!(owner_of(Evidence::default(), &[]), None);
        let of_a_later_worker =
            Evidence { is_unsure: true, environment: Some((0, 0)), ..Evidence::default() };
        assert_eq!(owner_of(of_a_later_worker, &trees[..1]), None);
        let stranger = Evidence { may_be_a_strangers: true, ..Evidence::default() };
        assert_eq!(owner_of(stranger, &trees[..1]), None);
        // A worker that is gone owns nothing.
        let gone = Evidence { accounted: Some(9), ..Evidence::default() };
        assert_eq!(owner_of(gone, &trees), None);
    }

    #[test]
    fn an_environment_counts_if_it_names_this_supervisor() {
        let read = |text: &str| {
            let environment = Environment::new(text.replace(' ', "\0").as_bytes());
            read_environment(&environment, pid(42), b"/run/a/notify")
        };
        assert_eq!(read("NOTIFY_SOCKET=/run/a/notify RELOAD_INDEX=3 WORKER_INDEX=7"), Some((7, 3)));
        assert_eq!(read("NOTIFY_SOCKET=/run/b/notify RELOAD_INDEX=3 WORKER_INDEX=7"), None);
        assert_eq!(read("A=1 PPID=42 RELOAD_INDEX=3 WORKER_INDEX=7"), Some((7, 3)));
        assert_eq!(read("PPID=43 RELOAD_INDEX=3 WORKER_INDEX=7"), None);
        assert_eq!(read("PPID=42 RELOAD_INDEX=3"), None);
        assert_eq!(read("PPID=42 RELOAD_INDEX=x WORKER_INDEX=7"), None);
    }
}
