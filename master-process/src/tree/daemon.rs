//! Selects the process that becomes the worker, if the first process only put the program into the background.

use std::collections::HashMap;

use rustix::process::Pid;

use super::Member;
use crate::sys::holders::Holds;

/// The state of a worker whose first process has exited with 0.
#[derive(Debug, Clone, Copy, Default)]
pub struct Exited {
    /// The worker was not ready yet, and may listen soon.
    pub was_starting: bool,
    /// The process that reported the worker as ready: it need not listen.
    pub notifier: Option<Pid>,
}

/// Returns the process that becomes the worker, and whether it, or a descendant, has a listener of the worker open. The
/// process is a child of the supervisor, as every daemon is. `None`: none of the remaining processes is the worker.
#[must_use]
pub fn daemon(members: &[Member], exited: Exited) -> Option<(&Member, Holds)> {
    let serving = serving(members, exited.notifier);
    let of_root = |root: &Member| serving.get(&root.pid).copied().unwrap_or(Holds::No);
    let roots = members.iter().filter(|member| member.adopted);
    let best = roots.min_by_key(|root| (of_root(root), root.started, root.pid.as_raw_pid()))?;
    let holds = of_root(best);
    (holds != Holds::No || exited.was_starting).then_some((best, holds))
}

/// The children of the supervisor that have, or may have, a listener open, themselves or in a descendant. A listening
/// process whose ancestors are unknown may descend from any of the children.
fn serving(members: &[Member], notifier: Option<Pid>) -> HashMap<Pid, Holds> {
    let by_pid: HashMap<Pid, &Member> = members.iter().map(|member| (member.pid, member)).collect();
    let mut found: HashMap<Pid, Holds> = HashMap::new();
    let mut note = |root: Pid, holds: Holds| {
        let noted = found.entry(root).or_insert(Holds::No);
        *noted = holds.min(*noted);
    };
    for member in members {
        let holds = if notifier == Some(member.pid) { Holds::Yes } else { member.holds };
        if holds == Holds::No {
            continue;
        }
        match root_of(member, &by_pid) {
            Some(root) => note(root, holds),
            None => {
                let roots = members.iter().filter(|member| member.adopted);
                roots.for_each(|root| note(root.pid, Holds::Unknown));
            }
        }
    }
    found
}

fn root_of(member: &Member, by_pid: &HashMap<Pid, &Member>) -> Option<Pid> {
    let mut at = member;
    // The parents were not all read at the same time, so they can form a cycle. No line of parents is longer than the
    // number of processes.
    for _ in 0..=by_pid.len() {
        if at.adopted {
            return Some(at.pid);
        }
        at = by_pid.get(&at.parent?)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pid(number: i32) -> Pid {
        Pid::from_raw(number).expect("not 0")
    }

    /// A child of the supervisor. Start times follow the order of the pids.
    fn adopted(number: i32, holds: Holds) -> Member {
        let started = u64::try_from(number).expect("positive");
        Member { pid: pid(number), parent: Some(pid(1)), started, name: String::new(), adopted: true, holds }
    }

    fn child(number: i32, parent: i32, holds: Holds) -> Member {
        Member { parent: Some(pid(parent)), adopted: false, ..adopted(number, holds) }
    }

    fn chosen(members: &[Member], exited: Exited) -> Option<(i32, Holds)> {
        daemon(members, exited).map(|(member, holds)| (member.pid.as_raw_pid(), holds))
    }

    const READY: Exited = Exited { was_starting: false, notifier: None };
    const STARTING: Exited = Exited { was_starting: true, notifier: None };

    #[test]
    fn a_process_without_a_listener_of_a_ready_worker_is_not_the_daemon() {
        let helper = adopted(10, Holds::No);
        assert_eq!(chosen(std::slice::from_ref(&helper), READY), None);
        assert_eq!(chosen(&[], READY), None);
        assert_eq!(chosen(&[helper, adopted(11, Holds::Yes)], READY), Some((11, Holds::Yes)));
    }

    #[test]
    fn a_process_whose_child_listens_is_the_daemon() {
        let members = [
            adopted(10, Holds::No),
            adopted(11, Holds::No),
            child(12, 11, Holds::No),
            child(13, 12, Holds::Yes),
        ];
        assert_eq!(chosen(&members, READY), Some((11, Holds::Yes)));
    }

    #[test]
    fn an_unreadable_process_may_be_the_daemon_and_ranks_after_a_listening_one() {
        let members = [adopted(10, Holds::Unknown), adopted(11, Holds::No)];
        assert_eq!(chosen(&members, READY), Some((10, Holds::Unknown)));
        assert_eq!(chosen(&[members[0].clone(), adopted(12, Holds::Yes)], READY), Some((12, Holds::Yes)));
        // Its parent was not seen.
        let lost = [adopted(10, Holds::No), child(13, 12, Holds::Yes)];
        assert_eq!(chosen(&lost, READY), Some((10, Holds::Unknown)));
        // Their parent pids form a cycle.
        let circle = [child(13, 14, Holds::Yes), child(14, 13, Holds::No)];
        assert_eq!(chosen(&circle, READY), None);
    }

    #[test]
    fn the_oldest_process_of_a_starting_worker_may_listen_soon() {
        let members = [adopted(11, Holds::No), adopted(10, Holds::No)];
        assert_eq!(chosen(&members, STARTING), Some((10, Holds::No)));
        let members = [adopted(10, Holds::No), adopted(11, Holds::Yes)];
        assert_eq!(chosen(&members, STARTING), Some((11, Holds::Yes)));
    }

    #[test]
    fn a_process_that_reported_the_worker_ready_need_not_listen() {
        let members = [adopted(10, Holds::No), adopted(11, Holds::No), child(12, 11, Holds::No)];
        let said_by = |number| Exited { notifier: Some(pid(number)), ..READY };
        assert_eq!(chosen(&members, said_by(12)), Some((11, Holds::Yes)));
        assert_eq!(chosen(&members, said_by(99)), None, "it is gone");
    }
}
