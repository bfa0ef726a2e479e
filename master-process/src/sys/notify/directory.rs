//! A directory that only this supervisor changes, removed with it.

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

use super::WorkerUser;

/// How the names of our directories begin; a process id and [`RANDOM_DIGITS`] follow.
const PREFIX: &str = "master-process-";

/// A random number of 64 bits in hexadecimal.
const RANDOM_DIGITS: usize = 16;

/// Creating is tried again when another supervisor takes our new directory for a leftover, which it can in the moment
/// before it is locked.
const ATTEMPTS: usize = 16;

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC);

/// A directory of mode 0700 with one socket in it. It is locked (flock(2)) for as long as it is used, so that a later
/// supervisor knows a leftover.
#[derive(Debug)]
pub(super) struct PrivateDirectory {
    base: OwnedFd,
    name: String,
    file: &'static str,
    path: PathBuf,
    fd: OwnedFd,
}

impl PrivateDirectory {
    /// Creates a directory below `base` that is to hold the socket `file`, and removes leftovers there.
    ///
    /// # Errors
    /// Those of open(2) and mkdir(2); `PermissionDenied` where another user could replace the directory.
    pub(super) fn create(base: &Path, file: &'static str) -> io::Result<PrivateDirectory> {
        // It may be a symbolic link: systemd makes one with DynamicUser=.
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

    /// The directory itself.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for PrivateDirectory {
    fn drop(&mut self) {
        // What cannot be removed is a leftover for the next supervisor.
        let _left = remove(self.base.as_fd(), OsStr::new(&self.name), self.fd.as_fd(), self.file);
    }
}

/// Creates a base that everybody may pass through.
pub(super) fn create_base(path: &Path) -> io::Result<()> {
    match mkdirat(CWD, path, Mode::RWXU) {
        Ok(()) => Ok(rustix::fs::chmod(path, Mode::from_raw_mode(0o755))?),
        Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A base that `sender` cannot pass through is of no use to it. Access control lists are not looked at.
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

/// Whether nobody but root and us can rename or remove our directory in there.
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

/// Whether [`new_name`] could have made this name.
fn is_our_name(name: &OsStr) -> bool {
    pid_in_name(name).is_some()
}

/// The digits of the process id in a name that [`new_name`] could have made.
fn pid_in_name(name: &OsStr) -> Option<&str> {
    let (pid, random) = name.to_str()?.strip_prefix(PREFIX)?.split_once('-')?;
    let digits = |text: &str, is_digit: fn(&u8) -> bool| text.bytes().all(|byte| is_digit(&byte));
    let is_ours = !pid.is_empty()
        && digits(pid, u8::is_ascii_digit)
        && random.len() == RANDOM_DIGITS
        && digits(random, u8::is_ascii_hexdigit);
    is_ours.then_some(pid)
}

/// The supervisor whose directory a file is in, by the directory's name.
pub(super) fn supervisor_of(file: &Path) -> Option<Pid> {
    let pid: i32 = pid_in_name(file.parent()?.file_name()?)?.parse().ok()?;
    if pid > 0 { Pid::from_raw(pid) } else { None }
}

/// Opens a directory of ours and locks it; `None` where another process has the lock, where it is another user's, or
/// where the name stands for something else by then.
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

/// Removes the directories of supervisors that are gone. Whoever is alive has the lock.
fn remove_leftovers(base: BorrowedFd<'_>, file: &str) -> io::Result<()> {
    for entry in Dir::read_from(base)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if !is_our_name(name) {
            continue;
        }
        // One that cannot be opened or removed is no reason not to start.
        if let Ok(Some(fd)) = open_locked(base, name) {
            let _left = remove(base, name, fd.as_fd(), file);
        }
    }
    Ok(())
}

/// The socket and the directory. Where anything else is in there, it is not ours and stays.
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
