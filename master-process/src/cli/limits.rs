//! What a worker may use, and who measures it.

use std::time::Duration;

use super::error::{Parsed, UsageError};
use super::resolver::{Resolved, Resolver, Source};
use super::size::{self, Size};
use super::{count, duration, percent, signal};
use crate::config::{Limits, Monitor, Scope, Signal};

pub(super) const MONITOR: &[(&str, Monitor)] =
    &[("auto", Monitor::Auto), ("ebpf", Monitor::Ebpf), ("procfs", Monitor::Procfs), ("off", Monitor::Off)];

pub(super) const ACCOUNT: &[(&str, Scope)] = &[("worker", Scope::Worker), ("tree", Scope::Tree)];

/// The ancestor's variable counts MiB.
const COUNTS_MIB: &str = "MAX_MEMORY_ALLOWED_MB";

pub(super) fn limits(from: &Resolver<'_>) -> Result<Limits, UsageError> {
    let max_cpu = from.resolve("max-cpu", percent::parse_or_off)?;
    let (max_memory, memory_gives_way) = max_memory(from)?;
    Ok(Limits {
        max_cpu: max_cpu.value,
        cpu_gives_way: !max_cpu.is_explicit(),
        cpu_failures: from.one("cpu-failures", count::at_least_one)?,
        max_memory,
        memory_gives_way,
        memory_failures: from.one("memory-failures", count::at_least_one)?,
        interval: from.one("monitor-interval", interval)?,
        delay: from.one("monitor-delay", duration::parse)?,
    })
}

/// CPU time is counted in ticks of 10 ms in `/proc`, and who measures more often does nothing else: a bare `2`, which is
/// milliseconds, was meant to be seconds.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);

fn interval(text: &str) -> Parsed<Duration> {
    let interval = duration::positive(text)?;
    if interval < SHORTEST_INTERVAL {
        return Err("is too short to measure anything; give 10ms or more, such as 2s".into());
    }
    Ok(interval)
}

/// The limit in bytes, and whether it gives way because it is the default.
fn max_memory(from: &Resolver<'_>) -> Result<(Option<u64>, bool), UsageError> {
    let size: Resolved<Option<Size>> = from.resolve("max-memory", size::parse_or_off)?;
    Ok((bytes(&size)?, !size.is_explicit()))
}

fn bytes(size: &Resolved<Option<Size>>) -> Result<Option<u64>, UsageError> {
    match size.value {
        None => Ok(None),
        Some(Size::Bytes(bytes)) => Ok(Some(bytes)),
        Some(Size::Bare(number)) if size.source == Source::Variable(COUNTS_MIB.to_owned()) => {
            size::mib(number)
                .map(Some)
                .ok_or_else(|| size.misfit("is more memory than there can be; give MiB, such as 1200"))
        }
        Some(Size::Bare(_)) => Err(size.misfit("has no unit; give one, such as 1200MiB or 1.2GB, or off")),
    }
}

/// The signal that warns a worker of its memory, which must have a limit then.
pub(super) fn memory_high_signal(from: &Resolver<'_>, limits: &Limits) -> Result<Option<Signal>, UsageError> {
    let Some(signal) = from.optional("memory-high-signal", signal::parse_handled)? else { return Ok(None) };
    if limits.max_memory.is_none() {
        return Err(signal.misfit("has no memory limit to warn of; give --max-memory a size"));
    }
    Ok(Some(signal.value))
}
