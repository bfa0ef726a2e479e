//! Files of Unix sockets: no file of another program may be removed, and ours must stay while we hold their sockets.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};

use super::address::Key;
use super::occupants::Answerer;
use crate::config::Owner;
use crate::sys::fs_identity::FsIdentity;
use crate::sys::handover::{Fd, Incoming, Outgoing};
use crate::sys::peer::Peer;
use crate::sys::{fs_identity, path_lookup, sockets};

/// Access to the Unix sockets that we hold.
#[derive(Debug, Clone, Copy)]
pub struct Access {
    /// Permission bits; `None`: 664 for `--listen`, and the worker's umask for its own.
    pub mode: Option<u32>,
    /// The owner, if it must change.
    pub owner: Option<Owner>,
}

/// The permission bits of a `--listen` path without `--socket-mode`.
const LISTEN_MODE: u32 = 0o664;

/// A name in a folder; the folder is held open.
#[derive(Debug)]
pub(super) struct Place {
    folder: OwnedFd,
    name: OsString,
    /// Device and inode of the folder.
    id: (u64, u64),
    shown: PathBuf,
}

/// Why a path cannot be bound.
#[derive(Debug)]
pub enum Refused {
    /// Something other than a socket is there; it stays.
    NotASocket(FileType),
    /// A server answers there.
    Answered(Answerer),
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
            Refused::Answered(Answerer { listener: Some(pid), .. }) => {
                write!(f, "another server (pid {}) answers there, and is left alone", pid.as_raw_pid())
            }
            Refused::Answered(_) => f.write_str("another server answers there, and is left alone"),
            Refused::Kernel(call, error) => write!(f, "{call}: {error}"),
        }
    }
}

impl Refused {
    /// The errno of the worker's `bind`.
    pub(super) fn errno(&self) -> i32 {
        match self {
            Refused::NotASocket(_) | Refused::Answered(_) => libc::EADDRINUSE,
            Refused::Kernel(_, error) => error.raw_os_error().unwrap_or(libc::EIO),
        }
    }
}

impl Place {
    /// The place that a path names for the supervisor.
    pub(super) fn own(path: &Path) -> io::Result<Place> {
        let (folder, name) = path_lookup::own_folder_of(path)?;
        Place::new(folder, name, path)
    }

    /// The place that a worker's path names, found with the worker's own privileges.
    pub(super) fn of(peer: &Peer, identity: &FsIdentity, dir: RawFd, path: &Path) -> io::Result<Place> {
        let (folder, name) =
            fs_identity::as_user(Some(identity), || path_lookup::folder_of(peer, dir, path))??;
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

    /// Whether both are names in the same folder.
    pub(super) fn is_beside(&self, other: &Place) -> bool {
        self.id == other.id
    }

    pub(super) fn name(&self) -> &OsStr {
        &self.name
    }

    /// The absolute path: as the worker wrote it, or in the folder as the supervisor sees it.
    pub(super) fn absolute(&self) -> PathBuf {
        if self.shown.is_absolute() {
            return self.shown.clone();
        }
        let folder =
            std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&self.folder)));
        folder.map_or_else(|_| self.shown.clone(), |folder| folder.join(&self.name))
    }

    /// Device and inode number of the file there now.
    fn file_id(&self) -> Option<FileId> {
        file_id(&self.folder, &self.name)
    }

    /// A file of another program at this place. No worker may remove it.
    pub(super) fn watched(self) -> SocketFile {
        let (now, id) = (self.name.clone(), self.file_id());
        SocketFile { place: self, now, id, ours: false, initial: None }
    }

    /// The file at this place, which may be that of a socket of an earlier supervisor; `None`: there is none. It is not ours
    /// before [`SocketFile::take_charge`].
    pub(super) fn present(self) -> Option<SocketFile> {
        let id = Some(self.file_id()?);
        Some(SocketFile { now: self.name.clone(), place: self, id, ours: false, initial: None })
    }

    /// The file that a worker is about to create at this place.
    pub(super) fn for_bind(self, identity: &FsIdentity) -> SocketFile {
        let initial =
            Some(InitialAccess { uid: identity.uid, gid: identity.gid, mode: 0o777 & !identity.umask });
        SocketFile { now: self.name.clone(), place: self, id: None, ours: false, initial }
    }

    /// Removes a stale socket file, with the worker's privileges.
    pub(super) fn make_room(&self, identity: &FsIdentity) -> Result<(), Refused> {
        fs_identity::as_user(Some(identity), || self.clear(&self.name))
            .unwrap_or_else(|error| Err(Refused::Kernel("becoming the worker's user", error)))
    }

    /// Binds a socket of ours at this place and sets its access. It does not listen yet, so no client can connect.
    pub(super) fn bind_own(self, access: Access) -> Result<(OwnedFd, SocketFile), Refused> {
        let name = self.name.clone();
        self.clear(&name)?;
        let kernel = |error| Refused::Kernel("bind", error);
        let fd = sockets::new_unix().map_err(kernel)?;
        let mode = access.mode.unwrap_or(LISTEN_MODE);
        sockets::bind_unix(fd.as_fd(), self.folder.as_fd(), &name, self.shown_as(&name).as_deref(), mode)
            .map_err(kernel)?;
        let file = SocketFile { id: self.file_id(), place: self, now: name, ours: true, initial: None };
        // If this fails, dropping the file removes it.
        let creator = rustix::process::geteuid().as_raw();
        file.set_access(Access { mode: None, ..access }, creator)
            .map_err(|error| Refused::Kernel("setting its owner", error))?;
        Ok((fd, file))
    }

    /// Binds a worker's socket beside this place, with the worker's privileges. It moves to the place later; the
    /// socket that is there now stays in use until then.
    pub(super) fn bind_beside(
        self,
        socket: BorrowedFd<'_>,
        identity: &FsIdentity,
        access: Access,
    ) -> Result<SocketFile, Refused> {
        // The name is short, because the path may have the maximum length already, and unpredictable.
        let name = unique_name();
        let initial = InitialAccess { uid: identity.uid, gid: identity.gid, mode: 0o777 & !identity.umask };
        let mode = access.mode.unwrap_or(initial.mode);
        fs_identity::as_user(Some(identity), || {
            let shown = self.shown_as(&name);
            sockets::bind_unix(socket, self.folder.as_fd(), &name, shown.as_deref(), mode)
        })
        .and_then(|bound| bound)
        .map_err(|error| Refused::Kernel("bind", error))?;
        let id = file_id(&self.folder, &name);
        let file = SocketFile { place: self, now: name, id, ours: true, initial: Some(initial) };
        file.set_access(Access { mode: None, ..access }, identity.uid)
            .map_err(|error| Refused::Kernel("setting its owner", error))?;
        Ok(file)
    }

    /// The path as the user wrote it, if it leads to the same folder for us as for the worker.
    fn shown_as(&self, name: &OsStr) -> Option<PathBuf> {
        let folder = self.shown.is_absolute().then(|| self.shown.parent()).flatten()?;
        let (same, _) = path_lookup::own_folder_of(&folder.join(name)).ok()?;
        path_lookup::same_folder(same.as_fd(), self.folder.as_fd()).then(|| folder.join(name))
    }

    /// Removes a socket file without a server that answers. Any other file stays.
    fn clear(&self, name: &OsStr) -> Result<(), Refused> {
        let stat = match rustix::fs::statat(&self.folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(rustix::io::Errno::NOENT) => return Ok(()),
            Err(error) => return Err(Refused::Kernel("stat", error.into())),
            Ok(stat) => stat,
        };
        let there = FileType::from_raw_mode(stat.st_mode);
        if there != FileType::Socket {
            return Err(Refused::NotASocket(there));
        }
        if let sockets::Answers::Yes(listener) = sockets::answers(self.folder.as_fd(), name) {
            return Err(Refused::Answered(Answerer { listener, file: (stat.st_dev, stat.st_ino) }));
        }
        // If this fails, the bind fails with the right errno.
        let _gone = rustix::fs::unlinkat(&self.folder, name, AtFlags::empty());
        Ok(())
    }
}

/// Device and inode number.
pub(super) type FileId = (u64, u64);

/// The access that a file was created with. A later difference is a change by the program.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct InitialAccess {
    uid: u32,
    gid: u32,
    mode: u32,
}

/// The file of a Unix socket.
#[derive(Debug)]
pub(super) struct SocketFile {
    place: Place,
    /// Whether the supervisor removes it.
    ours: bool,
    /// Its current name: its place's name, or another one beside it.
    now: OsString,
    id: Option<FileId>,
    initial: Option<InitialAccess>,
}

/// A socket's file as a supervisor hands it over.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct SavedFile {
    folder: Fd,
    #[serde(with = "crate::forms::path")]
    name: OsString,
    folder_id: (u64, u64),
    #[serde(with = "crate::forms::path")]
    shown: PathBuf,
    ours: bool,
    #[serde(with = "crate::forms::path")]
    now: OsString,
    id: Option<FileId>,
    initial: Option<InitialAccess>,
}

impl SocketFile {
    pub(super) fn save(&self, out: &mut Outgoing) -> SavedFile {
        let SocketFile { place, ours, now, id, initial } = self;
        SavedFile {
            folder: out.keep(place.folder.as_fd()),
            name: place.name.clone(),
            folder_id: place.id,
            shown: place.shown.clone(),
            ours: *ours,
            now: now.clone(),
            id: *id,
            initial: *initial,
        }
    }

    pub(super) fn resume(saved: SavedFile, from: &mut Incoming) -> SocketFile {
        let SavedFile { folder, name, folder_id, shown, ours, now, id, initial } = saved;
        let place = Place { folder: from.take(folder), name, id: folder_id, shown };
        SocketFile { place, ours, now, id, initial }
    }

    /// Takes charge of the file that a worker has created, for as long as its socket is kept. It must be a socket of
    /// that worker's user. Its access is set as the user configured it.
    ///
    /// # Errors
    /// EPERM if something else is there; those of chmod(2) and chown(2).
    pub(super) fn adopt(&mut self, access: Access) -> io::Result<()> {
        let Some(initial) = self.initial else { return Ok(()) };
        let stat = rustix::fs::statat(&self.place.folder, &self.now, AtFlags::SYMLINK_NOFOLLOW)?;
        let chowned = stat.st_uid != initial.uid;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Socket || (chowned && initial.uid != 0) {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        self.id = Some((stat.st_dev, stat.st_ino));
        self.ours = true;
        self.set_access(access, stat.st_uid)
    }

    /// Sets the access that the user configured, if the file belongs to the supervisor's user.
    pub(super) fn set_own_access(&self, access: Access) -> io::Result<()> {
        self.set_access(access, rustix::process::geteuid().as_raw())
    }

    /// Takes charge of a file that an earlier supervisor held, for as long as its socket is kept.
    pub(super) fn take_charge(&mut self) {
        self.ours = true;
    }

    /// Device and inode number of the file.
    pub(super) fn id(&self) -> Option<FileId> {
        self.id
    }

    fn set_access(&self, access: Access, creator: u32) -> io::Result<()> {
        let folder = self.place.folder.as_fd();
        if let Some(mode) = access.mode {
            sockets::set_mode(folder, &self.now, creator, mode)?;
        }
        match access.owner {
            Some(owner) => sockets::set_owner(folder, &self.now, creator, owner.uid, owner.gid),
            None => Ok(()),
        }
    }

    /// The worker has moved its socket's file to another place in the same folder, or wants it there.
    pub(super) fn moves_to(&mut self, place: Place, done: bool) {
        if done {
            self.now.clone_from(&place.name);
        } else {
            self.id = file_id(&place.folder, &self.now);
            self.ours = true;
        }
        self.place = place;
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// Whether the file is still where it was created or moved to.
    fn file_unchanged(&self) -> bool {
        self.id.is_some() && file_id(&self.place.folder, &self.now) == self.id
    }

    /// Whether its worker is binding it, or has bound it and does not listen yet.
    pub(super) fn is_awaited(&self) -> bool {
        self.initial.is_some() && self.id.is_none()
    }

    /// Whether a file exists where it was to be created.
    pub(super) fn is_there(&self) -> bool {
        file_id(&self.place.folder, &self.now).is_some()
    }

    /// The worker that created the file has closed its socket and lives, so the file is left to the worker.
    pub(super) fn leave_to_worker(&mut self) {
        self.ours = false;
    }

    /// Whether it was created and is no longer there.
    pub(super) fn is_lost(&self) -> bool {
        self.id.is_some() && !self.file_unchanged()
    }

    /// Whether clients reach it at its path.
    pub(super) fn is_at_path(&self) -> bool {
        self.now == self.place.name && self.file_unchanged()
    }

    /// Moves the file to its place. The file that is there now gets this one's name, so that it can move back. The
    /// exchange is atomic: a socket is at the path at any time.
    pub(super) fn take_place_of(&mut self, other: Option<&mut SocketFile>) -> io::Result<()> {
        let folder = &self.place.folder;
        match other.filter(|other| other.is_at_path()) {
            Some(other) => {
                self.take_access_of(other);
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

    /// Copies the program's changes of the access of the file at the path, so that they also hold for this file.
    fn take_access_of(&self, other: &SocketFile) {
        let (Some(initial), Some(ours)) = (other.initial, self.initial) else { return };
        let folder = &self.place.folder;
        let Ok(there) = rustix::fs::statat(folder, &other.now, AtFlags::SYMLINK_NOFOLLOW) else { return };
        let changed = |now: u32, before: u32| (now != before).then_some(now);
        let (uid, gid) = (changed(there.st_uid, initial.uid), changed(there.st_gid, initial.gid));
        let mode = changed(there.st_mode & 0o7777, initial.mode);
        // A failure does not prevent the exchange: the path matters more.
        if let Some(mode) = mode {
            let _best_effort = sockets::set_mode(folder.as_fd(), &self.now, ours.uid, mode);
        }
        if uid.is_some() || gid.is_some() {
            let _best_effort = sockets::set_owner(folder.as_fd(), &self.now, ours.uid, uid, gid);
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Another file may be there by now; that one stays.
        if self.ours && self.file_unchanged() {
            let _gone = rustix::fs::unlinkat(&self.place.folder, &self.now, AtFlags::empty());
        }
    }
}

/// An unpredictable name. In a folder that other users can write to, a known name could be taken.
fn unique_name() -> OsString {
    let mut random = [0u8; 8];
    // Only a kernel that has just started has no random numbers yet; the time replaces them.
    if rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::NONBLOCK).is_err() {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        random = now.subsec_nanos().to_ne_bytes().repeat(2).try_into().unwrap_or(random);
    }
    format!(".{:016x}", u64::from_ne_bytes(random)).into()
}

/// Device and inode number of the file at a name; `None`: there is none.
fn file_id(folder: &OwnedFd, name: &OsStr) -> Option<FileId> {
    let stat = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    Some((stat.st_dev, stat.st_ino))
}
