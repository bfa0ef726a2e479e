//! Who gets new connections.

use std::io;
use std::os::fd::BorrowedFd;

use super::address::Key;
use super::broker::Broker;
use super::remark::Remark;
use super::stillness::Change;
use super::table::{Held, Part};
use super::workers::Member;
use crate::config::Orphans;
use crate::policy::Queue;
use crate::sys::{reuseport, sockets};

/// Whether a worker's socket is to get new connections.
type Choice<'a> = &'a dyn Fn(&Held, &Member) -> bool;

/// What is to be done about a socket's queue next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watch {
    /// Wait until somebody comes.
    Come,
    /// Look again in a moment.
    Soon,
    /// Nothing: it is not ours any more.
    Over,
}

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
        let Some(member) = self.members.get(serial) else { return };
        let to_turn = &mut self.to_turn;
        for held in self.table.iter().filter(|held| member.bound.contains(&held.inode)) {
            if !to_turn.iter().any(|key| key.matches(&held.key)) {
                to_turn.push(held.key.clone());
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

    fn steer(&mut self, key: &Key) -> io::Result<()> {
        let member_of = |held: &Held| match held.part {
            Part::Lane(lane) => self.members.on_lane(lane),
            Part::All | Part::Generation(_) => None,
        };
        let numbers = |wanted: Choice<'_>| {
            let numbered = self.table.iter().filter(|held| held.key.matches(key));
            let chosen = numbered.filter(|held| member_of(held).is_some_and(|member| wanted(held, member)));
            let mut numbers: Vec<u32> = chosen.filter_map(|held| held.number).collect();
            numbers.sort_unstable();
            numbers
        };
        // Where nobody serves, connections had better wait for one who lives than for nobody.
        let choices: [Choice<'_>; 3] = [
            &|held, member| member.serves && !held.shut && !held.stillness.is_stuck(),
            &|held, member| member.serves && !held.shut,
            &|_held, _member| true,
        ];
        let Some(numbers) = choices.iter().map(|wanted| numbers(*wanted)).find(|numbers| !numbers.is_empty())
        else {
            return Ok(());
        };
        let any = self.table.iter().find(|held| held.key.matches(key) && held.number.is_some());
        any.map_or(Ok(()), |held| reuseport::steer(held.fd(), &numbers))
    }

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
            if self.served(&key).next().is_some() {
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

    /// Closes one socket of an address. The kernel gives its number to the last one: for that moment new connections
    /// go to others than those two, where there are any.
    pub(super) fn take_out(&mut self, key: &Key, inode: u64) {
        let last = self.table.of_key(key).filter_map(|held| held.number).max();
        let moved = |held: &Held| held.inode == inode || held.number == last;
        let mut others: Vec<u32> =
            self.served(key).filter(|held| !moved(held)).filter_map(|held| held.number).collect();
        others.sort_unstable();
        let any = self.table.iter().find(|held| held.key.matches(key) && held.number.is_some());
        if let Some(any) = any.filter(|_| !others.is_empty()) {
            // What fails here fails again below, and is told there.
            let _told_below = reuseport::steer(any.fd(), &others);
        }
        self.table.remove(inode);
        self.turn_key(key);
    }

    fn served<'a>(&'a self, key: &'a Key) -> impl Iterator<Item = &'a Held> {
        self.table.iter().filter(|held| {
            let Part::Lane(lane) = held.part else { return false };
            held.key.matches(key) && self.members.on_lane(lane).is_some_and(|member| member.serves)
        })
    }

    /// Sockets whose queues are to be watched from now on.
    pub fn take_unwatched(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.unwatched)
    }

    /// Every socket that we hold.
    pub fn inodes(&self) -> Vec<u64> {
        self.table.iter().map(|held| held.inode).collect()
    }

    /// Sockets that were made and do not listen yet: a moment later they are to be looked at.
    pub fn take_unlistened(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.unlistened)
    }

    /// Lets go of a socket that its worker has connected instead: until then it would outlive its worker's close.
    pub fn look_at_unlistened(&mut self, inode: u64) -> Watch {
        match self.table.by_inode(inode) {
            Some(held) if held.is_used_up() => {
                self.table.remove(inode);
                Watch::Over
            }
            Some(held) if !held.is_listening() => Watch::Soon,
            Some(_) | None => Watch::Over,
        }
    }

    /// The socket of an inode number.
    pub fn socket(&mut self, inode: u64) -> Option<BorrowedFd<'_>> {
        self.table.by_inode(inode).map(|held| held.fd())
    }

    /// Looks at a queue that somebody came to a moment ago: does it move?
    pub fn look_at_queue(&mut self, inode: u64) -> Watch {
        let Some(held) = self.table.by_inode(inode) else {
            return Watch::Over;
        };
        if let Part::Lane(lane) = held.part
            && self.lanes.is_free(lane)
        {
            // A connection that was half open as its lane was freed.
            sockets::turn_away(held.fd());
        }
        let waiting = sockets::waiting(held.fd());
        let (change, key, part) = (held.stillness.look(waiting), held.key.clone(), held.part);
        let worker = match part {
            Part::Lane(lane) => self.members.on_lane(lane).map(|member| member.id),
            Part::All | Part::Generation(_) => None,
        };
        // Without a worker it is its next one's; that is no fault of anybody's.
        if let Some(worker) = worker {
            let address = key.to_string();
            match change {
                Change::None => {}
                Change::Stuck => self.remarks.push(Remark::Hung { worker, address, waiting }),
                Change::Moves => self.remarks.push(Remark::Moves { worker, address }),
            }
        }
        if change != Change::None {
            self.turn_key(&key);
        }
        if waiting == 0 { Watch::Come } else { Watch::Soon }
    }
}
