//! Looking at the sockets that we hold a moment later: does the queue move, was it to be a listener at all?

use std::os::fd::BorrowedFd;

use super::broker::Broker;
use super::remark::Remark;
use super::stillness::Change;
use super::table::Part;
use crate::sys::sockets;

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
