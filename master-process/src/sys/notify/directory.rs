//! A private directory for the socket, which is removed with it.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, FlockOperation, Mode, OFlags, Stat, flock, fstat, mkdirat, openat, statat,
    unlinkat,
};
use rustix::io::Errno;
use rustix::process::Pid;
use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};

use super::WorkerUser;
use crate::sys::handover::{Fd, Incoming, Outgoing};

/// The start of a directory's name; a pid and [`RANDOM_DIGITS`] digits follow.
const PREFIX: &str = "master-process-";

/// The digits of a random 64-bit number in hexadecimal.
const RANDOM_DIGITS: usize = 16;

/// Between mkdir and flock, another supervisor can take the new directory for a leftover and remove it. Then the
/// creation is repeated.
const ATTEMPTS: usize = 16;

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC);

/// A directory of mode 0700 with one socket in it. It is locked with flock(2) while it is in use, so a later supervisor
/// recognizes a leftover by the missing lock.
#[derive(Debug)]
pub(super) struct PrivateDirectory {
    base: OwnedFd,
    name: String,
    file: &'static str,
    path: PathBuf,
    fd: OwnedFd,
}

/// A directory as a supervisor hands it over. Its lock goes with the descriptor.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct SavedDirectory {
    base: Fd,
    fd: Fd,
    name: String,
    #[serde(with = "crate::forms::path")]
    path: PathBuf,
}

impl PrivateDirectory {
    pub(super) fn save(&self, out: &mut Outgoing) -> SavedDirectory {
        let (base, fd) = (out.keep(self.base.as_fd()), out.keep(self.fd.as_fd()));
        SavedDirectory { base, fd, name: self.name.clone(), path: self.path.clone() }
    }

    pub(super) fn resume(saved: SavedDirectory, file: &'static str, from: &mut Incoming) -> PrivateDirectory {
        let SavedDirectory { base, fd, name, path } = saved;
        PrivateDirectory { base: from.take(base), fd: from.take(fd), name, file, path }
    }

    /// Creates a directory below `base` for the socket `file`, and removes leftovers there.
    ///
    /// # Errors
    /// Those of open(2) and mkdir(2); `PermissionDenied` if another user could replace the directory.
    pub(super) fn create(base: &Path, file: &'static str) -> io::Result<PrivateDirectory> {
        // `base` can be a symbolic link: systemd creates one with DynamicUser=.
        let fd = openat(CWD, base, DIRECTORY | OFlags::RDONLY, Mode::empty())?;
        if !is_trusted(&fstat(&fd)?) {
            let why = format!("other users can change what is in {}", base.display());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        remove_leftovers(fd.as_fd(), file)?;
        for _ in 0..ATTEMPTS {
            let name = new_name()?;
            mkdirat(&fd, &name, Mode::RWXU)?;
            if let Some(directory) = open_locked(fd.as_fd(), OsStr::new(&name))? {
                return Ok(PrivateDirectory { base: fd, path: base.join(&name), name, file, fd: directory });
            }
        }
        Err(io::Error::from(Errno::AGAIN))
    }

    /// Its absolute path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The directory's descriptor.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for PrivateDirectory {
    fn drop(&mut self) {
        // If the removal fails, a later supervisor removes the leftover.
        let _left = remove(self.base.as_fd(), OsStr::new(&self.name), self.fd.as_fd(), self.file);
    }
}

/// Checks that `user` can search `base` and the directories above it. Access control lists are ignored.
pub(super) fn check_reachable(base: &Path, user: WorkerUser<'_>) -> io::Result<()> {
    for directory in base.ancestors().filter(|directory| !directory.as_os_str().is_empty()) {
        let stat = rustix::fs::stat(directory)?;
        if !may_search(&stat, user) {
            let why = format!("user {} may not search {}", user.uid, directory.display());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
    }
    Ok(())
}

fn may_search(stat: &Stat, user: WorkerUser<'_>) -> bool {
    let mode = Mode::from_raw_mode(stat.st_mode);
    let in_group = user.gid == Some(stat.st_gid) || user.groups.contains(&stat.st_gid);
    match user.uid {
        0 => true,
        uid if uid == stat.st_uid => mode.contains(Mode::XUSR),
        _other if in_group => mode.contains(Mode::XGRP),
        _other => mode.contains(Mode::XOTH),
    }
}

/// Whether only root and this user can rename or remove entries of `base`.
fn is_trusted(base: &Stat) -> bool {
    let mode = Mode::from_raw_mode(base.st_mode);
    let ours = base.st_uid == 0 || base.st_uid == rustix::process::geteuid().as_raw();
    ours && (mode.contains(Mode::SVTX) || !mode.intersects(Mode::WGRP | Mode::WOTH))
}

fn new_name() -> io::Result<String> {
    let mut random = [0u8; 8];
    getrandom(&mut random, GetRandomFlags::empty())?;
    let pid = rustix::process::getpid().as_raw_nonzero();
    Ok(format!("{PREFIX}{pid}-{:0RANDOM_DIGITS$x}", u64::from_ne_bytes(random)))
}

/// Whether [`new_name`] can have created this name.
fn is_our_name(name: &OsStr) -> bool {
    pid_in_name(name).is_some()
}

/// The digits of the pid in a name that [`new_name`] can have created.
fn pid_in_name(name: &OsStr) -> Option<&str> {
    let (pid, random) = name.to_str()?.strip_prefix(PREFIX)?.split_once('-')?;
    let digits = |text: &str, is_digit: fn(&u8) -> bool| text.bytes().all(|byte| is_digit(&byte));
    let is_ours = !pid.is_empty()
        && digits(pid, u8::is_ascii_digit)
        && random.len() == RANDOM_DIGITS
        && digits(random, u8::is_ascii_hexdigit);
    is_ours.then_some(pid)
}

/// The pid of the supervisor that created the directory of a file, from the directory's name.
pub(super) fn supervisor_of(file: &Path) -> Option<Pid> {
    let pid: i32 = pid_in_name(file.parent()?.file_name()?)?.parse().ok()?;
    if pid > 0 { Pid::from_raw(pid) } else { None }
}

/// Opens a directory of this user and locks it. `None` if another process has the lock, if another user owns it, or if
/// the name refers to another file by now.
fn open_locked(base: BorrowedFd<'_>, name: &OsStr) -> io::Result<Option<OwnedFd>> {
    let fd = match openat(base, name, DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ACCESS) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if fstat(&fd)?.st_uid != rustix::process::geteuid().as_raw() {
        return Ok(None);
    }
    match flock(&fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(is_still(base, name, fd.as_fd())?.then_some(fd)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn is_still(base: BorrowedFd<'_>, name: &OsStr, fd: BorrowedFd<'_>) -> io::Result<bool> {
    let opened = fstat(fd)?;
    match statat(base, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(named) => Ok((named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Removes the directories of supervisors that are gone. A running supervisor holds the lock of its directory.
fn remove_leftovers(base: BorrowedFd<'_>, file: &str) -> io::Result<()> {
    for entry in Dir::read_from(base)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if !is_our_name(name) {
            continue;
        }
        // A leftover that cannot be opened or removed does not prevent a start.
        if let Ok(Some(fd)) = open_locked(base, name) {
            let _left = remove(base, name, fd.as_fd(), file);
        }
    }
    Ok(())
}

/// Removes the socket and the directory. A directory with other files in it stays.
fn remove(base: BorrowedFd<'_>, name: &OsStr, fd: BorrowedFd<'_>, file: &str) -> io::Result<()> {
    match statat(fd, file, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) if FileType::from_raw_mode(found.st_mode) == FileType::Socket => {
            unlinkat(fd, file, AtFlags::empty())?;
        }
        Ok(_) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(unlinkat(base, name, AtFlags::REMOVEDIR)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_in_our_directory_names_the_supervisor() {
        let path = |name: &str| Path::new("/run/master-process").join(name).join("notify");
        let name = new_name().expect("random numbers");
        assert_eq!(supervisor_of(&path(&name)), Some(rustix::process::getpid()));
        for other in ["systemd", "master-process-1", "master-process-0-0123456789abcdef", ""] {
            assert_eq!(supervisor_of(&path(other)), None, "{other}");
        }
    }

    #[test]
    fn only_names_that_we_give_are_ours() {
        assert!(is_our_name(OsStr::new(&new_name().expect("random numbers"))));
        for other in [
            "master-process-",
            "master-process-1-",
            "master-process-1-0123",
            "master-process--0123456789abcdef",
            "master-process-1-0123456789abcdeg",
            "master-process-x-0123456789abcdef",
            "notify-1-0123456789abcdef",
            "master-process.sock",
        ] {
            assert!(!is_our_name(OsStr::new(other)), "{other}");
        }
    }
}
