//! Who is in rotation: for whom every address is pointed elsewhere, and who waits for one that is out of it.

use super::address::Key;
use super::broker::Broker;
use super::remark::Remark;
use super::table::{Held, Part};
use crate::policy::Queue;

impl Broker {
    /// New connections may come to a worker.
    pub fn serve(&mut self, serial: u64) {
        self.members.set_serves(serial, true);
        self.turn(serial);
    }

    /// New connections go to others.
    pub fn retire(&mut self, serial: u64) {
        self.members.set_serves(serial, false);
        self.turn(serial);
    }

    /// Who waits for a worker that is out of rotation.
    pub fn queue(&mut self, serial: u64) -> Queue {
        // Only once new connections go elsewhere does an empty queue mean anything.
        self.take_turns();
        let Some(member) = self.members.get(serial).filter(|_| self.parts()) else {
            return Queue::None;
        };
        let own = |held: &&Held| match held.part {
            Part::All => false,
            Part::Lane(lane) => lane == member.lane && held.is_listening(),
            // A generation's queue is its own only once its successor's is at the path.
            Part::Generation(_) => {
                member.bound.contains(&held.inode) && held.file.as_ref().is_some_and(|file| !file.is_found())
            }
        };
        let mut queues = self.table.iter().filter(own).map(Held::is_waited_for).peekable();
        match (queues.peek().is_some(), queues.any(|waited_for| waited_for)) {
            (false, _) => Queue::None,
            (true, true) => Queue::Waiting,
            (true, false) => Queue::Empty,
        }
    }

    /// Every address of a worker is to be pointed to whoever serves it now.
    pub(super) fn turn(&mut self, serial: u64) {
        let bound = self.members.get(serial).map(|member| member.bound.clone()).unwrap_or_default();
        self.turn_where(|held| bound.contains(&held.inode));
    }

    /// The addresses of these sockets are to be pointed to whoever serves them now.
    pub(super) fn turn_where(&mut self, changed: impl Fn(&Held) -> bool) {
        for held in self.table.iter().filter(|held| changed(held)) {
            if !self.to_turn.iter().any(|key| key.matches(&held.key)) {
                self.to_turn.push(held.key.clone());
            }
        }
    }

    /// Points the addresses that are to be pointed elsewhere, each once, however many workers have changed.
    pub fn take_turns(&mut self) {
        for key in std::mem::take(&mut self.to_turn) {
            self.turn_key(&key);
        }
        self.drop_superseded();
    }

    /// Points one address to whoever serves it now.
    pub(super) fn turn_key(&mut self, key: &Key) {
        let turned = match key {
            Key::Inet { .. } => {
                self.steer(key).map_err(|error| Remark::NotSteered { address: key.to_string(), error })
            }
            Key::Unix { .. } => {
                self.rename(key).map_err(|error| Remark::NotRenamed { address: key.to_string(), error })
            }
            Key::Abstract(_) => Ok(()),
        };
        self.remarks.extend(turned.err());
    }
}
