//! How much more memory eBPF takes than procfs.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::super::running::Running;
use super::super::subject::Supervisor;

/// Promised: at most so much.
const PROMISED_KIB: u64 = 2048;

/// Measures, prints, and gives the broken promises.
pub(super) fn measure(ebpf: &Supervisor, procfs: &Supervisor, worker: &Path) -> Result<Vec<String>> {
    let (ebpf, procfs) = (pss_kib(ebpf, worker)?, pss_kib(procfs, worker)?);
    println!("\n{:<60}{:>10}{:>12}", "memory (PSS) after the start, KiB", "", "promised");
    println!("  {:<58}{procfs:>10}", "procfs");
    println!("  {:<58}{ebpf:>10}{:>12}", "eBPF", procfs + PROMISED_KIB);
    let more = ebpf.saturating_sub(procfs);
    Ok(Vec::from_iter(
        (more > PROMISED_KIB)
            .then(|| format!("eBPF takes {more} KiB more than procfs, promised {PROMISED_KIB}")),
    ))
}

fn pss_kib(ours: &Supervisor, worker: &Path) -> Result<u64> {
    let (running, _) = Running::start(ours, 1, worker)?;
    // Past the first samples.
    std::thread::sleep(Duration::from_secs(3));
    let pss = running.pss_kib();
    running.end()?;
    pss
}
