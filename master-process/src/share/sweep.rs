//! A second look at a worker that serves: what it only tried out, what its release has no more, and what passed
//! its filter by.

use std::os::fd::AsFd;

use rustix::process::Pid;

use super::address::Key;
use super::broker::Broker;
use super::remark::Remark;
use super::table::Part;
use crate::config::Share;
use crate::sys::closer::close_elsewhere;
use crate::sys::peer::Peer;
use crate::sys::{children, sockets};

/// Of each process: a busy one may have very many connections, and nobody waits for this.
const SOCKETS_LOOKED_AT: usize = 256;

impl Broker {
    /// Holds what a worker has bound against what its processes have open, and what its slot once had against what
    /// it has now. Called a moment after it began to serve. `lives` tells whether its process is still there.
    pub fn sweep(&mut self, serial: u64, pid: Pid, lives: impl Fn() -> bool) {
        // Who is on the way out closes what it has: that is no trial of a port.
        let Some(member) = self.members.get(serial).filter(|member| member.serves) else { return };
        let (slot, bound) = (member.id.slot, member.bound.clone());
        // What cannot be known is taken for held: a socket in use must not go.
        let dropped: Vec<u64> = bound.into_iter().filter(|inode| !tree_holds(pid, *inode)).collect();
        if !lives() {
            return;
        }
        for inode in dropped {
            self.drop_unused(serial, inode);
        }
        self.leave_old_addresses(serial, slot);
        self.find_bypasses(serial, pid);
    }

    /// Listeners of a worker or of a descendant of it that were bound and set to listen without a call that the filter
    /// sees. Each is told of once.
    fn find_bypasses(&mut self, serial: u64, pid: Pid) {
        if self.share == Share::Off {
            return;
        }
        for peer in tree(pid).into_iter().map(Peer::new) {
            // A listener is there before its connections, and the lowest numbers are given out first.
            for (fd, inode) in peer.sockets().unwrap_or_default().into_iter().take(SOCKETS_LOOKED_AT) {
                let Some(member) = self.members.get_mut(serial) else { return };
                if member.alone.contains(&inode) || self.table.by_inode(inode).is_some() {
                    continue;
                }
                // Where sockets cannot be copied, nothing can be told.
                let Ok(copy) = peer.copy(fd) else { continue };
                if sockets::is_listening(copy.as_fd())
                    && let Some(address) = sockets::tcp_address(copy.as_fd())
                {
                    member.alone.push(inode);
                    self.remarks.push(Remark::Bypassed { worker: member.id, address: address.to_string() });
                }
                close_elsewhere(copy);
            }
        }
    }

    /// A worker has closed what it bound: connections to it would wait for nobody.
    fn drop_unused(&mut self, serial: u64, inode: u64) {
        if let Some(member) = self.members.get_mut(serial) {
            member.bound.retain(|bound| *bound != inode);
        }
        let Some(held) = self.table.by_inode(inode) else { return };
        let (key, part) = (held.key.clone(), held.part);
        let lane = matches!(part, Part::Lane(_));
        if lane && !self.is_handed_over(&key) {
            self.take_out(&key, inode);
            if self.table.of_key(&key).next().is_none() {
                self.remarks.push(Remark::LetGo { address: key.to_string() });
            }
        }
    }

    /// Addresses that this slot's workers had, that this one does not have, and that no other slot's has.
    fn leave_old_addresses(&mut self, serial: u64, slot: u32) {
        let Some(member) = self.members.get(serial) else { return };
        let bound = member.bound.clone();
        let mut keys: Vec<Key> = Vec::new();
        for held in self.table.iter() {
            let had = held.users.contains(&slot) && !keys.iter().any(|key| key.matches(&held.key));
            if had && !self.has(&bound, &held.key) {
                keys.push(held.key.clone());
            }
        }
        for key in keys {
            self.table.of_key(&key).for_each(|held| {
                held.users.remove(&slot);
            });
            let used = self.table.iter().any(|held| held.key.matches(&key) && !held.users.is_empty());
            let living = self.members.living().any(|member| self.has(&member.bound, &key));
            if !used && !living && !self.is_handed_over(&key) {
                let inodes: Vec<u64> = self.table.of_key(&key).map(|held| held.inode).collect();
                inodes.into_iter().for_each(|inode| self.table.remove(inode));
                self.remarks.push(Remark::LetGo { address: key.to_string() });
            }
        }
    }

    fn has(&self, bound: &[u64], key: &Key) -> bool {
        self.table.iter().any(|held| held.key.matches(key) && bound.contains(&held.inode))
    }

    /// What the user or systemd gave us is kept, whoever binds it.
    fn is_handed_over(&self, key: &Key) -> bool {
        self.handed_over.iter().any(|given| given.matches(key))
    }
}

/// Whether a process or any descendant of it has the socket open; true where that cannot be known.
fn tree_holds(pid: Pid, inode: u64) -> bool {
    if Peer::new(pid).holds(inode).unwrap_or(true) {
        return true;
    }
    children::of(pid).is_none_or(|children| children.into_iter().any(|child| tree_holds(child, inode)))
}

/// A process and its descendants, as far as they can be known.
fn tree(pid: Pid) -> Vec<Pid> {
    let mut found = vec![pid];
    let mut at = 0;
    while let Some(parent) = found.get(at) {
        found.extend(children::of(*parent).unwrap_or_default());
        at += 1;
    }
    found
}
