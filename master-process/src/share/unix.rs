//! Unix sockets: files that must not be taken from anybody, and must not go while we hold them.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, RenameFlags, renameat_with};

use super::address::Key;
use crate::config::Owner;
use crate::sys::peer::{FsIdentity, Peer};
use crate::sys::{paths, sockets};

/// Who may connect to the Unix sockets that we hold.
#[derive(Debug, Clone, Copy)]
pub struct Access {
    /// Permission bits.
    pub mode: u32,
    /// Owner, where it is to change.
    pub owner: Option<Owner>,
}

/// A name in a folder that is held open.
#[derive(Debug)]
pub(super) struct Place {
    folder: OwnedFd,
    name: OsString,
    /// Device and inode of the folder.
    id: (u64, u64),
    shown: PathBuf,
}

/// Why a path cannot be had.
#[derive(Debug)]
pub enum Refused {
    /// Something that is no socket is there; it is left alone.
    NotASocket(FileType),
    /// Somebody answers there.
    Answered,
    /// The kernel refused.
    Kernel(&'static str, io::Error),
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Refused::NotASocket(FileType::RegularFile) => {
                f.write_str("a regular file is there, and is left alone")
            }
            Refused::NotASocket(FileType::Directory) => {
                f.write_str("a directory is there, and is left alone")
            }
            Refused::NotASocket(FileType::Symlink) => {
                f.write_str("a symbolic link is there, and is left alone")
            }
            Refused::NotASocket(_other) => {
                f.write_str("something that is not a socket is there, and is left alone")
            }
            Refused::Answered => f.write_str("another server answers there, and is left alone"),
            Refused::Kernel(call, error) => write!(f, "{call}: {error}"),
        }
    }
}

impl Refused {
    /// What a worker's `bind` fails with.
    pub(super) fn errno(&self) -> i32 {
        match self {
            Refused::NotASocket(_) | Refused::Answered => libc::EADDRINUSE,
            Refused::Kernel(_, error) => error.raw_os_error().unwrap_or(libc::EIO),
        }
    }
}

impl Place {
    /// The place that a path of ours names.
    pub(super) fn own(path: &Path) -> io::Result<Place> {
        let (folder, name) = paths::own_folder_of(path)?;
        Place::new(folder, name, path)
    }

    /// The place that a path of a worker names, found with the worker's own rights.
    pub(super) fn of(peer: Peer, identity: &FsIdentity, dir: RawFd, path: &Path) -> io::Result<Place> {
        let (folder, name) = paths::as_user(Some(identity), || paths::folder_of(peer, dir, path))?;
        Place::new(folder, name, path)
    }

    fn new(folder: OwnedFd, name: OsString, shown: &Path) -> io::Result<Place> {
        let stat = rustix::fs::fstat(&folder)?;
        let id = (stat.st_dev, stat.st_ino);
        Ok(Place { folder, name, id, shown: shown.to_owned() })
    }

    pub(super) fn key(&self) -> Key {
        Key::Unix { folder: self.id, name: self.name.clone(), shown: self.shown.clone() }
    }

    /// Somebody else's file at this place, which we only keep from being removed by a worker.
    pub(super) fn watched(self) -> SocketFile {
        let (now, id) = (self.name.clone(), file_id(&self.folder, &self.name));
        SocketFile { place: self, now, id, ours: false }
    }

    /// A socket of ours at this place, with its access set and nobody able to connect yet.
    pub(super) fn claim(self, how: Claim<'_>) -> Result<(OwnedFd, SocketFile), Refused> {
        let name = self.name.clone();
        self.make(name, how)
    }

    /// A socket of ours beside this place, to be put there later: who is there now serves on.
    pub(super) fn claim_beside(
        self,
        generation: u32,
        how: Claim<'_>,
    ) -> Result<(OwnedFd, SocketFile), Refused> {
        // Short, whatever the socket is called: its path may be as long as a path can be.
        let name = format!(".{:x}-{generation:x}-{:x}", std::process::id(), self.id.1 & 0xfff);
        let name = unique(&self.folder, name);
        self.make(name, how)
    }

    /// Everything is done with the worker's rights but the gift to another owner, which is ours to make.
    fn make(self, name: OsString, how: Claim<'_>) -> Result<(OwnedFd, SocketFile), Refused> {
        let folder = self.folder.as_fd();
        let shown = self.shown_as(&name);
        let fd = paths::as_user(how.identity, || {
            self.clear(&name)?;
            sockets::bind_unix(folder, &name, shown.as_deref(), how.access.mode, how.model)
                .map_err(|error| Refused::Kernel("bind", error))
        })?;
        let id = file_id(&self.folder, &name);
        let file = SocketFile { place: self, now: name, id, ours: true };
        if let Some(owner) = how.access.owner {
            let creator = how.identity.map_or_else(|| rustix::process::geteuid().as_raw(), |who| who.uid);
            let (folder, name) = (file.place.folder.as_fd(), &file.now);
            // Dropping the file removes it.
            sockets::set_owner(folder, name, creator, owner.uid, owner.gid)
                .map_err(|error| Refused::Kernel("setting its owner", error))?;
        }
        Ok((fd, file))
    }

    /// The path that the user knows, where it leads us to the same folder as it leads the worker.
    fn shown_as(&self, name: &OsStr) -> Option<PathBuf> {
        let folder = self.shown.is_absolute().then(|| self.shown.parent()).flatten()?;
        let (same, _) = paths::own_folder_of(&folder.join(name)).ok()?;
        paths::same_folder(same.as_fd(), self.folder.as_fd()).then(|| folder.join(name))
    }

    /// Removes a socket file that nobody answers on; anything else is somebody's.
    fn clear(&self, name: &OsStr) -> Result<(), Refused> {
        let there = match rustix::fs::statat(&self.folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(rustix::io::Errno::NOENT) => return Ok(()),
            Err(error) => return Err(Refused::Kernel("stat", error.into())),
            Ok(there) => FileType::from_raw_mode(there.st_mode),
        };
        if there != FileType::Socket {
            return Err(Refused::NotASocket(there));
        }
        if sockets::is_answered(self.folder.as_fd(), name) {
            return Err(Refused::Answered);
        }
        // What cannot be removed shows at the bind, with its errno.
        let _gone = rustix::fs::unlinkat(&self.folder, name, AtFlags::empty());
        Ok(())
    }
}

/// How a socket file is to be made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim<'a> {
    pub(super) access: Access,
    /// Whose rights count; `None`: ours.
    pub(super) identity: Option<&'a FsIdentity>,
    /// A socket whose options it is to have.
    pub(super) model: Option<BorrowedFd<'a>>,
}

/// The file of a Unix socket.
#[derive(Debug)]
pub(super) struct SocketFile {
    place: Place,
    /// Whether it is ours to remove.
    ours: bool,
    /// What it is called now: its place's name, or another one beside it.
    now: OsString,
    id: Option<(u64, u64)>,
}

impl SocketFile {
    /// Whether its place has this name, whatever it is called now.
    pub(super) fn is_called(&self, name: &OsStr) -> bool {
        self.place.name == name
    }

    /// Whether it is still where we have put it.
    pub(super) fn is_in_place(&self) -> bool {
        self.id.is_some() && file_id(&self.place.folder, &self.now) == self.id
    }

    /// Whether clients find it.
    pub(super) fn is_found(&self) -> bool {
        self.now == self.place.name && self.is_in_place()
    }

    /// Puts it to its place. Who is there now is called as it was, so that it can come back; without a moment
    /// in which nobody is there.
    pub(super) fn take_place_of(&mut self, other: Option<&mut SocketFile>) -> io::Result<()> {
        let folder = &self.place.folder;
        match other.filter(|other| other.is_found()) {
            Some(other) => {
                renameat_with(folder, &self.now, folder, &other.now, RenameFlags::EXCHANGE)?;
                std::mem::swap(&mut self.now, &mut other.now);
            }
            None => {
                renameat_with(folder, &self.now, folder, &self.place.name, RenameFlags::empty())?;
                self.now.clone_from(&self.place.name);
            }
        }
        Ok(())
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Another file may stand there by now: that one is not ours.
        if self.ours && self.is_in_place() {
            let _gone = rustix::fs::unlinkat(&self.place.folder, &self.now, AtFlags::empty());
        }
    }
}

/// A name that nothing in the folder has: two sockets may be made beside each other.
fn unique(folder: &OwnedFd, name: String) -> OsString {
    let names = std::iter::once(name.clone()).chain((1..100).map(|more| format!("{name}-{more}")));
    let mut names = names.map(OsString::from);
    names.find(|name| file_id(folder, name).is_none()).unwrap_or_else(|| name.into())
}

/// Device and inode of what is there now, unless nothing is.
fn file_id(folder: &OwnedFd, name: &OsStr) -> Option<(u64, u64)> {
    let stat = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    Some((stat.st_dev, stat.st_ino))
}
