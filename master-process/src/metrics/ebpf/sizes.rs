//! The sizes of the maps.

use crate::config::Scope;

/// The numbers of entries for a number of workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizes {
    /// The number of workers that can have an account at a time, with those that have ended and are not released yet.
    pub(super) workers: u32,
    /// The number of entries for descendants of workers.
    pub(super) descendants: u32,
}

/// A reload doubles the workers, and an ended worker keeps its account until it is released.
const WORKERS_PER_WORKER: u32 = 3;
/// Even a single worker may be killed and started many times before the kernel releases the first process.
const MIN_WORKERS: u32 = 64;
/// A worker that runs other programs runs a few at a time. One in a thousand runs hundreds, so the minimum for few
/// workers is high.
const DESCENDANTS_PER_WORKER: u32 = 16;
/// Enough for a build system as a worker.
const MIN_DESCENDANTS: u32 = 4096;
/// Each entry takes 64 bytes, and as much again in the hash table: at most 128 MiB of kernel memory.
const MAX_DESCENDANTS: u32 = 1 << 20;

impl Sizes {
    pub(super) fn new(scope: Scope, workers: u32) -> Sizes {
        let descendants = match scope {
            // The kernel makes no map without entries.
            Scope::Worker => 1,
            Scope::Tree => {
                workers.saturating_mul(DESCENDANTS_PER_WORKER).clamp(MIN_DESCENDANTS, MAX_DESCENDANTS)
            }
        };
        Sizes { workers: workers.saturating_mul(WORKERS_PER_WORKER).max(MIN_WORKERS), descendants }
    }

    /// The number of entries of the map of accounts.
    pub(super) fn accounts(self) -> u32 {
        1 + self.workers
    }

    /// The number of entries of the map of processes.
    pub(super) fn max_processes(self) -> u32 {
        self.first_shared_index() + self.descendants
    }

    /// The first index that is not reserved for a worker's own process.
    pub(super) fn first_shared_index(self) -> u32 {
        1 + self.workers
    }

    /// The indexes for descendants; the last one is assigned first.
    pub(super) fn shared_indexes(self) -> impl Iterator<Item = u32> {
        (self.first_shared_index()..self.max_processes()).rev()
    }
}
