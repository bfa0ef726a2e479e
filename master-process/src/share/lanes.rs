//! Who has which lane. A lane is a socket of each address; its sockets are kept for ever, so that their
//! numbers among those of the address never move, unless workers are to outlive us.

/// The lanes, by number.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: Vec<Lane>,
    /// Whether one has become free since this was asked last.
    freed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lane {
    /// Nobody's, and nobody waits in it.
    Free,
    /// A worker's.
    Taken,
    /// Its worker died with connections in its queue, perhaps: they are its slot's next one's.
    Orphaned { slot: u32 },
}

impl Lanes {
    /// A lane for a worker that is about to start: the one that its slot has lost, with all who wait in it,
    /// else the first that is free.
    pub(super) fn enter(&mut self, slot: u32) -> u32 {
        let place = |wanted: Lane| self.lanes.iter().position(|lane| *lane == wanted);
        let at = place(Lane::Orphaned { slot }).or_else(|| place(Lane::Free)).unwrap_or_else(|| {
            self.lanes.push(Lane::Free);
            self.lanes.len() - 1
        });
        self.lanes[at] = Lane::Taken;
        u32::try_from(at).unwrap_or(u32::MAX)
    }

    /// A worker that does not listen yet takes the lane that its slot has lost in the place of its own.
    pub(super) fn adopt(&mut self, own: u32, slot: u32) -> Option<u32> {
        let orphan = self.lanes.iter().position(|lane| *lane == Lane::Orphaned { slot })?;
        self.lanes[orphan] = Lane::Taken;
        self.leave(own, slot, false);
        u32::try_from(orphan).ok()
    }

    /// Whether a lane is nobody's.
    pub(super) fn is_free(&self, lane: u32) -> bool {
        self.lanes.get(lane as usize) == Some(&Lane::Free)
    }

    /// Lanes whose workers died, and their slots.
    pub(super) fn orphans(&self) -> Vec<(u32, u32)> {
        let orphan = |(at, lane): (u32, &Lane)| match lane {
            Lane::Orphaned { slot } => Some((at, *slot)),
            Lane::Free | Lane::Taken => None,
        };
        (0..).zip(&self.lanes).filter_map(orphan).collect()
    }

    /// The worker of a lane is gone; `waited_for` says that somebody may still wait for it.
    pub(super) fn leave(&mut self, lane: u32, slot: u32, waited_for: bool) {
        if let Some(state) = self.lanes.get_mut(lane as usize) {
            *state = if waited_for { Lane::Orphaned { slot } } else { Lane::Free };
            self.freed |= !waited_for;
        }
    }

    /// Whether any lane has become free since this was asked last.
    pub(super) fn take_freed(&mut self) -> bool {
        std::mem::take(&mut self.freed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_gets_back_the_lane_that_it_has_lost() {
        let mut lanes = Lanes::default();
        assert_eq!([lanes.enter(0), lanes.enter(1), lanes.enter(2)], [0, 1, 2]);
        lanes.leave(1, 1, true);
        lanes.leave(0, 0, false);
        assert_eq!(lanes.enter(2), 0, "a reload of another slot takes a free one");
        assert_eq!(lanes.enter(1), 1, "with those who wait in it");
    }

    #[test]
    fn reloads_take_turns_between_two_lanes() {
        let mut lanes = Lanes::default();
        let mut old = lanes.enter(0);
        for _ in 0..10 {
            let new = lanes.enter(0);
            lanes.leave(old, 0, false);
            assert!(new < 2, "lanes are not used up");
            old = new;
        }
    }
}
