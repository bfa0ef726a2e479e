//! Unix sockets: files that must not be taken from anybody, and must not go while we hold them.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};

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

/// Where a socket file is, or is to be.
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
        let name = path
            .file_name()
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EISDIR))?;
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(folder, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&folder)?;
        Ok(Place {
            folder,
            name: name.to_owned(),
            id: (stat.st_dev, stat.st_ino),
            shown: shown.to_owned(),
        })
    }

    pub(super) fn key(&self) -> Key {
        Key::Unix {
            folder: self.id,
            name: self.name.clone(),
            shown: self.shown.clone(),
        }
    }

    pub(super) fn name(&self) -> &OsStr {
        &self.name
    }

    /// Device and inode of what is there now, unless nothing is.
    pub(super) fn file(&self) -> Option<(u64, u64)> {
        let stat = rustix::fs::statat(&self.folder, &self.name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        Some((stat.st_dev, stat.st_ino))
    }

    /// A socket of ours at this place, with its access set and nobody able to connect yet.
    pub(super) fn claim(&self, identity: Option<FsIdentity>, access: Access) -> Result<OwnedFd, Refused> {
        self.clear()?;
        let folder = self.folder.as_fd();
        let fd = sockets::bind_unix(folder, &self.name, identity)
            .map_err(|error| Refused::Kernel("bind", error))?;
        let (uid, gid) = access.owner.map_or((None, None), |owner| (owner.uid, owner.gid));
        sockets::set_access(folder, &self.name, access.mode, uid, gid).map_err(|error| {
            self.remove();
            Refused::Kernel("setting its mode and owner", error)
        })?;
        Ok(fd)
    }

    /// Removes a socket file that nobody answers on; anything else is somebody's.
    fn clear(&self) -> Result<(), Refused> {
        let there = match rustix::fs::statat(&self.folder, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(rustix::io::Errno::NOENT) => return Ok(()),
            Err(error) => return Err(Refused::Kernel("stat", error.into())),
            Ok(there) => FileType::from_raw_mode(there.st_mode),
        };
        if there != FileType::Socket {
            return Err(Refused::NotASocket(there));
        }
        if sockets::is_answered(self.folder.as_fd(), &self.name) {
            return Err(Refused::Answered);
        }
        self.remove();
        Ok(())
    }

    pub(super) fn remove(&self) {
        // What cannot be removed shows at the next bind, with its errno.
        let _gone = rustix::fs::unlinkat(&self.folder, &self.name, AtFlags::empty());
    }
}
