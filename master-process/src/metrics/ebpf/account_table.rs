//! The accounts of the workers.

use std::collections::{BTreeMap, VecDeque};

use crate::policy::WorkerId;

/// A worker that has an account.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) worker: WorkerId,
    /// The CPU time in the account when the worker got it, in nanoseconds.
    pub(super) before: u64,
    /// The highest CPU time reported for the worker, in nanoseconds.
    pub(super) reported: u64,
    /// The highest memory of all its processes together, in bytes.
    pub(super) peak: u64,
}

/// All accounts, and the workers that have one.
#[derive(Debug)]
pub(super) struct AccountTable {
    /// By account; account 0 is unused.
    entries: Vec<Option<Entry>>,
    accounts: BTreeMap<WorkerId, u32>,
    /// The account that has been free for longest is assigned first: no program may still write to it.
    free: VecDeque<u32>,
}

impl AccountTable {
    /// A table for this number of workers.
    pub(super) fn new(workers: u32) -> AccountTable {
        let accounts = workers as usize + 1;
        AccountTable {
            entries: vec![None; accounts],
            accounts: BTreeMap::new(),
            free: (1..=workers).collect(),
        }
    }

    /// Assigns an account that `is_vacant` to a worker; `None` if there is none.
    pub(super) fn enter(&mut self, worker: WorkerId, is_vacant: impl Fn(u32) -> bool) -> Option<u32> {
        let at = self.free.iter().position(|account| is_vacant(*account))?;
        let account = self.free.remove(at)?;
        let entry = Entry { worker, before: 0, reported: 0, peak: 0 };
        *self.entries.get_mut(account as usize)? = Some(entry);
        self.accounts.insert(worker, account);
        Some(account)
    }

    /// Frees a worker's account.
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

    /// All accounts from account 0 on, with the workers that have them.
    pub(super) fn entries(&mut self) -> impl Iterator<Item = Option<&mut Entry>> {
        self.entries.iter_mut().map(Option::as_mut)
    }
}

#[cfg(test)]
mod tests {
    use super::AccountTable;
    use crate::policy::WorkerId;

    fn worker(serial: u64) -> WorkerId {
        WorkerId { slot: 0, serial }
    }

    #[test]
    fn an_account_rests_for_as_long_as_others_are_free() {
        let mut account_table = AccountTable::new(3);
        assert_eq!(account_table.enter(worker(1), |_| true), Some(1));
        assert!(account_table.leave(worker(1)).is_some());
        assert_eq!(account_table.enter(worker(2), |_| true), Some(2));
        assert_eq!(account_table.enter(worker(3), |_| true), Some(3));
        assert_eq!(account_table.enter(worker(4), |_| true), Some(1));
        assert_eq!(account_table.enter(worker(5), |_| true), None);
    }

    #[test]
    fn an_account_whose_process_is_still_there_is_passed_over() {
        let mut account_table = AccountTable::new(2);
        assert_eq!(account_table.enter(worker(1), |account| account != 1), Some(2));
        assert_eq!(account_table.enter(worker(2), |account| account != 1), None);
        assert_eq!(account_table.enter(worker(2), |_| true), Some(1));
        assert_eq!(account_table.account(worker(2)), Some(1));
    }
}
