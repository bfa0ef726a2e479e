//! The sockets that we hold.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::address::Key;
use super::unix::Place;
use crate::sys::sockets;

/// A socket that workers share.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) key: Key,
    /// Its inode number: how we know it again in a worker's table.
    pub(super) inode: u64,
    fd: OwnedFd,
    backlog: Option<i32>,
    file: Option<File>,
}

/// The file of a Unix socket that is ours to remove.
#[derive(Debug)]
struct File {
    place: Place,
    id: Option<(u64, u64)>,
}

impl Held {
    /// A socket that is bound and not listening yet.
    pub(super) fn bound(key: Key, fd: OwnedFd, place: Option<Place>) -> io::Result<Held> {
        let inode = sockets::inode(fd.as_fd())?;
        let file = place.map(|place| File {
            id: place.file(),
            place,
        });
        Ok(Held {
            key,
            inode,
            fd,
            backlog: None,
            file,
        })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
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

    /// Whether its file is still at its path; true for what has none.
    pub(super) fn is_in_place(&self) -> bool {
        self.file
            .as_ref()
            .is_none_or(|file| file.id.is_some() && file.place.file() == file.id)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Another file may stand there by now: that one is not ours.
        if let Some(file) = &self.file
            && self.is_in_place()
        {
            file.place.remove();
        }
    }
}

/// All of them: a handful, so a search is a walk.
#[derive(Debug, Default)]
pub(super) struct Table {
    held: Vec<Held>,
}

impl Table {
    pub(super) fn by_key(&mut self, key: &Key) -> Option<&mut Held> {
        self.held.iter_mut().find(|held| held.key.matches(key))
    }

    pub(super) fn by_inode(&mut self, inode: u64) -> Option<&mut Held> {
        self.held.iter_mut().find(|held| held.inode == inode)
    }

    /// Adds a socket in the place of one with the same key.
    pub(super) fn add(&mut self, held: Held) -> &mut Held {
        self.held.retain(|old| !old.key.matches(&held.key));
        self.held.push(held);
        let last = self.held.len() - 1;
        &mut self.held[last]
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Whether the last part of any held path is this.
    pub(super) fn has_file_called(&self, name: &OsStr) -> bool {
        self.held
            .iter()
            .filter_map(|held| held.file.as_ref())
            .any(|file| file.place.name() == name)
    }

    pub(super) fn has_files(&self) -> bool {
        self.held.iter().any(|held| held.file.is_some())
    }
}
