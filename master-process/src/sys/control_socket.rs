//! A Unix stream socket at a path that one process at a time has, and who its clients are.
//!
//! The lock file beside the socket (`PATH.lock`) belongs to the process that has it locked with flock(2). The kernel
//! releases the lock when the process ends, however it ends, so a socket without a lock is a leftover. A lock file is
//! removed only by the process that has locked it.

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Read, Seek, Write};
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FileType, FlockOperation, Mode, OFlags, fstat, lstat};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, socket_with,
    sockopt,
};
use serde::{Deserialize, Serialize};

use super::handover::{Fd, Incoming, Outgoing};

/// The connections that wait until they are accepted.
const BACKLOG: i32 = 128;

/// A process removes its lock file between our open(2) and flock(2) at most as often as supervisors of this name end.
const ATTEMPTS: usize = 16;

/// The most supplementary groups of a process: `NGROUPS_MAX` of the kernel.
const MAX_GROUPS: usize = 65536;

/// Who may connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permissions {
    /// The group that may connect besides the owner; `None`: only the owner.
    pub group: Option<u32>,
}

/// Why a path cannot be had.
#[derive(Debug)]
pub enum Unavailable {
    /// A running process has it; its pid if it can be told.
    Taken(Option<i32>),
    /// Something that is not ours is there.
    Foreign(&'static str),
    /// A system call failed.
    Failed(&'static str, io::Error),
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unavailable::Taken(Some(pid)) => write!(f, "a running master-process (pid {pid}) has it"),
            Unavailable::Taken(None) => f.write_str("another process has it"),
            Unavailable::Foreign(what) => f.write_str(what),
            Unavailable::Failed(call, error) => write!(f, "{call}: {error}"),
        }
    }
}

impl std::error::Error for Unavailable {}

/// A path that this process has, without a socket yet.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    lock_path: PathBuf,
    lock: std::fs::File,
    /// The device and inode of the socket file, once it is there.
    socket: Option<(u64, u64)>,
}

/// How often and how long to check whether the socket of a killed supervisor is closed. The kernel ends the requests of an
/// io_uring in the background, some milliseconds after the process.
const CLOSE_CHECK_EVERY: Duration = Duration::from_millis(10);
const CLOSE_CHECKS: u32 = 100;

/// A path with its socket, as a supervisor hands it over. The lock goes with its descriptor.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SavedClaim {
    #[serde(with = "crate::forms::path")]
    path: PathBuf,
    #[serde(with = "crate::forms::path")]
    lock_path: PathBuf,
    lock: Fd,
    socket: Option<(u64, u64)>,
}

impl Claim {
    /// The path and the descriptor.
    pub fn save(&self, out: &mut Outgoing) -> SavedClaim {
        let lock = out.keep(self.lock.as_fd());
        SavedClaim { path: self.path.clone(), lock_path: self.lock_path.clone(), lock, socket: self.socket }
    }

    /// Goes on with them.
    pub fn resume(saved: SavedClaim, from: &mut Incoming) -> Claim {
        let SavedClaim { path, lock_path, lock, socket } = saved;
        Claim { path, lock_path, lock: from.take(lock).into(), socket }
    }

    /// Takes a path.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub fn take(path: &Path) -> Result<Claim, Unavailable> {
        let mut lock_path = OsString::from(path);
        lock_path.push(".lock");
        let lock_path = PathBuf::from(lock_path);
        for _ in 0..ATTEMPTS {
            if let Some(lock) = try_lock(&lock_path)? {
                let mut claim = Claim { path: path.to_owned(), lock_path, lock, socket: None };
                claim.remove_leftover()?;
                let written = claim.lock.set_len(0).and_then(|()| claim.lock.rewind());
                let pid = std::process::id();
                written
                    .and_then(|()| writeln!(claim.lock, "{pid}"))
                    .map_err(|error| Unavailable::Failed("write", error))?;
                return Ok(claim);
            }
        }
        Err(Unavailable::Taken(None))
    }

    /// A killed supervisor has left its socket. Only a socket on which nobody listens is removed.
    fn remove_leftover(&mut self) -> Result<(), Unavailable> {
        let stat = match lstat(&self.path) {
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(Unavailable::Failed("lstat", error.into())),
            Ok(stat) => stat,
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
            return Err(Unavailable::Foreign("a file that is not a socket is there"));
        }
        let address = address(&self.path)?;
        let had_owner = pid_in(&mut self.lock).is_some();
        for _ in 0..CLOSE_CHECKS {
            let probe = stream().map_err(|error| Unavailable::Failed("socket", error))?;
            match connect(&probe, &address) {
                Err(Errno::CONNREFUSED) => {
                    return std::fs::remove_file(&self.path)
                        .map_err(|error| Unavailable::Failed("unlink", error));
                }
                // Its owner has released the lock: it was killed, and the kernel may still close what its io_uring watched.
                Ok(()) | Err(Errno::AGAIN) if had_owner => std::thread::sleep(CLOSE_CHECK_EVERY),
                Ok(()) | Err(Errno::AGAIN) => break,
                Err(error) => return Err(Unavailable::Failed("connect", error.into())),
            }
        }
        Err(Unavailable::Foreign("another program listens there"))
    }

    /// The path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the socket. Its mode and group are right before the first client can connect.
    ///
    /// # Errors
    /// The call that failed, and why.
    pub fn listen(&mut self, permissions: Permissions) -> Result<OwnedFd, Unavailable> {
        let failed = |call| move |error: Errno| Unavailable::Failed(call, error.into());
        let fd = stream().map_err(|error| Unavailable::Failed("socket", error))?;
        bind(&fd, &address(&self.path)?).map_err(failed("bind"))?;
        let stat = lstat(&self.path).map_err(failed("lstat"))?;
        self.socket = Some((stat.st_dev, stat.st_ino));
        let mode = if permissions.group.is_some() { 0o660 } else { 0o600 };
        if let Some(group) = permissions.group {
            let group = Some(rustix::fs::Gid::from_raw(group));
            rustix::fs::chown(&self.path, None, group).map_err(failed("chown"))?;
        }
        rustix::fs::chmod(&self.path, Mode::from_raw_mode(mode)).map_err(failed("chmod"))?;
        listen(&fd, BACKLOG).map_err(failed("listen"))?;
        Ok(fd)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let is_ours = lstat(&self.path).is_ok_and(|stat| self.socket == Some((stat.st_dev, stat.st_ino)));
        if is_ours {
            let _gone_already = std::fs::remove_file(&self.path);
        }
        let _gone_already = std::fs::remove_file(&self.lock_path);
    }
}

/// Opens and locks a lock file; `None` if its last owner has removed it meanwhile.
fn try_lock(path: &Path) -> Result<Option<std::fs::File>, Unavailable> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let failed = |call| move |error: Errno| Unavailable::Failed(call, error.into());
    let fd = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).map_err(failed("open"))?;
    let ours = fstat(&fd).map_err(failed("fstat"))?;
    if FileType::from_raw_mode(ours.st_mode) != FileType::RegularFile {
        return Err(Unavailable::Foreign("its lock file is not a file"));
    }
    let mut file = std::fs::File::from(fd);
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => return Err(Unavailable::Taken(pid_in(&mut file))),
        Err(error) => return Err(Unavailable::Failed("flock", error.into())),
        Ok(()) => {}
    }
    let is_there = lstat(path).is_ok_and(|there| (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino));
    Ok(is_there.then_some(file))
}

fn pid_in(file: &mut std::fs::File) -> Option<i32> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// Whether a socket path has the lock file that [`Claim`] makes.
pub fn has_lock_file(path: &Path) -> bool {
    let mut lock = OsString::from(path);
    lock.push(".lock");
    lstat(PathBuf::from(lock))
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile)
}

fn address(path: &Path) -> Result<SocketAddrUnix, Unavailable> {
    SocketAddrUnix::new(path).map_err(|_too_long| Unavailable::Foreign("the path is too long for a socket"))
}

fn stream() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

/// A process at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its pid; 0 if it is outside this PID namespace.
    pub pid: i32,
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

/// Accepts connections that wait, at most this many.
///
/// The second value is an error of accept4(2) that concerns this process: EMFILE, ENFILE, ENOMEM.
pub fn accept_some(listener: BorrowedFd<'_>, most: usize) -> (Vec<OwnedFd>, io::Result<()>) {
    let mut accepted = Vec::new();
    while accepted.len() < most {
        match accept(listener) {
            Ok(Some(fd)) => accepted.push(fd),
            Ok(None) => break,
            Err(error) => return (accepted, Err(error)),
        }
    }
    (accepted, Ok(()))
}

/// Accepts a connection; `None` if none waits.
fn accept(listener: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    match accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The process that connected: `SO_PEERCRED` of unix(7).
///
/// # Errors
/// Those of getsockopt(2).
pub fn peer(fd: BorrowedFd<'_>) -> io::Result<Peer> {
    let mut cred = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = libc::socklen_t::try_from(size_of::<libc::ucred>()).unwrap_or_default();
    // SAFETY: the kernel writes at most `length` bytes, the size of `cred`, to it.
    let result = unsafe {
        let into = (&raw mut cred).cast();
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, into, &raw mut length)
    };
    match result {
        0 => Ok(Peer { pid: cred.pid, uid: cred.uid, gid: cred.gid }),
        _failed => Err(io::Error::last_os_error()),
    }
}

/// Whether the process that connected has this group as its own or a supplementary one: `SO_PEERGROUPS`.
pub fn has_group(fd: BorrowedFd<'_>, peer: Peer, group: u32) -> bool {
    peer.gid == group || peer_groups(fd).is_ok_and(|groups| groups.contains(&group))
}

fn peer_groups(fd: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut groups = vec![0u32; 64];
    loop {
        let bytes = groups.len() * size_of::<u32>();
        let mut length = libc::socklen_t::try_from(bytes).unwrap_or_default();
        // SAFETY: the kernel writes at most `length` bytes, the size of the vector, to it.
        let result = unsafe {
            let into = groups.as_mut_ptr().cast();
            libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERGROUPS, into, &raw mut length)
        };
        let count = usize::try_from(length).unwrap_or_default() / size_of::<u32>();
        match result {
            0 => {
                groups.truncate(count);
                return Ok(groups);
            }
            _failed => {
                let error = io::Error::last_os_error();
                if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() || count > MAX_GROUPS {
                    return Err(error);
                }
                groups.resize(count, 0);
            }
        }
    }
}

/// Connects to a socket at a path, within this time, which is also the limit of each send and receive.
///
/// # Errors
/// ENOENT and ECONNREFUSED if nobody listens there, EACCES without permission, EAGAIN if time is over; connect(2).
pub fn connect_to(path: &Path, within: Duration) -> io::Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    for timeout in [sockopt::Timeout::Send, sockopt::Timeout::Recv] {
        sockopt::set_socket_timeout(&fd, timeout, Some(within))?;
    }
    connect(&fd, &address)?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("a folder")
    }

    fn take(path: &Path) -> Claim {
        Claim::take(path).unwrap_or_else(|error| panic!("{}: {error:?}", path.display()))
    }

    #[test]
    fn one_process_has_a_path_and_leaves_nothing() {
        let folder = folder();
        let path = folder.path().join("a.sock");
        let mut claim = take(&path);
        let ours = i32::try_from(std::process::id()).expect("small");
        assert!(matches!(Claim::take(&path), Err(Unavailable::Taken(Some(pid))) if pid == ours));
        let _listener = claim.listen(Permissions { group: None }).expect("it listens");
        assert_eq!(std::fs::metadata(&path).expect("there").mode() & 0o777, 0o600);
        assert!(has_lock_file(&path));
        drop(claim);
        assert_eq!(std::fs::read_dir(folder.path()).expect("readable").count(), 0);
        drop(take(&path));
    }

    #[test]
    fn a_socket_that_a_killed_process_left_is_replaced() {
        let folder = folder();
        let path = folder.path().join("a.sock");
        drop(UnixListener::bind(&path).expect("bound"));
        assert!(path.exists(), "std leaves it");
        let mut claim = take(&path);
        let listener = claim.listen(Permissions { group: None }).expect("it listens");
        let _client = UnixStream::connect(&path).expect("it is ours");
        let accepted = accept(listener.as_fd()).expect("accept").expect("a client");
        let peer = peer(accepted.as_fd()).expect("its credentials");
        assert_eq!(peer.pid.cast_unsigned(), std::process::id());
        assert!(has_group(accepted.as_fd(), peer, peer.gid));
        assert!(!has_group(accepted.as_fd(), peer, 4_000_000));
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        let folder = folder();
        let file = folder.path().join("file");
        std::fs::write(&file, "important").expect("written");
        assert!(matches!(Claim::take(&file), Err(Unavailable::Foreign(_))));
        assert_eq!(std::fs::read_to_string(&file).expect("still there"), "important");
        let alive = folder.path().join("alive");
        let _listener = UnixListener::bind(&alive).expect("bound");
        assert!(matches!(Claim::take(&alive), Err(Unavailable::Foreign(_))));
        assert!(alive.exists());
        assert!(!has_lock_file(&alive), "nothing of ours is left");
    }

    #[test]
    fn a_socket_that_replaced_ours_is_not_removed() {
        let folder = folder();
        let path = folder.path().join("a.sock");
        let mut claim = take(&path);
        let _listener = claim.listen(Permissions { group: None }).expect("it listens");
        std::fs::remove_file(&path).expect("somebody removes it");
        let _other = UnixListener::bind(&path).expect("and takes its place");
        drop(claim);
        assert!(path.exists());
    }
}
