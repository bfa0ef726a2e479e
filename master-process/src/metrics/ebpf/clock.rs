//! The clock that the programs read.

use rustix::time::{ClockId, clock_gettime};

/// The monotonic clock of the initial time namespace.
#[derive(Debug)]
pub(super) struct Clock {
    /// The offset of this time namespace's clock, in nanoseconds.
    ahead: i64,
}

/// See time_namespaces(7).
const OFFSETS: &str = "/proc/self/timens_offsets";

impl Clock {
    /// Without the file, there are no time namespaces or no `/proc`: the offset is taken as 0.
    pub(super) fn new() -> Clock {
        let text = std::fs::read_to_string(OFFSETS).unwrap_or_default();
        Clock { ahead: offset(&text).unwrap_or(0) }
    }

    /// The time in nanoseconds. The vDSO answers, without a system call.
    pub(super) fn now(&self) -> u64 {
        let time = clock_gettime(ClockId::Monotonic);
        let ours = time.tv_sec.saturating_mul(NANOSECONDS).saturating_add(time.tv_nsec);
        u64::try_from(ours - self.ahead).unwrap_or(0)
    }
}

/// Nanoseconds in a second.
const NANOSECONDS: i64 = 1_000_000_000;

/// The offset in the line `monotonic SECONDS NANOSECONDS` of the file.
fn offset(text: &str) -> Option<i64> {
    let line = text.lines().find(|line| line.starts_with("monotonic"))?;
    let mut numbers = line.split_whitespace().skip(1).map(str::parse::<i64>);
    let (seconds, nanoseconds) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    seconds.checked_mul(NANOSECONDS)?.checked_add(nanoseconds)
}

#[cfg(test)]
mod tests {
    use super::offset;

    #[test]
    fn a_time_namespace_is_ahead_by_what_the_kernel_says() {
        assert_eq!(offset("monotonic           0         0\nboottime            0         0\n"), Some(0));
        assert_eq!(offset("monotonic  -3  5\nboottime 1 1\n"), Some(-2_999_999_995));
        assert_eq!(offset(""), None);
    }
}
