//! The cgroup of a slot, which has the limits. Each worker of the slot has a cgroup of its own in it, without
//! controllers.
//!
//! The kernel keeps a removed cgroup for as long as memory is charged to it, such as cached files: a crash loop would fill
//! its memory with cgroups. So the workers of a slot use its cgroup in turn. They do not share the one below: after
//! `cgroup.kill`, newer kernels kill whatever is started into that cgroup with `CLONE_INTO_CGROUP` (seen on 6.18).
//! Memory is charged to the slot's cgroup alone, so that the one below is gone when it is removed.

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::cgroup::{Folder, SavedFolder, Unusable, read, write};
use super::cgroup_limits::{Counters, Setting, number};
use super::handover::{Incoming, Outgoing};
use crate::config::CgroupLimits;

/// The cgroup of a slot. It is removed with the last worker that uses it.
#[derive(Debug)]
pub struct Slot {
    folder: Folder,
    number: u32,
    limits: CgroupLimits,
}

/// It as a supervisor hands it over.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct SavedSlot {
    #[serde(flatten)]
    folder: SavedFolder,
    number: u32,
}

/// Those of a supervisor as that hands them over, each once: workers of a slot that use it in turn have it in common.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct SavedSlots(Vec<SavedSlot>);

impl SavedSlots {
    /// Goes on with them. Others name each by its index.
    pub(crate) fn resume(self, limits: CgroupLimits, from: &mut Incoming) -> Vec<Arc<Slot>> {
        let resumed = self.0.into_iter().map(|SavedSlot { folder, number }| {
            Arc::new(Slot { folder: Folder::resume(folder, from), number, limits })
        });
        resumed.collect()
    }
}

/// Those that are being saved.
#[derive(Debug, Default)]
pub(crate) struct SavingSlots(Vec<Arc<Slot>>);

impl SavingSlots {
    /// The index of this one.
    pub(crate) fn index(&mut self, slot: &Arc<Slot>) -> usize {
        self.0.iter().position(|known| Arc::ptr_eq(known, slot)).unwrap_or_else(|| {
            self.0.push(Arc::clone(slot));
            self.0.len() - 1
        })
    }

    /// All of them.
    pub(crate) fn save(&self, out: &mut Outgoing) -> SavedSlots {
        let save = |slot: &Arc<Slot>| SavedSlot { folder: slot.folder.save(out), number: slot.number };
        SavedSlots(self.0.iter().map(save).collect())
    }
}

impl Slot {
    pub(super) fn new(folder: Folder, number: u32, limits: CgroupLimits) -> Slot {
        Slot { folder, number, limits }
    }

    /// The number of the slot.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    pub(super) fn name(&self) -> &str {
        &self.folder.name
    }

    pub(super) fn limits(&self) -> &CgroupLimits {
        &self.limits
    }

    /// Prepares it for a worker that is about to be started, whatever an earlier one has set. Returns what the kernel has
    /// counted so far.
    pub(super) fn prepare(&self) -> Result<Counters, Unusable> {
        // In a frozen cgroup no program starts.
        let _before_linux_5_2 = write(&self.folder.own, "cgroup.freeze", "0");
        self.set(self.limits.before_start())?;
        Ok(self.counters())
    }

    /// Sets the limits that hold once the program of the worker runs.
    pub(super) fn limit(&self) -> Result<(), Unusable> {
        self.set(self.limits.once_it_runs())
    }

    fn set(&self, settings: Vec<Setting>) -> Result<(), Unusable> {
        settings.into_iter().try_for_each(|(file, value)| {
            write(&self.folder.own, file, &value)
                .map_err(|error| Unusable::Failed(format!("{}/{file}", self.folder.name), error))
        })
    }

    pub(super) fn counters(&self) -> Counters {
        Counters::read(&self.limits, |file| read(&self.folder.own, file))
    }

    /// Makes a cgroup for a worker in it.
    pub(super) fn make_below(self: &Arc<Slot>, serial: u64) -> io::Result<Folder> {
        Folder::make(&self.folder.own, format!("worker-{serial}"))
    }

    /// Whether files of a tmpfs, which outlive a worker, leave the next one less than half of the memory. The kernel frees
    /// the memory of all other files when it needs some.
    pub(super) fn is_full_of_files(&self) -> bool {
        self.limits.memory_max.is_some_and(|most| {
            read(&self.folder.own, "memory.stat").is_ok_and(|text| number(&text, "shmem") > most / 2)
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let _in_use = self.folder.remove();
    }
}

/// The descriptor of a slot's cgroup, for tests.
#[cfg(test)]
pub(super) fn fd(slot: &Slot) -> &std::os::fd::OwnedFd {
    &slot.folder.own
}
