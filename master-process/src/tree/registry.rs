//! Which children of ours are workers: known to the helper thread at every moment, also while one is being made.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::process::Pid;

use crate::sys::children;

/// How often it is waited for that a start has come to a pid: it takes a fraction of a millisecond.
const TRIES: u32 = 10_000;

/// Their pids.
#[derive(Debug, Default)]
pub(super) struct Registry {
    pids: Mutex<HashSet<Pid>>,
    /// A child is being made, and is not among them yet.
    begins: AtomicBool,
    /// How many were ever made.
    starts: AtomicU64,
}

impl Registry {
    /// A child is about to be made.
    pub(super) fn begin(&self) {
        self.starts.fetch_add(1, Ordering::SeqCst);
        self.begins.store(true, Ordering::SeqCst);
    }

    /// How many workers were ever begun.
    pub(super) fn starts(&self) -> u64 {
        self.starts.load(Ordering::SeqCst)
    }

    /// It is this one; none: it could not be made.
    pub(super) fn begun(&self, pid: Option<Pid>) {
        self.pids.lock().unwrap_or_else(PoisonError::into_inner).extend(pid);
        self.begins.store(false, Ordering::SeqCst);
    }

    pub(super) fn insert(&self, pid: Pid) {
        self.pids.lock().unwrap_or_else(PoisonError::into_inner).insert(pid);
    }

    /// It is reaped.
    pub(super) fn remove(&self, pid: Pid) {
        self.pids.lock().unwrap_or_else(PoisonError::into_inner).remove(&pid);
    }

    /// Our children that are no workers. What was made before they were listed is registered when nothing is being made
    /// after it.
    pub(super) fn others(&self) -> Vec<Pid> {
        for _ in 0..TRIES {
            let ours = children::ours();
            if self.begins.load(Ordering::SeqCst) {
                std::thread::yield_now();
                continue;
            }
            let workers = self.pids.lock().unwrap_or_else(PoisonError::into_inner);
            return ours.into_iter().filter(|child| !workers.contains(child)).collect();
        }
        // Nobody is better than a worker that would be taken for another one's.
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::sync::Arc;

    #[test]
    fn a_child_that_is_made_while_they_are_listed_is_never_taken_for_another() {
        let registry = Arc::new(Registry::default());
        let stop = Arc::new(AtomicBool::new(false));
        let lister = {
            let (registry, stop) = (Arc::clone(&registry), Arc::clone(&stop));
            std::thread::spawn(move || {
                let mut seen = HashSet::new();
                while !stop.load(Ordering::SeqCst) {
                    seen.extend(registry.others());
                }
                seen
            })
        };
        let mut made = HashSet::new();
        for _ in 0..100 {
            registry.begin();
            let mut child = Command::new("sleep").arg("60").spawn().expect("a process");
            let pid = Pid::from_child(&child);
            registry.begun(Some(pid));
            made.insert(pid);
            child.kill().and_then(|()| child.wait()).expect("it is ours");
        }
        stop.store(true, Ordering::SeqCst);
        let seen = lister.join().expect("it does not panic");
        assert!(seen.is_disjoint(&made), "{:?}", seen.intersection(&made));
    }
}
