//! Unix sockets: files that must not be taken from anybody, and must not go while we hold them.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, RenameFlags, renameat_with};

use super::address::Key;
use super::occupants::Answerer;
use crate::config::Owner;
use crate::sys::fs_identity::FsIdentity;
use crate::sys::peer::Peer;
use crate::sys::{fs_identity, path_lookup, sockets};

/// Who may connect to the Unix sockets that we hold.
#[derive(Debug, Clone, Copy)]
pub struct Access {
    /// Permission bits; `None`: those of `--listen` are 664, a worker's are as its umask says.
    pub mode: Option<u32>,
    /// Owner, where it is to change.
    pub owner: Option<Owner>,
}

/// The permission bits of a `--listen` path where `--socket-mode` does not say.
const LISTEN_MODE: u32 = 0o664;

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
    /// What a worker's `bind` fails with.
    pub(super) fn errno(&self) -> i32 {
        match self {
            Refused::NotASocket(_) | Refused::Answered(_) => libc::EADDRINUSE,
            Refused::Kernel(_, error) => error.raw_os_error().unwrap_or(libc::EIO),
        }
    }
}

impl Place {
    /// The place that a path of ours names.
    pub(super) fn own(path: &Path) -> io::Result<Place> {
        let (folder, name) = path_lookup::own_folder_of(path)?;
        Place::new(folder, name, path)
    }

    /// The place that a path of a worker names, found with the worker's own rights.
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

    /// The path as a user would write it: that of the worker, or the folder's as we see it.
    pub(super) fn absolute(&self) -> PathBuf {
        if self.shown.is_absolute() {
            return self.shown.clone();
        }
        let folder =
            std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&self.folder)));
        folder.map_or_else(|_| self.shown.clone(), |folder| folder.join(&self.name))
    }

    /// Device and inode of what is there now.
    fn file_id(&self) -> Option<FileId> {
        file_id(&self.folder, &self.name)
    }

    /// Somebody else's file at this place, which we only keep from being removed by a worker.
    pub(super) fn watched(self) -> SocketFile {
        let (now, id) = (self.name.clone(), self.file_id());
        SocketFile { place: self, now, id, ours: false, born: None }
    }

    /// The file that a worker itself is about to make at this place.
    pub(super) fn for_bind(self, identity: &FsIdentity) -> SocketFile {
        let born = Some(Born { uid: identity.uid, gid: identity.gid, mode: 0o777 & !identity.umask });
        SocketFile { now: self.name.clone(), place: self, id: None, ours: false, born }
    }

    /// Removes a dead socket file, with the worker's rights.
    pub(super) fn make_room(&self, identity: &FsIdentity) -> Result<(), Refused> {
        fs_identity::as_user(Some(identity), || self.clear(&self.name))
            .unwrap_or_else(|error| Err(Refused::Kernel("becoming the worker's user", error)))
    }

    /// A socket of ours at this place, with its access set and nobody able to connect yet.
    pub(super) fn bind_own(self, access: Access) -> Result<(OwnedFd, SocketFile), Refused> {
        let name = self.name.clone();
        self.clear(&name)?;
        let kernel = |error| Refused::Kernel("bind", error);
        let fd = sockets::new_unix().map_err(kernel)?;
        let mode = access.mode.unwrap_or(LISTEN_MODE);
        sockets::bind_unix(fd.as_fd(), self.folder.as_fd(), &name, self.shown_as(&name).as_deref(), mode)
            .map_err(kernel)?;
        let file = SocketFile { id: self.file_id(), place: self, now: name, ours: true, born: None };
        // Dropping the file removes it.
        let creator = rustix::process::geteuid().as_raw();
        file.set_access(Access { mode: None, ..access }, creator)
            .map_err(|error| Refused::Kernel("setting its owner", error))?;
        Ok((fd, file))
    }

    /// Binds a worker's socket beside this place, to be put there later: who is there now serves on. It is bound with
    /// the worker's rights.
    pub(super) fn bind_beside(
        self,
        socket: BorrowedFd<'_>,
        identity: &FsIdentity,
        access: Access,
    ) -> Result<SocketFile, Refused> {
        // Short, whatever the socket is called: its path may be as long as a path can be. Nobody can know it beforehand.
        let name = unique_name();
        let born = Born { uid: identity.uid, gid: identity.gid, mode: 0o777 & !identity.umask };
        let mode = access.mode.unwrap_or(born.mode);
        fs_identity::as_user(Some(identity), || {
            let shown = self.shown_as(&name);
            sockets::bind_unix(socket, self.folder.as_fd(), &name, shown.as_deref(), mode)
        })
        .and_then(|bound| bound)
        .map_err(|error| Refused::Kernel("bind", error))?;
        let id = file_id(&self.folder, &name);
        let file = SocketFile { place: self, now: name, id, ours: true, born: Some(born) };
        file.set_access(Access { mode: None, ..access }, identity.uid)
            .map_err(|error| Refused::Kernel("setting its owner", error))?;
        Ok(file)
    }

    /// The path that the user knows, where it leads us to the same folder as it leads the worker.
    fn shown_as(&self, name: &OsStr) -> Option<PathBuf> {
        let folder = self.shown.is_absolute().then(|| self.shown.parent()).flatten()?;
        let (same, _) = path_lookup::own_folder_of(&folder.join(name)).ok()?;
        path_lookup::same_folder(same.as_fd(), self.folder.as_fd()).then(|| folder.join(name))
    }

    /// Removes a socket file that nobody answers on; anything else is somebody's.
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
        // What cannot be removed shows at the bind, with its errno.
        let _gone = rustix::fs::unlinkat(&self.folder, name, AtFlags::empty());
        Ok(())
    }
}

/// Device and inode number.
type FileId = (u64, u64);

/// What a file was made with: what differs later was changed by the program.
#[derive(Debug, Clone, Copy)]
struct Born {
    uid: u32,
    gid: u32,
    mode: u32,
}

/// The file of a Unix socket.
#[derive(Debug)]
pub(super) struct SocketFile {
    place: Place,
    /// Whether it is ours to remove.
    ours: bool,
    /// What it is called now: its place's name, or another one beside it.
    now: OsString,
    id: Option<FileId>,
    born: Option<Born>,
}

impl SocketFile {
    /// The file that a worker has made is there now, and is kept for as long as we keep its socket: a socket of that
    /// worker's user. Its access is set as the user wants it.
    ///
    /// # Errors
    /// EPERM where something else is there; those of chmod(2) and chown(2).
    pub(super) fn adopt(&mut self, access: Access) -> io::Result<()> {
        let Some(born) = self.born else { return Ok(()) };
        let stat = rustix::fs::statat(&self.place.folder, &self.now, AtFlags::SYMLINK_NOFOLLOW)?;
        let chowned = stat.st_uid != born.uid;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Socket || (chowned && born.uid != 0) {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        self.id = Some((stat.st_dev, stat.st_ino));
        self.ours = true;
        self.set_access(access, stat.st_uid)
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

    /// The worker itself has put its socket's file to another place in the same folder, or wants it there.
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

    /// Whether it is still where it was made or put.
    fn is_in_place(&self) -> bool {
        self.id.is_some() && file_id(&self.place.folder, &self.now) == self.id
    }

    /// Whether its worker binds it, or has, and does not listen yet.
    pub(super) fn is_awaited(&self) -> bool {
        self.born.is_some() && self.id.is_none()
    }

    /// Whether anything is where it was to be made.
    pub(super) fn is_there(&self) -> bool {
        file_id(&self.place.folder, &self.now).is_some()
    }

    /// The worker that has made it has closed its socket, and lives: what becomes of the file is its own business.
    pub(super) fn disown(&mut self) {
        self.ours = false;
    }

    /// Whether it was made and is not there any more.
    pub(super) fn is_lost(&self) -> bool {
        self.id.is_some() && !self.is_in_place()
    }

    /// Whether clients find it.
    pub(super) fn is_at_path(&self) -> bool {
        self.now == self.place.name && self.is_in_place()
    }

    /// Puts it to its place. Who is there now is called as it was, so that it can come back; without a moment
    /// in which nobody is there.
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

    /// What a program does to the access of its path, it does to the file that is there: the next one gets that too.
    fn take_access_of(&self, other: &SocketFile) {
        let (Some(born), Some(ours)) = (other.born, self.born) else { return };
        let folder = &self.place.folder;
        let Ok(there) = rustix::fs::statat(folder, &other.now, AtFlags::SYMLINK_NOFOLLOW) else { return };
        let changed = |now: u32, before: u32| (now != before).then_some(now);
        let (uid, gid) = (changed(there.st_uid, born.uid), changed(there.st_gid, born.gid));
        let mode = changed(there.st_mode & 0o7777, born.mode);
        // Whether it succeeds changes nothing for who is served: the path is what counts.
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
        // Another file may stand there by now: that one is not ours.
        if self.ours && self.is_in_place() {
            let _gone = rustix::fs::unlinkat(&self.place.folder, &self.now, AtFlags::empty());
        }
    }
}

/// A name that nobody can guess: in a folder that others can write to, one that is known could be taken.
fn unique_name() -> OsString {
    let mut random = [0u8; 8];
    // Only a kernel that is just starting has none yet; then the time will do.
    if rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::NONBLOCK).is_err() {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        random = now.subsec_nanos().to_ne_bytes().repeat(2).try_into().unwrap_or(random);
    }
    format!(".{:016x}", u64::from_ne_bytes(random)).into()
}

/// Device and inode of what is there now, unless nothing is.
fn file_id(folder: &OwnedFd, name: &OsStr) -> Option<FileId> {
    let stat = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    Some((stat.st_dev, stat.st_ino))
}
