//! What we remember of each worker.

use std::collections::HashMap;

use super::address::Key;
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
    /// Its process lives; a descendant may be left when it does not.
    pub(super) lives: bool,
    /// Inode numbers of ours that were put into its table.
    pub(super) bound: Vec<u64>,
    /// What it listens on.
    pub(super) listens: Vec<Key>,
    /// Inode numbers of sockets of its own that we saw it listen on.
    pub(super) alone: Vec<u64>,
    options: Vec<(u64, SocketOption, bool)>,
}

impl Member {
    pub(super) fn new(id: WorkerId, generation: u32, lane: u32) -> Member {
        Member {
            id,
            generation,
            lane,
            serves: false,
            lives: true,
            bound: Vec::new(),
            listens: Vec::new(),
            alone: Vec::new(),
            options: Vec::new(),
        }
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
