//! A limit on the lines about misbehaving clients: however many there are, the log stays readable.

use std::time::Duration;

use crate::policy::Time;

/// The lines within [`WINDOW`].
const LINES: u32 = 5;

/// A new window begins this long after the last one began.
const WINDOW: Duration = Duration::from_secs(60);

/// Whether a line may be written.
#[derive(Debug, Default)]
pub(crate) struct LogLimit {
    since: Option<Time>,
    lines: u32,
    left_out: u64,
}

impl LogLimit {
    /// The number of lines that were left out since the last one; `None`: leave this one out as well.
    pub(crate) fn allow(&mut self, now: Time) -> Option<u64> {
        if self.since.is_none_or(|since| now.since(since) >= WINDOW) {
            (self.since, self.lines) = (Some(now), 0);
        }
        if self.lines == LINES {
            self.left_out += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_lines_is_counted() {
        let mut limit = LogLimit::default();
        let at = |seconds| Time::new(Duration::from_secs(seconds));
        assert!((0..LINES).all(|_| limit.allow(at(1)) == Some(0)));
        assert!((0..100).all(|_| limit.allow(at(2)).is_none()));
        assert_eq!(limit.allow(at(61)), Some(100));
        assert_eq!(limit.allow(at(61)), Some(0));
    }
}
