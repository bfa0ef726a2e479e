//! The descriptors of the core's sockets: our copies, and the workers' own.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;

use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use super::core::SocketId;
use super::stall::StallDetector;
use super::unix::{SavedFile, SocketFile};
use crate::by_number::ByNumber;
use crate::sys::handover::{Fd, Incoming, Outgoing};
use crate::sys::peer::Peer;
use crate::sys::sockets;

/// A socket that we have open: a listener, a socket that replaces a worker's, or one that we opened before the first
/// worker started.
#[derive(Debug)]
pub(super) struct OpenSocket {
    fd: OwnedFd,
    /// The requested length of the queue; `None`: it does not listen.
    pub(super) backlog: Option<i32>,
    pub(super) stall: StallDetector,
    /// The kernel's counter of drops when it was read last.
    pub(super) drops: u32,
    /// The slot that has it alone, or had it last.
    pub(super) last_slot: Option<u32>,
    /// The limit of its queue when it was read last; `None`: not since the last `listen`.
    pub(super) queue_limit: Option<u32>,
    /// Whether a connection in its queue is an event. After an upgrade nobody knows until the next one.
    pub(super) is_watched: bool,
}

impl OpenSocket {
    /// Records a `listen`. Every `listen` of a worker is one of ours, so nothing else changes the limit.
    pub(super) fn listens(&mut self, backlog: i32) {
        self.backlog = Some(backlog);
        self.queue_limit = None;
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Where a worker has a socket open. A check of this descriptor usually makes a scan of all its descriptors
/// unnecessary.
#[derive(Debug, Clone, Copy)]
pub(super) struct Location {
    pub(super) thread: Pid,
    pub(super) fd: RawFd,
}

impl Location {
    /// Whether the descriptor is still the socket with this inode number. If not, the socket may be open elsewhere.
    pub(super) fn has(&self, id: SocketId) -> bool {
        Peer::open(self.thread).and_then(|peer| peer.inode(self.fd)).is_ok_and(|inode| inode == id)
    }
}

/// All copies, locations and socket files.
#[derive(Debug, Default)]
pub(super) struct Copies {
    copies: ByNumber<SocketId, OpenSocket>,
    /// By worker's serial and socket.
    locations: HashMap<(u64, SocketId), Location>,
    /// Whether they have changed since they were last listed.
    relocated: bool,
    /// The files of Unix sockets, including sockets without a copy.
    files: HashMap<SocketId, SocketFile>,
}

/// All of this as a supervisor hands it over.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct SavedCopies {
    copies: Vec<SavedCopy>,
    #[serde(default)]
    locations: Vec<SavedLocation>,
    #[serde(default)]
    files: Vec<(SocketId, SavedFile)>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct SavedCopy {
    id: SocketId,
    fd: Fd,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    backlog: Option<i32>,
    #[serde(default, skip_serializing_if = "crate::forms::is_default")]
    stall: StallDetector,
    #[serde(default, skip_serializing_if = "crate::forms::is_default")]
    drops: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_slot: Option<u32>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct SavedLocation {
    serial: u64,
    id: SocketId,
    #[serde(with = "crate::forms::pid")]
    thread: Pid,
    fd: RawFd,
}

impl Copies {
    pub(super) fn save(&self, out: &mut Outgoing) -> SavedCopies {
        let copies = self.copies.iter().map(|(id, open)| SavedCopy {
            id: *id,
            fd: out.keep_socket(open.fd(), *id),
            backlog: open.backlog,
            stall: open.stall.clone(),
            drops: open.drops,
            last_slot: open.last_slot,
        });
        let copies = copies.collect();
        let locations = self.locations.iter().map(|((serial, id), at)| SavedLocation {
            serial: *serial,
            id: *id,
            thread: at.thread,
            fd: at.fd,
        });
        let files = self.files.iter().map(|(id, file)| (*id, file.save(out)));
        SavedCopies { copies, locations: locations.collect(), files: files.collect() }
    }

    pub(super) fn resume(saved: SavedCopies, from: &mut Incoming) -> Copies {
        let mut copies = Copies { relocated: true, ..Copies::default() };
        for SavedCopy { id, fd, backlog, stall, drops, last_slot } in saved.copies {
            let fd = from.take(fd);
            let open =
                OpenSocket { fd, backlog, stall, drops, last_slot, queue_limit: None, is_watched: false };
            copies.copies.insert(id, open);
        }
        for SavedLocation { serial, id, thread, fd } in saved.locations {
            copies.locations.insert((serial, id), Location { thread, fd });
        }
        for (id, file) in saved.files {
            copies.files.insert(id, SocketFile::resume(file, from));
        }
        copies
    }

    pub(super) fn insert(&mut self, id: SocketId, fd: OwnedFd) -> &mut OpenSocket {
        let stall = StallDetector::default();
        self.copies.entry(id).or_insert(OpenSocket {
            fd,
            backlog: None,
            stall,
            drops: 0,
            last_slot: None,
            queue_limit: None,
            is_watched: false,
        })
    }

    pub(super) fn get(&self, id: SocketId) -> Option<&OpenSocket> {
        self.copies.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: SocketId) -> Option<&mut OpenSocket> {
        self.copies.get_mut(&id)
    }

    pub(super) fn set_file(&mut self, id: SocketId, file: SocketFile) {
        self.files.insert(id, file);
    }

    pub(super) fn file(&self, id: SocketId) -> Option<&SocketFile> {
        self.files.get(&id)
    }

    pub(super) fn file_mut(&mut self, id: SocketId) -> Option<&mut SocketFile> {
        self.files.get_mut(&id)
    }

    /// Drops the file of a socket, and keeps the socket.
    pub(super) fn drop_file(&mut self, id: SocketId) {
        self.files.remove(&id);
    }

    /// The files below these directories are not removed.
    pub(super) fn leave_files_in(&mut self, directories: &[PathBuf]) {
        for file in self.files.values_mut() {
            let path = file.place().absolute();
            if file.is_at_path() && directories.iter().any(|directory| path.starts_with(directory)) {
                file.leave_to_worker();
            }
        }
    }

    /// Two files to exchange.
    pub(super) fn two_files(
        &mut self,
        one: SocketId,
        other: Option<SocketId>,
    ) -> Option<(&mut SocketFile, Option<&mut SocketFile>)> {
        let Some(other) = other else { return Some((self.files.get_mut(&one)?, None)) };
        match self.files.get_disjoint_mut([&one, &other]) {
            [Some(one), other] => Some((one, other)),
            [None, _] => None,
        }
    }

    pub(super) fn files(&self) -> impl Iterator<Item = (SocketId, &SocketFile)> {
        self.files.iter().map(|(id, file)| (*id, file))
    }

    pub(super) fn locate(&mut self, serial: u64, id: SocketId, thread: Pid, fd: RawFd) {
        self.locations.insert((serial, id), Location { thread, fd });
        self.relocated = true;
    }

    pub(super) fn location(&self, serial: u64, id: SocketId) -> Option<Location> {
        self.locations.get(&(serial, id)).copied()
    }

    /// All places where workers have sockets open, if they have changed since the last call.
    pub(super) fn take_relocated(&mut self) -> Option<impl Iterator<Item = Location>> {
        std::mem::take(&mut self.relocated).then(|| self.locations.values().copied())
    }

    /// Forgets where a worker had its sockets.
    pub(super) fn forget_worker(&mut self, serial: u64) {
        self.locations.retain(|(of, _), _| *of != serial);
        self.relocated = true;
    }

    /// Closes our copy of a socket, and removes its file if that is ours. The listener is closed when this returns,
    /// because a worker may bind its address next. Unlike a connection, a listener never lingers.
    pub(super) fn close(&mut self, id: SocketId) {
        self.locations.retain(|(_, of), _| *of != id);
        self.relocated = true;
        self.files.remove(&id);
        self.drop_copy(id);
    }

    /// Closes our copy, and keeps what else is known of the socket.
    pub(super) fn drop_copy(&mut self, id: SocketId) {
        if let Some(copy) = self.copies.remove(&id) {
            sockets::close_copy(copy.fd);
        }
    }
}
