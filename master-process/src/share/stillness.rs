//! Whether a queue stands still: connections wait, and nobody takes one.

/// So many looks, one a second, must find the queue no shorter than the look before. Fewer would take a worker
/// for hung that is busy for a moment; more would leave clients waiting longer.
const LOOKS: u32 = 5;

/// What a socket's queue looked like lately.
#[derive(Debug, Default)]
pub(super) struct Stillness {
    last: u32,
    looks: u32,
    stuck: bool,
}

/// What has changed with a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing worth telling.
    None,
    /// It has come to stand still.
    Stuck,
    /// It moves again.
    Moves,
}

impl Stillness {
    /// Whether connections had better go elsewhere.
    pub(super) fn is_stuck(&self) -> bool {
        self.stuck
    }

    /// Notes how many wait now.
    pub(super) fn look(&mut self, waiting: u32) -> Change {
        let still = waiting > 0 && waiting >= self.last;
        self.last = waiting;
        self.looks = if still { self.looks + 1 } else { 0 };
        let was_stuck = self.stuck;
        self.stuck = if was_stuck { still } else { self.looks > LOOKS };
        match (was_stuck, self.stuck) {
            (false, true) => Change::Stuck,
            (true, false) => Change::Moves,
            (false, false) | (true, true) => Change::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_never_gets_shorter_stands_still() {
        let mut stillness = Stillness::default();
        let changes: Vec<_> = [1, 1, 2, 2, 3].map(|waiting| stillness.look(waiting)).into();
        assert_eq!(changes, [Change::None; 5]);
        assert_eq!(stillness.look(3), Change::Stuck);
        assert_eq!(stillness.look(3), Change::None, "said once");
        assert_eq!(stillness.look(2), Change::Moves);
    }

    #[test]
    fn a_queue_that_moves_or_is_empty_does_not() {
        let mut stillness = Stillness::default();
        for waiting in [3, 2, 4, 3, 3, 2, 0, 0, 0, 0, 0, 0, 0, 1, 0] {
            assert_eq!(stillness.look(waiting), Change::None);
        }
    }
}
