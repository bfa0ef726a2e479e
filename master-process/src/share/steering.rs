//! Steering: which of an address's numbered sockets get new connections.

use std::io;

use super::address::Key;
use super::broker::Broker;
use super::table::{Held, Part};
use super::workers::Member;
use crate::sys::reuseport;

/// Whether a worker's socket is to get new connections.
type Choice<'a> = &'a dyn Fn(&Held, &Member) -> bool;

impl Broker {
    /// Points an address to those who serve it.
    pub(super) fn steer(&self, key: &Key) -> io::Result<()> {
        // Where nobody serves, connections had better wait for one who lives than for nobody.
        let choices: [Choice<'_>; 3] = [
            &|held, member| member.serves && !held.shut && !held.stillness.is_stuck(),
            &|held, member| member.serves && !held.shut,
            &|_held, _member| true,
        ];
        let mut chosen = choices.iter().map(|wanted| self.numbers(key, wanted));
        chosen.find(|numbers| !numbers.is_empty()).map_or(Ok(()), |numbers| self.point(key, &numbers))
    }

    /// Whether any worker serves an address.
    pub(super) fn is_served(&self, key: &Key) -> bool {
        !self.numbers(key, &|_held, member| member.serves).is_empty()
    }

    /// Closes one socket of an address. The kernel gives its number to the last one: for that moment new connections
    /// go to others than those two, where there are any.
    pub(super) fn take_out(&mut self, key: &Key, inode: u64) {
        let last = self.table.of_key(key).filter_map(|held| held.number).max();
        let moved = |held: &Held| held.inode == inode || held.number == last;
        let others = self.numbers(key, &|held, member| member.serves && !moved(held));
        if !others.is_empty() {
            // What fails here fails again below, and is told there.
            let _told_below = self.point(key, &others);
        }
        self.table.remove(inode);
        self.turn_key(key);
    }

    /// The numbers of an address's sockets that have a worker and are wanted, in order.
    fn numbers(&self, key: &Key, wanted: Choice<'_>) -> Vec<u32> {
        let number = |held: &Held| {
            let Part::Lane(lane) = held.part else { return None };
            self.members.on_lane(lane).filter(|member| wanted(held, member))?;
            held.number
        };
        let mut numbers: Vec<u32> =
            self.table.iter().filter(|held| held.key.matches(key)).filter_map(number).collect();
        numbers.sort_unstable();
        numbers
    }

    /// New connections of an address go to these numbers only; any of its sockets takes that for all.
    fn point(&self, key: &Key, numbers: &[u32]) -> io::Result<()> {
        let any = self.table.iter().find(|held| held.key.matches(key) && held.number.is_some());
        any.map_or(Ok(()), |held| reuseport::steer(held.fd(), numbers))
    }
}
