//! What measuring costs: each sample, and memory. What it costs the rest of the host: [`super::dense`].

mod memory;
mod samples;

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::subject::Supervisor;

/// Measures everything, prints tables, and gives the broken promises.
pub(super) fn measure(program: &Path, worker: &Path) -> Result<Vec<String>> {
    let ours =
        |name, options: &'static [&'static str]| Supervisor { name, program: program.to_owned(), options };
    let ebpf = || ours("eBPF", &["--share", "off", "--monitor", "ebpf"]);
    let procfs = || ours("procfs", &["--share", "off", "--monitor", "procfs"]);
    let fast = &["--share", "off", "--monitor", "procfs", "--monitor-interval", "100ms"];
    let mut broken = samples::measure(&ours("procfs", fast), Duration::from_millis(100), worker)?;
    broken.extend(memory::measure(&ebpf(), &procfs(), worker)?);
    Ok(broken)
}
