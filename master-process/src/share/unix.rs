//! Unix sockets: files that must not be taken from anybody, and must not go while we hold them.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, renameat_with};

use super::address::Key;
use crate::config::Owner;
use crate::sys::peer::FsIdentity;
use crate::sys::sockets;

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
    /// Opens the folder of `path`; messages will call it `shown`.
    pub(super) fn open(path: &Path, shown: &Path) -> io::Result<Place> {
        let name = path.file_name().ok_or_else(|| io::Error::from_raw_os_error(libc::EISDIR))?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let folder = open_folder(folder)?;
        let id = id_of(&folder)?;
        Ok(Place { folder, name: name.to_owned(), id, shown: shown.to_owned() })
    }

    pub(super) fn key(&self) -> Key {
        Key::Unix { folder: self.id, name: self.name.clone(), shown: self.shown.clone() }
    }

    /// A socket of ours at this place, with its access set and nobody able to connect yet.
    pub(super) fn claim(
        self,
        identity: Option<FsIdentity>,
        access: Access,
    ) -> Result<(OwnedFd, SocketFile), Refused> {
        self.clear(&self.name)?;
        let name = self.name.clone();
        self.make(name, identity, access)
    }

    /// A socket of ours beside this place, to be put there later: who is there now serves on.
    pub(super) fn claim_beside(
        self,
        generation: u32,
        identity: Option<FsIdentity>,
        access: Access,
    ) -> Result<(OwnedFd, SocketFile), Refused> {
        let mut name = OsString::from(".");
        name.push(&self.name);
        name.push(format!(".{}.{generation}", std::process::id()));
        self.clear(&name)?;
        self.make(name, identity, access)
    }

    fn make(
        self,
        name: OsString,
        identity: Option<FsIdentity>,
        access: Access,
    ) -> Result<(OwnedFd, SocketFile), Refused> {
        let folder = self.folder.as_fd();
        let shown = self.shown_as(&name);
        let fd = sockets::bind_unix(folder, &name, shown.as_deref(), identity)
            .map_err(|error| Refused::Kernel("bind", error))?;
        let (uid, gid) = access.owner.map_or((None, None), |owner| (owner.uid, owner.gid));
        let id = file_id(&self.folder, &name);
        let accessible = sockets::set_access(folder, &name, access.mode, uid, gid);
        let file = SocketFile { place: self, now: name, id };
        // Dropping the file removes it.
        accessible.map_err(|error| Refused::Kernel("setting its mode and owner", error))?;
        Ok((fd, file))
    }

    /// The path that the user knows, where it leads us to the same folder as it leads the worker.
    fn shown_as(&self, name: &OsStr) -> Option<PathBuf> {
        let folder = self.shown.is_absolute().then(|| self.shown.parent()).flatten()?;
        let same = id_of(&open_folder(folder).ok()?).ok()? == self.id;
        same.then(|| folder.join(name))
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

/// The file of a Unix socket, ours to remove.
#[derive(Debug)]
pub(super) struct SocketFile {
    place: Place,
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
        if self.is_in_place() {
            let _gone = rustix::fs::unlinkat(&self.place.folder, &self.now, AtFlags::empty());
        }
    }
}

fn open_folder(folder: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(folder, flags, Mode::empty())?)
}

fn id_of(folder: &OwnedFd) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::fstat(folder)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Device and inode of what is there now, unless nothing is.
fn file_id(folder: &OwnedFd, name: &OsStr) -> Option<(u64, u64)> {
    let stat = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    Some((stat.st_dev, stat.st_ino))
}
