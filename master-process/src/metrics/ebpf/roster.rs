//! Which worker has which account.

use std::collections::{BTreeMap, VecDeque};

use crate::policy::WorkerId;

/// A worker that has an account.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) worker: WorkerId,
    /// What was in the account when it became this worker's, in nanoseconds.
    pub(super) before: u64,
    /// The most CPU time that was ever reported of it, in nanoseconds.
    pub(super) reported: u64,
    /// The most memory that was ever seen of all its processes together, in bytes.
    pub(super) peak: u64,
}

/// Every account that can be given out, and the workers that have one.
#[derive(Debug)]
pub(super) struct Roster {
    /// By account; 0 is nobody's.
    entries: Vec<Option<Entry>>,
    accounts: BTreeMap<WorkerId, u32>,
    /// The one that has been free for longest goes first: nothing may still be on its way to it.
    free: VecDeque<u32>,
}

impl Roster {
    /// For so many workers at a time.
    pub(super) fn new(workers: u32) -> Roster {
        let accounts = workers as usize + 1;
        Roster { entries: vec![None; accounts], accounts: BTreeMap::new(), free: (1..=workers).collect() }
    }

    /// Gives a worker an account that `is_vacant`; `None` where there is none.
    pub(super) fn enter(&mut self, worker: WorkerId, is_vacant: impl Fn(u32) -> bool) -> Option<u32> {
        let at = self.free.iter().position(|account| is_vacant(*account))?;
        let account = self.free.remove(at)?;
        let entry = Entry { worker, before: 0, reported: 0, peak: 0 };
        *self.entries.get_mut(account as usize)? = Some(entry);
        self.accounts.insert(worker, account);
        Some(account)
    }

    /// Takes a worker's account back.
    pub(super) fn leave(&mut self, worker: WorkerId) -> Option<(u32, Entry)> {
        let account = self.accounts.remove(&worker)?;
        let entry = self.entries.get_mut(account as usize)?.take()?;
        self.free.push_back(account);
        Some((account, entry))
    }

    pub(super) fn account(&self, worker: WorkerId) -> Option<u32> {
        self.accounts.get(&worker).copied()
    }

    pub(super) fn entry(&mut self, account: u32) -> Option<&mut Entry> {
        self.entries.get_mut(account as usize)?.as_mut()
    }

    /// Every account, with the worker that has it, from account 0 on.
    pub(super) fn entries(&mut self) -> impl Iterator<Item = Option<&mut Entry>> {
        self.entries.iter_mut().map(Option::as_mut)
    }
}

#[cfg(test)]
mod tests {
    use super::Roster;
    use crate::policy::WorkerId;

    fn worker(serial: u64) -> WorkerId {
        WorkerId { slot: 0, serial }
    }

    #[test]
    fn an_account_rests_for_as_long_as_others_are_free() {
        let mut roster = Roster::new(3);
        assert_eq!(roster.enter(worker(1), |_| true), Some(1));
        assert!(roster.leave(worker(1)).is_some());
        assert_eq!(roster.enter(worker(2), |_| true), Some(2));
        assert_eq!(roster.enter(worker(3), |_| true), Some(3));
        assert_eq!(roster.enter(worker(4), |_| true), Some(1));
        assert_eq!(roster.enter(worker(5), |_| true), None);
    }

    #[test]
    fn an_account_whose_process_is_still_there_is_passed_over() {
        let mut roster = Roster::new(2);
        assert_eq!(roster.enter(worker(1), |account| account != 1), Some(2));
        assert_eq!(roster.enter(worker(2), |account| account != 1), None);
        assert_eq!(roster.enter(worker(2), |_| true), Some(1));
        assert_eq!(roster.account(worker(2)), Some(1));
    }
}
