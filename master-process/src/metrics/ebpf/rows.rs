//! Which supervisor has which row in the maps of the program that measures for all of them.
//!
//! A table that all of them have mapped says it. Nothing is done for a supervisor that ends: its row is one of a pid that is gone,
//! and the next supervisor takes it, with what is left in it. So the maps hold the memory of at most as many supervisors
//! as were there at the same time.

use std::sync::OnceLock;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::time::{SystemTime, UNIX_EPOCH};

use master_process_common::Owner;
use rustix::io::Errno;
use rustix::process::{Pid, getpid, test_kill_process};

use crate::sys::bpf::Mapping;

/// The table.
#[derive(Debug)]
pub(super) struct Rows {
    owners: Mapping<Owner>,
}

impl Rows {
    pub(super) fn new(owners: Mapping<Owner>) -> Rows {
        Rows { owners }
    }

    /// Takes a row; `None` if all of them have a supervisor.
    pub(super) fn take(self) -> Option<Row> {
        let row = take(&self.owners, me(), |owner| is_gone(owner, me()))?;
        Some(Row { rows: self, row })
    }
}

/// A row that this supervisor has until the value is dropped.
#[derive(Debug)]
pub(super) struct Row {
    rows: Rows,
    row: u32,
}

impl Row {
    pub(super) fn number(&self) -> u32 {
        self.row
    }
}

impl Drop for Row {
    fn drop(&mut self) {
        if let Some(owner) = self.rows.owners.get(self.row as usize) {
            owner.0.store(0, Release);
        }
    }
}

/// Takes the first row that is free or whose owner is gone. A row that this process had as another program comes first: no
/// other supervisor takes it as long as this process lives.
fn take(owners: &[Owner], me: u64, is_gone: impl Fn(u64) -> bool) -> Option<u32> {
    let is_mine = |owner: u64| owner & PID == me & PID && owner != me;
    let wanted: [&dyn Fn(u64) -> bool; 2] = [&is_mine, &|owner| owner == 0 || is_gone(owner)];
    for is_wanted in wanted {
        for (row, owner) in (0..).zip(owners) {
            let now = owner.0.load(Relaxed);
            // Another one may take it at the same time.
            if is_wanted(now) && owner.0.compare_exchange(now, me, AcqRel, Acquire).is_ok() {
                return Some(row);
            }
        }
    }
    None
}

/// The lower half of an [`Owner`].
const PID: u64 = 0xffff_ffff;

/// This process as an owner. The upper half tells it from the program that it was before an upgrade.
fn me() -> u64 {
    static STARTED: OnceLock<u64> = OnceLock::new();
    let started = *STARTED.get_or_init(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::from(since.subsec_nanos()) ^ since.as_secs()
    });
    started << 32 | u64::from(getpid().as_raw_pid().cast_unsigned())
}

/// Whether there is no process with the pid of this owner, not even one that has ended and was not waited for.
fn is_gone(owner: u64, me: u64) -> bool {
    let pid = i32::try_from(owner & PID).ok().and_then(Pid::from_raw);
    owner != me && pid.is_none_or(|pid| test_kill_process(pid) == Err(Errno::SRCH))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    fn owners(of: &[u64]) -> Vec<Owner> {
        of.iter().map(|owner| Owner(AtomicU64::new(*owner))).collect()
    }

    fn numbers(owners: &[Owner]) -> Vec<u64> {
        owners.iter().map(|owner| owner.0.load(Relaxed)).collect()
    }

    #[test]
    fn the_first_row_that_is_free_or_of_a_supervisor_that_is_gone_is_taken() {
        let is_gone = |owner| owner == 7;
        let table = owners(&[5, 7, 0]);
        assert_eq!(take(&table, 100, is_gone), Some(1));
        assert_eq!(take(&table, 101, is_gone), Some(2));
        assert_eq!(take(&table, 102, is_gone), None, "all have one");
        assert_eq!(numbers(&table), [5, 100, 101]);
    }

    #[test]
    fn a_row_of_the_program_before_an_upgrade_comes_first() {
        let (before, now) = (1 << 32 | 100, 2 << 32 | 100);
        let table = owners(&[0, 5, before]);
        assert_eq!(take(&table, now, |_| false), Some(2));
        assert_eq!(take(&table, now, |_| false), Some(0), "what it has itself is not free");
    }

    #[test]
    fn many_at_once_take_different_rows() {
        let table = owners(&[0; 64]);
        let taken = std::thread::scope(|scope| {
            let take = |me| take(&table, me, |_| false);
            let threads: Vec<_> = (1..=64).map(|me| scope.spawn(move || take(me))).collect();
            threads.into_iter().map(|thread| thread.join().expect("it ends")).collect::<Vec<_>>()
        });
        let taken: std::collections::BTreeSet<u32> =
            taken.into_iter().map(|row| row.expect("there are enough")).collect();
        assert_eq!(taken.len(), 64);
    }

    #[test]
    fn an_owner_is_gone_when_its_process_is() {
        assert!(!is_gone(me(), 0), "we live");
        assert!(is_gone(u64::from(u32::MAX), 0), "no pid");
        let mut child = std::process::Command::new("true").spawn().expect("true");
        let owner = 9 << 32 | u64::from(child.id());
        assert!(!is_gone(owner, me()), "it was not waited for");
        child.wait().expect("our child");
        assert!(is_gone(owner, me()));
    }
}
