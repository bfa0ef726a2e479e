//! Which account each worker has.

use std::collections::{BTreeMap, VecDeque};

use rustix::process::Pid;

use crate::policy::WorkerId;

/// A worker that has an account.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) account: u32,
    pub(super) pid: Pid,
    /// The pid in the initial PID namespace.
    pub(super) number: u32,
    /// The address of the seccomp filter that it was started with, which its descendants have too; 0 if there is none.
    pub(super) filter: u64,
    /// The number of its events that were reported.
    pub(super) events: u64,
    /// Adopted processes of the worker, and their accounts.
    pub(super) adopted: Vec<(Pid, u32)>,
}

/// All workers that have an account. The accounts of adopted processes are above those of workers: the program measures
/// them first.
#[derive(Debug)]
pub(super) struct Accounts {
    entries: BTreeMap<WorkerId, Entry>,
    /// The account that has been free for longest is assigned first: the program may still be writing to the last one.
    free: VecDeque<u32>,
    free_for_adopted: VecDeque<u32>,
}

impl Accounts {
    /// For this number of workers and of adopted processes. Account 0 is none.
    pub(super) fn new(workers: u32, adopted: u32) -> Accounts {
        Accounts {
            entries: BTreeMap::new(),
            free: (1..=workers).collect(),
            free_for_adopted: (workers + 1..=workers + adopted).collect(),
        }
    }

    /// Assigns an account to a worker; `None` if all are in use.
    pub(super) fn enter(&mut self, worker: WorkerId, pid: Pid, number: u32, filter: u64) -> Option<u32> {
        let account = self.free.pop_front()?;
        self.entries.insert(worker, Entry { account, pid, number, filter, events: 0, adopted: Vec::new() });
        Some(account)
    }

    /// Assigns an account to an adopted process of a worker. Returns the account that it is linked from, and its own.
    pub(super) fn adopt(&mut self, worker: WorkerId, pid: Pid) -> Option<(u32, u32)> {
        let entry = self.entries.get_mut(&worker)?;
        if entry.adopted.iter().any(|(adopted, _)| *adopted == pid) {
            return None;
        }
        let account = self.free_for_adopted.pop_front()?;
        let before = entry.adopted.last().map_or(entry.account, |(_, account)| *account);
        entry.adopted.push((pid, account));
        Some((before, account))
    }

    /// Frees the accounts of the adopted processes that are gone, and returns the accounts, in the order of their links, of each
    /// worker that had one.
    pub(super) fn release_gone(&mut self, is_gone: impl Fn(u32) -> bool) -> Vec<Vec<u32>> {
        let mut changed = Vec::new();
        for entry in self.entries.values_mut() {
            let (gone, left): (Vec<_>, Vec<_>) =
                entry.adopted.drain(..).partition(|(_, account)| is_gone(*account));
            entry.adopted = left;
            if !gone.is_empty() {
                self.free_for_adopted.extend(gone.iter().map(|(_, account)| *account));
                let adopted = entry.adopted.iter().map(|(_, account)| *account);
                changed.push(std::iter::once(entry.account).chain(adopted).collect());
            }
        }
        changed
    }

    /// Frees the accounts of a worker, and returns them.
    pub(super) fn leave(&mut self, worker: WorkerId) -> Option<Entry> {
        let entry = self.entries.remove(&worker)?;
        self.free.push_back(entry.account);
        self.free_for_adopted.extend(entry.adopted.iter().map(|(_, account)| *account));
        Some(entry)
    }

    pub(super) fn of(&self, worker: WorkerId) -> Option<&Entry> {
        self.entries.get(&worker)
    }

    pub(super) fn of_mut(&mut self, worker: WorkerId) -> Option<&mut Entry> {
        self.entries.get_mut(&worker)
    }

    /// The worker that was started with one of these seccomp filters.
    pub(super) fn with_filter(&self, filters: &[u64]) -> Option<WorkerId> {
        let has = |entry: &Entry| entry.filter != 0 && filters.contains(&entry.filter);
        self.entries.iter().find(|(_, entry)| has(entry)).map(|(worker, _)| *worker)
    }

    /// The first processes of all workers.
    pub(super) fn pids(&self) -> impl Iterator<Item = Pid> {
        self.entries.values().map(|entry| entry.pid)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (WorkerId, &mut Entry)> {
        self.entries.iter_mut().map(|(worker, entry)| (*worker, entry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(serial: u64) -> WorkerId {
        WorkerId { slot: 0, serial }
    }

    fn pid(number: i32) -> Pid {
        Pid::from_raw(number).expect("a number")
    }

    #[test]
    fn an_account_is_not_reused_while_others_are_free() {
        let mut accounts = Accounts::new(3, 1);
        assert_eq!(accounts.enter(worker(1), pid(1), 1, 0), Some(1));
        assert!(accounts.leave(worker(1)).is_some());
        assert_eq!(accounts.enter(worker(2), pid(2), 2, 0), Some(2));
        assert_eq!(accounts.enter(worker(3), pid(3), 3, 0), Some(3));
        assert_eq!(accounts.enter(worker(4), pid(4), 4, 0), Some(1));
        assert_eq!(accounts.enter(worker(5), pid(5), 5, 0), None);
    }

    #[test]
    fn adopted_processes_are_linked_from_their_worker_in_order() {
        let mut accounts = Accounts::new(2, 3);
        accounts.enter(worker(1), pid(10), 10, 0).expect("an account");
        assert_eq!(accounts.adopt(worker(1), pid(11)), Some((1, 3)));
        assert_eq!(accounts.adopt(worker(1), pid(12)), Some((3, 4)));
        assert_eq!(accounts.adopt(worker(1), pid(12)), None, "it has one already");
        assert_eq!(accounts.adopt(worker(2), pid(13)), None, "there is no such worker");
        assert_eq!(accounts.release_gone(|account| account == 3), [[1, 4]], "what is left is linked anew");
        assert!(accounts.release_gone(|account| account == 3).is_empty());
        let left = accounts.leave(worker(1)).expect("it was there");
        assert_eq!(left.adopted, [(pid(12), 4)]);
        assert_eq!(accounts.free_for_adopted, [5, 3, 4]);
    }
}
