//! The sockets, the workers, and what is decided about them.

use super::address::Key;
use super::handed::HandedOver;
use super::lanes::Lanes;
use super::remark::Remark;
use super::table::Table;
use super::unix::Access;
use super::workers::{Member, Members};
use crate::config::{Orphans, Share};
use crate::policy::WorkerId;
use crate::sys::peer;
use crate::sys::seccomp::{Answer, Calls};

/// Holds the shared sockets and hands them out.
#[derive(Debug)]
pub struct Broker {
    pub(super) share: Share,
    /// What becomes of the workers when we are killed.
    pub(super) on_our_death: Orphans,
    pub(super) access: Access,
    pub(super) table: Table,
    /// What was opened before any worker was there.
    pub(super) handed_over: Vec<Key>,
    pub(super) members: Members,
    pub(super) lanes: Lanes,
    pub(super) remarks: Vec<Remark>,
    /// Addresses whose new connections are to go elsewhere than they do.
    pub(super) to_turn: Vec<Key>,
    /// The generation that a reload under way leads to.
    pub(super) target: Option<u32>,
    /// Whether any lane may have lost its worker.
    pub(super) orphans: bool,
    /// Sockets that were made for workers and do not listen yet.
    pub(super) unlistened: Vec<u64>,
    /// Sockets that began to listen and are not watched yet.
    pub(super) unwatched: Vec<u64>,
    /// Whether workers' sockets can be copied and so looked at.
    can_copy: bool,
}

/// The answer to a call, and what else follows from it.
#[derive(Debug)]
pub struct Reply {
    /// What the kernel is to be told.
    pub answer: Answer,
    /// The worker listens on a stream socket.
    pub listens: Option<Listens>,
}

/// How much of what was expected of it a worker listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listens {
    /// On everything that its predecessor did.
    All,
    /// Something is missing yet.
    Some,
}

impl Broker {
    /// A broker that answers `bind` as `share` says, and watches `listen` in any case. It holds what was opened
    /// for handing over as well, so that a worker that binds such an address gets that very socket.
    pub fn new(share: Share, on_our_death: Orphans, access: Access, handed_over: &mut HandedOver) -> Broker {
        let mut table = Table::default();
        let mut given = Vec::new();
        for held in handed_over.take_held() {
            given.push(held.key.clone());
            table.add(held);
        }
        Broker {
            share,
            on_our_death,
            access,
            table,
            handed_over: given,
            members: Members::default(),
            lanes: Lanes::default(),
            remarks: Vec::new(),
            to_turn: Vec::new(),
            target: None,
            orphans: false,
            unlistened: Vec::new(),
            unwatched: Vec::new(),
            can_copy: peer::can_copy(),
        }
    }

    /// What a worker's filter must send us.
    pub fn calls(&self) -> Calls {
        let shares = self.share != Share::Off;
        Calls {
            bind: shares,
            options: shares && !self.can_copy,
            listen: true,
            shutdown: shares,
            unlink: shares,
        }
    }

    /// Whether a slot, or a generation, has sockets of its own.
    pub(super) fn parts(&self) -> bool {
        matches!(self.share, Share::Auto | Share::Slots)
    }

    /// A worker is about to start.
    pub fn enter(&mut self, worker: WorkerId, generation: u32) {
        let lane = self.lanes.enter(worker.slot);
        self.members.insert(Member::new(worker, generation, lane));
    }

    /// A worker is gone, or did not start; a descendant of it may be left. Who still waits for it is its slot's
    /// next one's, as is everybody who may have come in the moment of its death where nobody expected it.
    pub fn leave(&mut self, serial: u64, expected: bool) {
        let Some(member) = self.members.ended(serial) else { return };
        let (lane, slot, bound) = (member.lane, member.id.slot, member.bound.clone());
        let waited_for = self.table.iter().any(|held| bound.contains(&held.inode) && held.is_waited_for());
        self.lanes.leave(lane, slot, waited_for || !expected);
        self.orphans |= waited_for || !expected;
        self.turn(serial);
    }

    /// Nobody of a worker's whole tree is left.
    pub fn forget(&mut self, serial: u64) {
        if self.members.get(serial).is_some_and(|member| !member.lives) {
            self.members.remove(serial);
        }
    }

    /// A worker does not have our answer to the call that [`reply`](Self::reply) decided last. Where it was killed,
    /// that is all the same. Before Linux 5.19 any signal tears it out of the call, which is then made again by the
    /// kernel, or by a program that was told EINTR: what we have done for it is done.
    pub fn unheard(&mut self, worker: WorkerId, answer: Answer) {
        if let Some(member) = self.members.get_mut(worker.serial).filter(|_| answer == Answer::Done) {
            member.was_torn_away();
        }
    }

    /// What has come up since this was asked last.
    pub fn take_remarks(&mut self) -> Vec<Remark> {
        std::mem::take(&mut self.remarks)
    }
}
