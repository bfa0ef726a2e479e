//! Lanes that have lost their workers.

use super::address::Key;
use super::broker::Broker;
use super::table::{Held, Part};
use super::workers::Member;
use crate::config::Orphans;
use crate::sys::sockets;

impl Broker {
    /// Frees the lanes that have lost their workers and that no other will take: who waits there learns at once that
    /// he waits in vain. `expects_start` tells whether a slot is to get a worker.
    pub fn close_orphans(&mut self, expects_start: impl Fn(u32) -> bool) {
        if !std::mem::take(&mut self.orphans) {
            return;
        }
        for (lane, slot) in self.lanes.orphans() {
            let may_adopt = |member: &Member| member.id.slot == slot && member.listens.is_empty();
            if expects_start(slot) || self.members.living().any(may_adopt) {
                self.orphans = true;
                continue;
            }
            self.turn_away(lane);
            self.lanes.leave(lane, slot, false);
        }
    }

    /// Closes the sockets of free lanes where workers are to outlive us. They would be closed by our death, all at
    /// once: the kernel would number what is left anew while its program still goes by the old numbers, and send
    /// connections to those that close next.
    pub fn close_spares(&mut self) {
        if self.on_our_death == Orphans::Kill || !self.lanes.take_freed() {
            return;
        }
        let is_spare = |held: &&Held| {
            matches!(held.part, Part::Lane(lane) if self.lanes.is_free(lane)) && held.is_listening()
        };
        let spares: Vec<(Key, u64)> =
            self.table.iter().filter(is_spare).map(|held| (held.key.clone(), held.inode)).collect();
        for (key, inode) in spares {
            // An address that nobody serves is kept open by what is left of it.
            if self.is_served(&key) {
                self.take_out(&key, inode);
            }
        }
    }

    /// Everybody who waits in a lane is told that nobody will come. Its sockets stay, and so do all the numbers.
    fn turn_away(&mut self, lane: u32) {
        for held in self.table.iter().filter(|held| held.part == Part::Lane(lane) && held.is_listening()) {
            sockets::turn_away(held.fd());
        }
    }
}
