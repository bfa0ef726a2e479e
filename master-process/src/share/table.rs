//! The sockets that we hold.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::address::Key;
use super::stillness::Stillness;
use super::unix::SocketFile;
use crate::sys::closer::close_elsewhere;
use crate::sys::sockets;

/// Whose a socket of an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Every worker's.
    All,
    /// The worker's that has this lane.
    Lane(u32),
    /// Every worker's of this generation.
    Generation(u32),
}

/// A socket that we hold for workers.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) key: Key,
    pub(super) part: Part,
    /// Its inode number: how we know it again in a worker's table.
    pub(super) inode: u64,
    /// Its number among the listening sockets of its address, as the kernel counts them.
    pub(super) number: Option<u32>,
    pub(super) file: Option<SocketFile>,
    pub(super) stillness: Stillness,
    /// Whether the worker that has it has shut it down, as far as it knows: then it accepts no more.
    pub(super) shut: bool,
    /// The slots whose workers have bound it.
    pub(super) users: BTreeSet<u32>,
    fd: OwnedFd,
    backlog: Option<i32>,
}

impl Held {
    /// A socket that is bound and not listening yet.
    pub(super) fn bound(key: Key, part: Part, fd: OwnedFd, file: Option<SocketFile>) -> io::Result<Held> {
        let inode = sockets::inode(fd.as_fd())?;
        let stillness = Stillness::default();
        Ok(Held {
            key,
            part,
            inode,
            number: None,
            file,
            stillness,
            shut: false,
            users: BTreeSet::new(),
            fd,
            backlog: None,
        })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(super) fn is_listening(&self) -> bool {
        self.backlog.is_some()
    }

    /// Whether a worker has made something else of it than a listener.
    pub(super) fn is_used_up(&self) -> bool {
        matches!(self.key, Key::Inet { .. }) && !self.is_listening() && !sockets::is_closed(self.fd())
    }

    /// Whether anybody waits to be accepted.
    pub(super) fn is_waited_for(&self) -> bool {
        self.is_listening() && sockets::is_readable(self.fd())
    }

    /// Starts the queue, or widens it: of several workers' wishes the largest holds.
    pub(super) fn listen(&mut self, backlog: i32) -> io::Result<()> {
        // A negative backlog is the largest there is: listen(2) takes the number as unsigned.
        let wish = if backlog < 0 { i32::MAX } else { backlog };
        if self.backlog.is_none_or(|current| current < wish) {
            sockets::listen(self.fd(), wish)?;
            self.backlog = Some(wish);
        }
        Ok(())
    }

    /// Whether its file is still where we have put it; true for what has none.
    pub(super) fn is_in_place(&self) -> bool {
        self.file.as_ref().is_none_or(SocketFile::is_in_place)
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Table {
    held: Vec<Held>,
}

impl Table {
    pub(super) fn find(&mut self, key: &Key, part: Part) -> Option<&mut Held> {
        self.held.iter_mut().find(|held| held.part == part && held.key.matches(key))
    }

    pub(super) fn by_inode(&mut self, inode: u64) -> Option<&mut Held> {
        self.held.iter_mut().find(|held| held.inode == inode)
    }

    /// Every socket of an address.
    pub(super) fn of_key<'a>(&'a mut self, key: &'a Key) -> impl Iterator<Item = &'a mut Held> {
        self.held.iter_mut().filter(|held| held.key.matches(key))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Held> {
        self.held.iter()
    }

    /// Adds a socket in the place of one for the same workers.
    pub(super) fn add(&mut self, held: Held) -> &mut Held {
        self.held.retain(|old| old.part != held.part || !old.key.matches(&held.key));
        self.held.push(held);
        let last = self.held.len() - 1;
        &mut self.held[last]
    }

    /// Numbers a socket that has begun to listen, where its address has several.
    pub(super) fn number(&mut self, inode: u64) {
        let Some(held) = self.by_inode(inode) else { return };
        if !matches!(held.part, Part::Lane(_)) || held.number.is_some() {
            return;
        }
        let key = held.key.clone();
        let count = self.of_key(&key).filter(|held| held.number.is_some()).count();
        if let Some(held) = self.by_inode(inode) {
            held.number = u32::try_from(count).ok();
        }
    }

    /// Closes a socket. The kernel gives the last number of its address to the gap; so do we
    /// (`reuseport_detach_sock`, net/core/sock_reuseport.c).
    pub(super) fn remove(&mut self, inode: u64) {
        let Some(at) = self.held.iter().position(|held| held.inode == inode) else {
            return;
        };
        let gone = self.held.swap_remove(at);
        if gone.number.is_some() {
            // Out of the kernel's numbers at once, whoever else still has it open.
            sockets::shut_down(gone.fd());
        }
        if let Some(gap) = gone.number
            && let Some(last) =
                self.of_key(&gone.key).filter(|held| held.number > Some(gap)).max_by_key(|held| held.number)
        {
            last.number = Some(gap);
        }
        close_elsewhere(gone.fd);
    }

    /// Whether the last part of any held path is this.
    pub(super) fn has_file_called(&self, name: &OsStr) -> bool {
        self.held.iter().filter_map(|held| held.file.as_ref()).any(|file| file.is_called(name))
    }

    pub(super) fn has_files(&self) -> bool {
        self.held.iter().any(|held| held.file.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(table: &mut Table, key: &Key, lane: u32) -> u64 {
        let fd = sockets::bind_tcp("127.0.0.1:0".parse().expect("an address"), sockets::Tcp::default());
        let held = Held::bound(key.clone(), Part::Lane(lane), fd.expect("bound"), None).expect("open");
        let inode = table.add(held).inode;
        table.number(inode);
        inode
    }

    #[test]
    fn the_last_number_goes_to_the_gap_as_in_the_kernel() {
        let mut table = Table::default();
        let key = Key::Inet { address: "127.0.0.1:80".parse().expect("an address"), v6only: false };
        let inodes: Vec<_> = (0..4).map(|number| lane(&mut table, &key, number)).collect();
        table.remove(inodes[1]);
        let mut numbers = |inode| table.by_inode(inode).and_then(|held| held.number);
        assert_eq!([inodes[0], inodes[2], inodes[3]].map(&mut numbers), [Some(0), Some(2), Some(1)]);
        assert_eq!(numbers(inodes[1]), None);
    }
}
