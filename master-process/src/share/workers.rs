//! What we remember of each worker.

use std::collections::HashMap;

use super::address::{Address, Key};
use crate::policy::WorkerId;
use crate::sys::seccomp::SocketOption;

/// Options that one worker set on sockets that it has not bound: a worker that sets them on every outgoing
/// connection must not fill our memory, and the one that it is about to bind is among the latest.
const REMEMBERED_OPTIONS: usize = 32;

/// A worker's share of the sockets.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) id: WorkerId,
    pub(super) generation: u32,
    pub(super) lane: u32,
    /// New connections may come to it.
    pub(super) serves: bool,
    /// It was asked to leave.
    pub(super) dismissed: bool,
    /// Its process lives; a descendant may be left when it does not.
    pub(super) lives: bool,
    /// Inode numbers of ours that were put into its table.
    pub(super) bound: Vec<u64>,
    /// What it listens on.
    pub(super) listens: Vec<Key>,
    /// Inode numbers of sockets of its own that we saw it listen on.
    pub(super) alone: Vec<u64>,
    /// The address of the `bind` that it waits in, as it named it.
    asked: Option<Address>,
    /// What that gave it: the inode number of ours.
    given: Option<u64>,
    /// What it was given by calls that it was torn out of before they returned.
    unheard: Vec<(u64, Address)>,
    options: Vec<(u64, SocketOption, bool)>,
}

impl Member {
    pub(super) fn new(id: WorkerId, generation: u32, lane: u32) -> Member {
        Member {
            id,
            generation,
            lane,
            serves: false,
            dismissed: false,
            lives: true,
            bound: Vec::new(),
            listens: Vec::new(),
            alone: Vec::new(),
            asked: None,
            given: None,
            unheard: Vec::new(),
            options: Vec::new(),
        }
    }

    /// Notes what its call asks for: the address of a `bind`, or none.
    pub(super) fn asks(&mut self, address: Option<Address>) {
        self.asked = address;
        self.given = None;
    }

    /// Notes what its `bind` has put in the place of its own socket.
    pub(super) fn is_given(&mut self, inode: u64) {
        self.given = Some(inode);
    }

    /// Notes that it does not know how its call has ended.
    pub(super) fn was_torn_away(&mut self) {
        if let Some(unheard) = self.given.take().zip(self.asked.take())
            && !self.unheard.contains(&unheard)
        {
            self.unheard.push(unheard);
        }
    }

    /// Whether it has this socket from such a `bind` of this address. It is taken to know by now: if not, we shall
    /// be told again.
    pub(super) fn take_unheard(&mut self, inode: u64, address: &Address) -> bool {
        let known = self.unheard.iter().position(|(at, named)| (*at, named) == (inode, address));
        known.map(|at| self.unheard.swap_remove(at)).is_some()
    }

    /// Notes an option of a socket that is not bound yet.
    pub(super) fn set_option(&mut self, inode: u64, option: SocketOption, on: bool) {
        self.options.retain(|(at, which, _)| (*at, *which) != (inode, option));
        if self.options.len() >= REMEMBERED_OPTIONS {
            self.options.remove(0);
        }
        self.options.push((inode, option, on));
    }

    /// The option as it was noted.
    pub(super) fn option(&self, inode: u64, option: SocketOption) -> Option<bool> {
        self.options.iter().find(|(at, which, _)| (*at, *which) == (inode, option)).map(|(_, _, on)| *on)
    }
}

/// All of them, by serial.
#[derive(Debug, Default)]
pub(super) struct Members {
    members: HashMap<u64, Member>,
    /// Who has a lane now.
    by_lane: HashMap<u32, u64>,
    /// What each slot's last serving worker listened on: what its successor is waited for.
    listened: HashMap<u32, Vec<Key>>,
}

impl Members {
    pub(super) fn insert(&mut self, member: Member) {
        self.by_lane.insert(member.lane, member.id.serial);
        self.members.insert(member.id.serial, member);
    }

    pub(super) fn get(&self, serial: u64) -> Option<&Member> {
        self.members.get(&serial)
    }

    pub(super) fn get_mut(&mut self, serial: u64) -> Option<&mut Member> {
        self.members.get_mut(&serial)
    }

    /// Whether a living worker other than this one was given a socket.
    pub(super) fn others_have(&self, serial: u64, inode: u64) -> bool {
        self.living().any(|other| other.id.serial != serial && other.bound.contains(&inode))
    }

    /// A worker has another lane from now on.
    pub(super) fn change_lane(&mut self, serial: u64, lane: u32) {
        let Some(member) = self.members.get_mut(&serial) else { return };
        self.by_lane.remove(&member.lane);
        self.by_lane.insert(lane, serial);
        member.lane = lane;
    }

    /// Its process is gone.
    pub(super) fn ended(&mut self, serial: u64) -> Option<&Member> {
        let member = self.members.get_mut(&serial)?;
        member.serves = false;
        member.lives = false;
        self.by_lane.remove(&member.lane);
        Some(member)
    }

    /// The living worker that has a lane.
    pub(super) fn on_lane(&self, lane: u32) -> Option<&Member> {
        self.members.get(self.by_lane.get(&lane)?)
    }

    pub(super) fn remove(&mut self, serial: u64) {
        self.members.remove(&serial);
    }

    pub(super) fn living(&self) -> impl Iterator<Item = &Member> {
        self.members.values().filter(|member| member.lives)
    }

    /// Notes that a worker listens; whether it listens on all that its predecessor did.
    pub(super) fn listens(&mut self, serial: u64, key: Option<&Key>) -> bool {
        let Some(member) = self.members.get_mut(&serial) else {
            return true;
        };
        if let Some(key) = key.filter(|key| !member.listens.iter().any(|other| other.matches(key))) {
            member.listens.push(key.clone());
        }
        if member.serves {
            self.listened.insert(member.id.slot, member.listens.clone());
        }
        let before = self.listened.get(&member.id.slot);
        before.is_none_or(|keys| keys.iter().all(|key| member.listens.iter().any(|other| other.matches(key))))
    }

    /// Lets connections come to a worker, or not.
    pub(super) fn set_serves(&mut self, serial: u64, serves: bool) {
        let Some(member) = self.members.get_mut(&serial) else {
            return;
        };
        member.serves = serves;
        if serves {
            self.listened.insert(member.id.slot, member.listens.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bind_that_was_not_heard_of_is_known_again_once_by_its_socket_and_address() {
        let address = |name: &[u8]| Address::Abstract(name.to_vec());
        let mut member = Member::new(WorkerId { slot: 0, serial: 1 }, 0, 0);
        member.asks(Some(address(b"a")));
        member.is_given(7);
        member.was_torn_away();
        assert!(!member.take_unheard(8, &address(b"a")));
        assert!(!member.take_unheard(7, &address(b"b")));
        assert!(member.take_unheard(7, &address(b"a")));
        assert!(!member.take_unheard(7, &address(b"a")));
    }

    #[test]
    fn a_bind_that_was_heard_of_is_not_confused_with_a_later_call_that_was_not() {
        let mut member = Member::new(WorkerId { slot: 0, serial: 1 }, 0, 0);
        member.asks(Some(Address::Abstract(b"a".to_vec())));
        member.is_given(7);
        member.asks(None);
        member.was_torn_away();
        assert!(!member.take_unheard(7, &Address::Abstract(b"a".to_vec())));
    }
}
