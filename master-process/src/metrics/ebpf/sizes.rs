//! How much the maps hold.

use crate::config::Scope;

/// Every number of entries, from the number of workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizes {
    /// Workers that have an account at a time, those that are dead and not let go of among them. Account 0 is nobody's.
    pub(super) workers: u32,
    /// Places for processes that are not a worker's own.
    pub(super) descendants: u32,
}

/// A reload doubles the workers, and what is not let go of yet when the next one starts keeps its number a little.
const WORKERS_PER_WORKER: u32 = 3;
/// Even a single worker may be killed and started many times before the kernel has let go of the first.
const MIN_WORKERS: u32 = 64;
/// A worker that runs other programs runs a few at a time; one in a thousand runs hundreds, so few workers have many.
const DESCENDANTS_PER_WORKER: u32 = 16;
/// A build system as a worker.
const MIN_DESCENDANTS: u32 = 4096;
/// Each is 64 bytes, and as many again in the table that finds them: 128 MiB of the kernel's memory at most.
const MAX_DESCENDANTS: u32 = 1 << 20;

impl Sizes {
    pub(super) fn new(scope: Scope, workers: u32) -> Sizes {
        let descendants = match scope {
            // A map without entries cannot be made.
            Scope::Worker => 1,
            Scope::Tree => {
                workers.saturating_mul(DESCENDANTS_PER_WORKER).clamp(MIN_DESCENDANTS, MAX_DESCENDANTS)
            }
        };
        Sizes { workers: workers.saturating_mul(WORKERS_PER_WORKER).max(MIN_WORKERS), descendants }
    }

    /// Entries of the map of accounts.
    pub(super) fn accounts(self) -> u32 {
        1 + self.workers
    }

    /// Entries of the map of processes.
    pub(super) fn places(self) -> u32 {
        self.first_shared_place() + self.descendants
    }

    /// The first place that is not a worker's own.
    pub(super) fn first_shared_place(self) -> u32 {
        1 + self.workers
    }

    /// The places that are given out by the kernel side, the one that is to go first last.
    pub(super) fn shared_places(self) -> impl Iterator<Item = u32> {
        (self.first_shared_place()..self.places()).rev()
    }
}
