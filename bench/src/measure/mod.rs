//! What measuring costs: each context switch of the host, each sample, and memory.

mod memory;
mod programs;
mod samples;
mod switches;

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::subject::Supervisor;
use samples::Sources;

/// Measures everything, prints tables, and gives the broken promises.
pub(super) fn measure(program: &Path, worker: &Path, pingpong: &Path) -> Result<Vec<String>> {
    let ours =
        |name, options: &'static [&'static str]| Supervisor { name, program: program.to_owned(), options };
    let ebpf = || ours("eBPF", &["--share", "off", "--monitor", "ebpf"]);
    let procfs = || ours("procfs", &["--share", "off", "--monitor", "procfs"]);
    let sources = Sources {
        ebpf: ours("eBPF", &["--share", "off", "--monitor", "ebpf", "--monitor-interval", "100ms"]),
        procfs: ours("procfs", &["--share", "off", "--monitor", "procfs", "--monitor-interval", "100ms"]),
        default: ebpf(),
        fast: Duration::from_millis(100),
    };
    let mut broken = switches::measure(&ebpf(), worker, pingpong)?;
    broken.extend(samples::measure(&sources, worker)?);
    broken.extend(memory::measure(&ebpf(), &procfs(), worker)?);
    Ok(broken)
}
