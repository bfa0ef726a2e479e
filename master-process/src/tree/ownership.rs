//! Determines the worker of an adopted process from evidence.

use std::collections::HashMap;

use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use crate::policy::PRELOAD;
use crate::sys::peer::Environment;

/// The facts about a worker's process tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TreeFacts {
    pub(super) serial: u64,
    pub(super) slot: u32,
    #[serde(default, skip_serializing_if = "crate::forms::is_default")]
    pub(super) generation: u32,
    /// The process that was started, or the daemon that replaced it. The kernel does not reuse its number while it is
    /// that of a process group or a session.
    #[serde(with = "crate::forms::pid")]
    pub(super) first: Pid,
    /// The start time of the worker, in ticks since boot.
    pub(super) started: u64,
    /// The start time of its first process. It differs from that of the worker if a daemon replaced the process that
    /// was started.
    pub(super) first_started: u64,
    pub(super) first_lives: bool,
    /// The earlier first processes, each with its start time.
    #[serde(default, skip_serializing_if = "crate::forms::is_default")]
    pub(super) former: Vec<Former>,
}

/// An earlier first process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Former {
    #[serde(with = "crate::forms::pid")]
    pid: Pid,
    /// Its start time.
    started: u64,
}

/// The number of earlier first processes that are remembered: a daemon forks twice.
const MAX_FORMER: usize = 8;

/// The supervisor and the kernel read different clocks for the start of a process. They can differ by a tick, the
/// smallest unit.
const TICK: u64 = 1;

impl TreeFacts {
    /// Replaces the first process, which has ended. The process groups and sessions that it led still belong to the
    /// tree.
    pub(super) fn replace_first(&mut self, first: Pid, started: u64) {
        // The process that was started and the latest ones are kept.
        if self.former.len() >= MAX_FORMER {
            self.former.remove(1);
        }
        self.former.push(Former { pid: self.first, started: self.first_started });
        (self.first, self.first_started, self.first_lives) = (first, started, true);
    }

    /// The start time of the process with this number that is or was the first one. `None`: there was no such process.
    fn leader(&self, number: Pid) -> Option<u64> {
        let own = [Former { pid: self.first, started: self.first_started }];
        let mut all = own.iter().chain(self.former.iter().rev());
        all.find(|leader| leader.pid == number).map(|leader| leader.started)
    }
}

/// The evidence that links a process to its worker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Evidence {
    pub(super) started: u64,
    pub(super) group: Option<Pid>,
    pub(super) session: Option<Pid>,
    /// The worker that has the process in its eBPF account or cgroup, or one of whose listeners the process has open.
    pub(super) accounted: Option<u64>,
    /// It may belong to a worker that is not among the trees.
    pub(super) is_unsure: bool,
    /// It may come from a process that is not a worker: the supervisor is pid 1, or had children before it was exec'ed.
    pub(super) may_be_unrelated: bool,
}

/// The start time of an adopted process and the serial of its worker, by pid.
pub(super) type Owners = HashMap<Pid, (u64, u64)>;

/// The worker of a process according to the kernel. `None`: the kernel's data do not determine it. `started_of` returns the
/// start time of the process that has a number now, if any.
pub(super) fn proven_owner(
    pid: Pid,
    evidence: &Evidence,
    trees: &[TreeFacts],
    owners: &Owners,
    started_of: impl Fn(Pid) -> Option<u64>,
) -> Option<u64> {
    let is_known = |serial: &u64| trees.iter().any(|tree| tree.serial == *serial);
    let seen =
        owners.get(&pid).filter(|(started, _)| *started == evidence.started).map(|(_, serial)| *serial);
    if let Some(serial) = seen.or(evidence.accounted).filter(is_known) {
        return Some(serial);
    }
    let led_by = |number| led_by(number, evidence.started, trees, owners, &started_of);
    evidence.group.and_then(led_by).or_else(|| evidence.session.and_then(led_by))
}

/// The worker whose first process leads, or led, the process group or session with this number. The process in question
/// is in that group or session and was started at `started`. The kernel does not reuse a number while it is that of a
/// group or a session.
fn led_by(
    number: Pid,
    started: u64,
    trees: &[TreeFacts],
    owners: &Owners,
    started_of: impl Fn(Pid) -> Option<u64>,
) -> Option<u64> {
    let is_old_enough = |leader: u64| leader <= started + TICK;
    let alive = trees.iter().find(|tree| tree.first_lives && tree.first == number);
    if let Some(tree) = alive {
        return is_old_enough(tree.first_started).then_some(tree.serial);
    }
    let dead = trees.iter().filter_map(|tree| Some((tree.leader(number)?, tree.serial)));
    let (_, serial) = dead.filter(|(leader, _)| is_old_enough(*leader)).max()?;
    // If another process has the number now, the old group and session were gone before.
    let is_still_its_own = match started_of(number) {
        Some(taken) => owners.get(&number) == Some(&(taken, serial)),
        None => true,
    };
    is_still_its_own.then_some(serial)
}

/// Whether the environment of a process can decide, if there is no stronger evidence.
pub(super) fn is_environment_wanted(evidence: &Evidence, trees: &[TreeFacts]) -> bool {
    !evidence.is_unsure && !trees.is_empty() && only_tree(evidence, trees).is_none()
}

/// The worker of a process according to the process itself, or because there is no other worker. `None`: unknown.
/// `environment` is the slot and the generation that its environment names.
pub(super) fn presumed_owner(
    evidence: &Evidence,
    environment: Option<(u32, u32)>,
    trees: &[TreeFacts],
) -> Option<u64> {
    if evidence.is_unsure {
        return None;
    }
    if let Some((slot, generation)) = environment {
        // The process cannot come from a worker that was started after it.
        let named = |tree: &&TreeFacts| {
            (tree.slot, tree.generation) == (slot, generation) && tree.started <= evidence.started + TICK
        };
        if let Some(tree) = trees.iter().filter(named).max_by_key(|tree| (tree.started, tree.serial)) {
            return Some(tree.serial);
        }
    }
    only_tree(evidence, trees)
}

fn only_tree(evidence: &Evidence, trees: &[TreeFacts]) -> Option<u64> {
    match trees {
        [only] if !evidence.may_be_unrelated => Some(only.serial),
        _none_or_several => None,
    }
}

/// The slot and the generation in an environment, if it is that of a worker of this supervisor. The notify socket
/// identifies the supervisor, and so does its pid. A shell does not pass `PPID` on.
pub(super) fn read_environment(
    environment: &Environment,
    supervisor: Pid,
    notify_socket: &[u8],
) -> Option<(u32, u32)> {
    let is_ours = environment.get("NOTIFY_SOCKET").is_some_and(|address| address == notify_socket)
        || environment.number("PPID") == u32::try_from(supervisor.as_raw_pid()).ok();
    is_ours.then_some(())?;
    // Of what the supervisor starts, only a preload command has no slot.
    let slot = match environment.get("WORKER_INDEX") {
        Some(_) => environment.number("WORKER_INDEX")?,
        None => PRELOAD,
    };
    Some((slot, environment.number("RELOAD_INDEX")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pid(number: i32) -> Pid {
        Pid::from_raw(number).expect("not 0")
    }

    fn tree(serial: u64, slot: u32, generation: u32, started: u64) -> TreeFacts {
        let first = pid(100 + i32::try_from(serial).expect("small"));
        TreeFacts {
            serial,
            slot,
            generation,
            first,
            started,
            first_started: started,
            first_lives: true,
            former: Vec::new(),
        }
    }

    fn dead(tree: TreeFacts) -> TreeFacts {
        TreeFacts { first_lives: false, ..tree }
    }

    /// The owner with an environment that names this slot and generation, if no number was reused.
    fn owner_named(evidence: &Evidence, named: Option<(u32, u32)>, trees: &[TreeFacts]) -> Option<u64> {
        proven_owner(pid(500), evidence, trees, &HashMap::new(), |_| None)
            .or_else(|| presumed_owner(evidence, named, trees))
    }

    fn owner_of(evidence: &Evidence, trees: &[TreeFacts]) -> Option<u64> {
        owner_named(evidence, None, trees)
    }

    fn in_group(group: i32, started: u64) -> Evidence {
        Evidence { started, group: Some(pid(group)), ..Evidence::default() }
    }

    /// The owner of a process in this group, if a process that was started at `leader` has the group's number now.
    fn owner_in_group_with_reused_number(
        evidence: &Evidence,
        trees: &[TreeFacts],
        owners: &Owners,
        leader: u64,
    ) -> Option<u64> {
        let started_of = |number| (Some(number) == evidence.group).then_some(leader);
        proven_owner(pid(500), evidence, trees, owners, started_of)
    }

    #[test]
    fn a_group_or_a_session_names_the_worker() {
        let trees = [tree(1, 0, 0, 10), tree(2, 1, 0, 10)];
        assert_eq!(owner_of(&in_group(102, 20), &trees), Some(2));
        let in_session = Evidence { session: Some(pid(101)), ..in_group(400, 20) };
        assert_eq!(owner_of(&in_session, &trees), Some(1));
        let of_the_dead = [dead(tree(1, 0, 0, 10)), tree(2, 1, 0, 10)];
        assert_eq!(owner_of(&in_group(101, 20), &of_the_dead), Some(1));
    }

    #[test]
    fn a_group_does_not_name_a_worker_that_is_younger_than_the_process() {
        for trees in [[tree(1, 0, 0, 30), tree(2, 1, 0, 10)], [dead(tree(1, 0, 0, 30)), tree(2, 1, 0, 10)]] {
            assert_eq!(owner_of(&in_group(101, 28), &trees), None);
            assert_eq!(owner_of(&in_group(101, 29), &trees), Some(1), "clocks of a tick");
        }
    }

    #[test]
    fn a_group_names_the_worker_whose_first_process_lives_before_a_dead_one_that_had_its_number() {
        let had_it = dead(TreeFacts { first: pid(102), ..tree(1, 0, 0, 10) });
        let trees = [had_it, tree(2, 1, 0, 20)];
        assert_eq!(owner_of(&in_group(102, 30), &trees), Some(2));
        // Without the reuse of the number, it would belong to the dead worker.
        assert_eq!(owner_of(&in_group(102, 15), &trees), None);
        let both_dead = [trees[0].clone(), dead(trees[1].clone())];
        assert_eq!(owner_of(&in_group(102, 30), &both_dead), Some(2), "the later one");
        assert_eq!(owner_of(&in_group(102, 15), &both_dead), Some(1));
    }

    #[test]
    fn a_group_whose_number_was_reused_does_not_name_a_dead_worker() {
        let trees = [dead(tree(1, 0, 0, 10)), tree(2, 1, 0, 10)];
        let evidence = in_group(101, 30);
        let none_known = HashMap::new();
        assert_eq!(owner_in_group_with_reused_number(&evidence, &trees, &none_known, 25), None);
        // The process that has the number now belongs to the worker, or belonged to it while an earlier process had the
        // number.
        let own = HashMap::from([(pid(101), (25, 1))]);
        assert_eq!(owner_in_group_with_reused_number(&evidence, &trees, &own, 25), Some(1));
        assert_eq!(owner_in_group_with_reused_number(&evidence, &trees, &own, 26), None);
        let anothers = HashMap::from([(pid(101), (25, 2))]);
        assert_eq!(owner_in_group_with_reused_number(&evidence, &trees, &anothers, 25), None);
        // While the first process lives, the number is its own.
        assert_eq!(owner_in_group_with_reused_number(&in_group(102, 30), &trees, &none_known, 10), Some(2));
    }

    #[test]
    fn the_group_of_the_process_that_a_daemon_has_replaced_names_its_worker() {
        let mut daemon = tree(1, 0, 0, 10);
        daemon.replace_first(pid(301), 12);
        daemon.replace_first(pid(302), 14);
        let trees = [daemon, tree(2, 1, 0, 10)];
        for leader in [101, 301, 302] {
            assert_eq!(owner_of(&in_group(leader, 20), &trees), Some(1), "{leader}");
        }
        assert_eq!(owner_of(&in_group(301, 10), &trees), None, "it is older than that process");
        let evidence = in_group(101, 30);
        assert_eq!(owner_in_group_with_reused_number(&evidence, &trees, &HashMap::new(), 25), None, "reused");
    }

    #[test]
    fn remembered_first_processes_are_bounded_and_include_the_one_that_was_started() {
        let mut tree = tree(1, 0, 0, 10);
        for number in 0..100 {
            tree.replace_first(pid(300 + number), 20);
        }
        assert_eq!(tree.former.len(), MAX_FORMER);
        assert!([101, 398, 399].into_iter().all(|leader| tree.leader(pid(leader)).is_some()));
    }

    #[test]
    fn an_environment_names_the_worker_that_was_started_last_before_the_process() {
        let trees = [tree(1, 0, 0, 10), tree(2, 1, 0, 10), tree(3, 0, 0, 50), tree(4, 0, 1, 60)];
        let from = |started| owner_named(&Evidence { started, ..Evidence::default() }, Some((0, 0)), &trees);
        assert_eq!(from(20), Some(1));
        assert_eq!(from(49), Some(3), "clocks of a tick");
        assert_eq!(from(70), Some(3));
        assert_eq!(from(5), None);
    }

    #[test]
    fn an_earlier_finding_outranks_what_the_process_can_change() {
        let trees = [tree(1, 0, 0, 10), tree(2, 1, 0, 10)];
        let evidence = in_group(102, 20);
        let proven =
            |evidence: &Evidence, owners: &Owners| proven_owner(pid(500), evidence, &trees, owners, |_| None);
        assert_eq!(proven(&evidence, &HashMap::from([(pid(500), (20, 1))])), Some(1));
        // Another process has the number now.
        assert_eq!(proven(&evidence, &HashMap::from([(pid(500), (19, 1))])), Some(2));
        let accounted = Evidence { accounted: Some(1), ..evidence };
        assert_eq!(owner_of(&accounted, &trees), Some(1));
    }

    #[test]
    fn without_evidence_a_process_belongs_to_the_only_worker_or_to_none() {
        let trees = [tree(1, 0, 0, 10), tree(2, 1, 0, 10)];
        assert_eq!(owner_of(&Evidence::default(), &trees), None);
        assert_eq!(owner_of(&Evidence::default(), &trees[..1]), Some(1));
        assert_eq!(owner_of(&Evidence::default(), &[]), None);
        let of_a_later_worker = Evidence { is_unsure: true, ..Evidence::default() };
        assert_eq!(owner_named(&of_a_later_worker, Some((0, 0)), &trees[..1]), None);
        let unrelated = Evidence { may_be_unrelated: true, ..Evidence::default() };
        assert_eq!(owner_of(&unrelated, &trees[..1]), None);
        // A worker that is gone owns nothing.
        let gone = Evidence { accounted: Some(9), ..Evidence::default() };
        assert_eq!(owner_of(&gone, &trees), None);
    }

    #[test]
    fn an_environment_is_wanted_only_where_it_can_tell_workers_apart() {
        let trees = [tree(1, 0, 0, 10), tree(2, 1, 0, 10)];
        let nothing = Evidence::default();
        assert!(is_environment_wanted(&nothing, &trees));
        assert!(!is_environment_wanted(&nothing, &trees[..1]));
        assert!(!is_environment_wanted(&nothing, &[]));
        let unrelated = Evidence { may_be_unrelated: true, ..Evidence::default() };
        assert!(is_environment_wanted(&unrelated, &trees[..1]));
        let unsure = Evidence { is_unsure: true, ..Evidence::default() };
        assert!(!is_environment_wanted(&unsure, &trees));
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
        assert_eq!(read("PPID=42 RELOAD_INDEX=3"), Some((PRELOAD, 3)));
        assert_eq!(read("PPID=42 RELOAD_INDEX=3 WORKER_INDEX="), None);
        assert_eq!(read("PPID=42 RELOAD_INDEX=x WORKER_INDEX=7"), None);
    }
}
