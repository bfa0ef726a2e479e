//! Facts about the host and this process that decide which advice fits.

use std::path::Path;

use super::advice::Manager;
use crate::config::{Capabilities, Config};
use crate::sys::capabilities::OwnCapabilities;

/// Where this process runs, and what it may do.
#[derive(Debug, Clone)]
pub(super) struct Host {
    /// The release of the kernel.
    pub(super) kernel: String,
    /// What starts supervisors here.
    pub(super) manager: Manager,
    /// The effective user.
    pub(super) uid: u32,
    /// Whether a seccomp filter applies to this process, as in a container.
    pub(super) is_filtered: bool,
    /// The capabilities that the kernel checks.
    pub(super) capabilities: Capabilities,
}

impl Host {
    /// The host of this process.
    pub(super) fn of_this_process() -> Host {
        let status = text("/proc/self/status").unwrap_or_default();
        let filtered = status.lines().find_map(|line| line.strip_prefix("Seccomp:"));
        Host {
            kernel: text("/proc/sys/kernel/osrelease").unwrap_or_else(|| "?".to_owned()),
            manager: Manager::of_this_process(),
            uid: rustix::process::geteuid().as_raw(),
            is_filtered: filtered.is_some_and(|mode| mode.trim() == "2"),
            capabilities: OwnCapabilities::read().map_or(Capabilities::NONE, |own| own.effective),
        }
    }

    /// Whether this process has all of these capabilities. CAP_SYS_ADMIN includes what was split off it.
    pub(super) fn has(&self, names: &[&str]) -> bool {
        self.lacks(names).is_empty()
    }

    /// Those of these capabilities that this process does not have.
    pub(super) fn lacks(&self, names: &[&str]) -> Capabilities {
        let set = |names: &[&str]| {
            let known = names.iter().filter_map(|name| Capabilities::named(name));
            known.fold(Capabilities::NONE, Capabilities::union)
        };
        let is_admin = set(&["SYS_ADMIN"]).without(self.capabilities).is_empty();
        let included = if is_admin { set(&["BPF", "PERFMON"]) } else { Capabilities::NONE };
        set(names).without(self.capabilities).without(included)
    }
}

#[cfg(test)]
impl Host {
    /// A host with systemd.
    pub(super) fn with(capabilities: u64, is_filtered: bool) -> Host {
        let kernel = "6.18.5".to_owned();
        let capabilities = Capabilities(capabilities);
        Host { kernel, manager: Manager::Systemd, uid: 1, is_filtered, capabilities }
    }
}

/// A kernel parameter or another small file, without the spaces around it.
pub(super) fn text(path: impl AsRef<Path>) -> Option<String> {
    Some(std::fs::read_to_string(path).ok()?.trim().to_owned())
}

/// A number in a small file; `None` also for `max`.
pub(super) fn number(path: impl AsRef<Path>) -> Option<u64> {
    text(path)?.parse().ok()
}

/// The most workers that run at a time: those of a batch of a reload run beside the old ones.
pub(super) fn most_workers(config: &Config) -> u64 {
    let slots = usize::try_from(config.workers).unwrap_or(usize::MAX);
    let batch = config.reload_batch.of(slots).min(slots);
    u64::from(config.workers) + u64::try_from(batch).unwrap_or(u64::MAX)
}
