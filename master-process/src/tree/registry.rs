//! Records which children of the supervisor are workers. The helper thread can read it at any time, also while a child is
//! being made.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::process::Pid;

use crate::sys::children;

/// The number of waits for a start to register its pid. A start takes a fraction of a millisecond.
const TRIES: u32 = 10_000;

/// The pids of the workers.
#[derive(Debug, Default)]
pub(super) struct Registry {
    pids: Mutex<HashSet<Pid>>,
    /// Whether a child is being made whose pid is not registered yet.
    begins: AtomicBool,
    /// The number of starts so far.
    starts: AtomicU64,
}

impl Registry {
    /// Records that a child is about to be made.
    pub(super) fn begin(&self) {
        self.starts.fetch_add(1, Ordering::SeqCst);
        self.begins.store(true, Ordering::SeqCst);
    }

    /// The number of workers whose start has begun.
    pub(super) fn starts(&self) -> u64 {
        self.starts.load(Ordering::SeqCst)
    }

    /// Registers the pid of the child. `None`: it could not be made.
    pub(super) fn begun(&self, pid: Option<Pid>) {
        self.pids.lock().unwrap_or_else(PoisonError::into_inner).extend(pid);
        self.begins.store(false, Ordering::SeqCst);
    }

    pub(super) fn insert(&self, pid: Pid) {
        self.pids.lock().unwrap_or_else(PoisonError::into_inner).insert(pid);
    }

    /// Removes the pid of a process that is reaped.
    pub(super) fn remove(&self, pid: Pid) {
        self.pids.lock().unwrap_or_else(PoisonError::into_inner).remove(&pid);
    }

    /// Whether all of these are workers, or satisfy `is_known`.
    pub(super) fn has_all(&self, children: &[Pid], is_known: impl Fn(&Pid) -> bool) -> bool {
        let workers = self.pids.lock().unwrap_or_else(PoisonError::into_inner);
        children.iter().all(|child| workers.contains(child) || is_known(child))
    }

    /// The children of the supervisor that are not workers. The children are listed first and the flag is read after
    /// that: if no child is being made then, every listed worker is registered.
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
        // An empty list is better than one that contains a worker, which would be taken for a process of another
        // worker.
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
