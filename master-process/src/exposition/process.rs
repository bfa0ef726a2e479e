//! The supervisor itself, under the names that all client libraries use.

use std::fmt;

use super::family::{Families, Labels, in_bytes, in_seconds, plain};
use super::workers::unix_time;
use crate::control::Snapshot;

pub(super) fn encode(families: &mut Families<'_>, instances: &[(Option<&str>, &Snapshot)]) -> fmt::Result {
    let labels = |name| Labels { name, ..Labels::default() };
    let some = |of: fn(&Snapshot) -> Option<u64>| {
        instances.iter().filter_map(move |(name, snapshot)| Some((labels(*name), of(snapshot)?)))
    };
    let cpu = in_seconds("process_cpu", "The CPU time of the supervisor");
    families
        .counters(&cpu, instances.iter().map(|(name, of)| (labels(*name), of.process.cpu_seconds_total)))?;
    let resident = in_bytes("process_resident_memory", "The resident memory of the supervisor");
    families.gauges(&resident, some(|of| of.process.memory_bytes))?;
    let space = in_bytes("process_virtual_memory", "The address space of the supervisor");
    families.gauges(&space, some(|of| of.process.virtual_memory_bytes))?;
    let open = plain("process_open_fds", "The open descriptors of the supervisor");
    families.gauges(&open, some(|of| of.process.open_fds))?;
    let most = plain("process_max_fds", "The most descriptors that the supervisor may open");
    families.gauges(&most, some(|of| of.process.max_fds))?;
    let started = in_seconds("process_start_time", "When the supervisor was started, since 1970");
    let times = instances
        .iter()
        .filter_map(|(name, snapshot)| Some((labels(*name), unix_time(&snapshot.started_at)?)));
    families.gauges(&started, times)
}
