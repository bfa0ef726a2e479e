//! What this process itself uses.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// The address space.
    pub virtual_size: u64,
    /// What is resident.
    pub resident: u64,
}

/// The CPU time of all its threads.
pub fn cpu_time() -> Duration {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(used).unwrap_or_default()
}

/// Its memory: `/proc/self/statm` of proc(5). `None` without `/proc`.
pub fn memory() -> Option<Memory> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let page = u64::try_from(rustix::param::page_size()).ok()?;
    let mut pages = text.split_ascii_whitespace().map(|word| word.parse::<u64>().ok());
    let (virtual_size, resident) = (pages.next()??, pages.next()??);
    Some(Memory { virtual_size: virtual_size * page, resident: resident * page })
}

/// The number of its open descriptors. Since Linux 6.2 the size of `/proc/self/fd` is that; before, they are counted.
pub fn open_descriptors() -> Option<u64> {
    let size = std::fs::metadata("/proc/self/fd").ok()?.len();
    if size > 0 {
        return Some(size);
    }
    let entries = std::fs::read_dir("/proc/self/fd").ok()?.count();
    // The directory itself was open meanwhile.
    u64::try_from(entries.saturating_sub(1)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something() {
        let memory = memory().expect("/proc is mounted");
        assert!(memory.resident > 0 && memory.virtual_size >= memory.resident, "{memory:?}");
        let before = open_descriptors().expect("/proc is mounted");
        let more: Vec<_> = (0..100).map(|_| std::fs::File::open("/dev/null").expect("it opens")).collect();
        let after = open_descriptors().expect("/proc is mounted");
        assert!(after >= before + 90, "{before} and {} more, not {after}", more.len());
        assert!(cpu_time() > Duration::ZERO);
    }
}
