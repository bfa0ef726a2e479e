//! The sd_notify protocol: the socket that workers send messages to, its location, and the messages.
//!
//! The socket is a file in a directory that belongs to the supervisor, so the kernel keeps other users away. If no such
//! directory can be created, the socket has an abstract address, which every process of the network namespace can send
//! to.

mod datagram;
mod directory;
mod location;
mod protocol;
mod received_fds;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, chmodat, chownat, fchmod, fchown};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with, sockopt};
use rustix::process::{Gid, Pid, Uid};
use serde::{Deserialize, Serialize};

use super::handover::{Fd, Incoming, Outgoing};
use super::pidfd;
use directory::{PrivateDirectory, SavedDirectory, supervisor_of};
pub use location::{BaseGuard, Opened, open};
pub use protocol::{ParsedMessage, parse};
use received_fds::ReceivedFds;

/// `SO_PASSPIDFD` of unix(7), Linux 6.5: each message carries a pidfd of its sender.
const SO_PASSPIDFD: i32 = libc::SO_PASSPIDFD;

/// The socket's name in its directory.
const SOCKET: &str = "notify";

/// The kinds of addresses of the socket.
#[derive(Debug)]
enum Address {
    Directory(PrivateDirectory),
    Abstract(Vec<u8>),
}

/// The user that the workers run as. Only this user and root can send messages.
#[derive(Debug, Clone, Copy)]
pub struct WorkerUser<'a> {
    /// User id.
    pub uid: u32,
    /// Group id; `None` for the supervisor's.
    pub gid: Option<u32>,
    /// Supplementary groups.
    pub groups: &'a [u32],
}

/// A datagram socket that receives messages from the workers.
#[derive(Debug)]
pub struct NotifySocket {
    fd: OwnedFd,
    address: Address,
    received: ReceivedFds,
}

/// A message and its sender, as reported by the kernel.
#[derive(Debug)]
pub struct Message {
    /// The sender's pid; `None` if it is in a PID namespace that is not below ours.
    pub sender: Option<Pid>,
    /// The sender's pidfd; `None` before Linux 6.5, or if the sender was gone already.
    pidfd: Option<OwnedFd>,
    /// The text: `NAME=VALUE` lines.
    pub text: Vec<u8>,
}

impl Message {
    /// Whether the sender's pid may belong to another process by now: the sender was gone when the kernel searched for
    /// its pidfd, or has been reaped since.
    ///
    /// Call this after resolving the pid. Before Linux 6.5 this is unknown, and the result is false.
    pub fn is_sender_gone(&self) -> bool {
        let errno = |fd: &OwnedFd| pidfd::signal(fd.as_fd(), 0).err().and_then(|error| error.raw_os_error());
        self.pidfd.as_ref().is_some_and(|fd| errno(fd) == Some(libc::ESRCH))
    }
}

/// The pid of the supervisor that created the socket at this `NOTIFY_SOCKET` address; `None` if the address is not in a
/// directory of a supervisor.
#[must_use]
pub fn supervisor_of_address(address: &[u8]) -> Option<Pid> {
    supervisor_of(Path::new(std::ffi::OsStr::from_bytes(address)))
}

/// A socket as a supervisor hands it over. The messages in it wait.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Saved {
    fd: Fd,
    /// `None`: its address is the abstract name.
    directory: Option<SavedDirectory>,
    name: Vec<u8>,
}

impl NotifySocket {
    /// The descriptors and the address.
    pub fn save(&self, out: &mut Outgoing) -> Saved {
        let (directory, name) = match &self.address {
            Address::Directory(directory) => (Some(directory.save(out)), Vec::new()),
            Address::Abstract(name) => (None, name.clone()),
        };
        Saved { fd: out.keep(self.fd.as_fd()), directory, name }
    }

    /// Goes on with them.
    pub fn resume(saved: Saved, from: &mut Incoming) -> NotifySocket {
        let fd = from.take(saved.fd);
        // The descriptors that made the supervisor before refuse further ones were closed with it.
        received_fds::accept_descriptors(fd.as_fd());
        let address = match saved.directory {
            Some(directory) => Address::Directory(PrivateDirectory::resume(directory, SOCKET, from)),
            None => Address::Abstract(saved.name),
        };
        from.need(NotifySocket::new(fd, address), "the notify socket")
    }

    /// Opens the socket in a new directory below `base`, an absolute path, for messages of `user`.
    ///
    /// This removes directories of killed supervisors of the same user.
    ///
    /// # Errors
    /// Those of mkdir(2), socket(2), bind(2) and chown(2). `PermissionDenied` if another user could replace entries of
    /// `base`, or if `user` could not reach the socket there; `InvalidInput` if the path is too long for a socket.
    pub fn in_directory(base: &Path, user: WorkerUser<'_>) -> io::Result<NotifySocket> {
        let is_another = user.uid != rustix::process::geteuid().as_raw();
        if is_another {
            directory::check_reachable(base, user)?;
        }
        let directory = PrivateDirectory::create(base, SOCKET)?;
        let fd = new_socket()?;
        rustix::net::bind(&fd, &SocketAddrUnix::new(directory.path().join(SOCKET))?)?;
        // Until this is done, only this user and root have access to the directory.
        chmodat(directory.fd(), SOCKET, Mode::RUSR | Mode::WUSR, AtFlags::empty())?;
        if is_another {
            let uid = Some(Uid::from_raw(user.uid));
            chownat(directory.fd(), SOCKET, uid, None, AtFlags::SYMLINK_NOFOLLOW)?;
            // The workers' group can search the directory, and the directory stays ours, so workers cannot replace the
            // socket. Other members of the group reach the socket and cannot write to it.
            fchown(directory.fd(), None, user.gid.map(Gid::from_raw))?;
            fchmod(directory.fd(), Mode::RWXU | Mode::XGRP)?;
        }
        NotifySocket::new(fd, Address::Directory(directory))
    }

    /// Opens the socket with an abstract address that the kernel chooses ("autobind" in unix(7)). Every process of the
    /// network namespace can send to it.
    ///
    /// # Errors
    /// Those of socket(2) and bind(2): EMFILE, ENFILE, ENOMEM.
    pub fn with_abstract_address() -> io::Result<NotifySocket> {
        let fd = new_socket()?;
        // With an address that has only the family, the kernel chooses the name.
        rustix::net::bind(&fd, &SocketAddrUnix::new_unnamed())?;
        let bound = SocketAddrUnix::try_from(rustix::net::getsockname(&fd)?)?;
        let name = bound.abstract_name().map(<[u8]>::to_vec);
        let name = name.ok_or_else(|| io::Error::other("the kernel chose no name for an unnamed socket"))?;
        NotifySocket::new(fd, Address::Abstract(name))
    }

    fn new(fd: OwnedFd, address: Address) -> io::Result<NotifySocket> {
        let received = ReceivedFds::new(fd.as_fd())?;
        Ok(NotifySocket { fd, address, received })
    }

    /// The value of `NOTIFY_SOCKET`: a path, or an abstract name with `@` for the leading zero byte.
    pub fn address(&self) -> Vec<u8> {
        match &self.address {
            Address::Directory(directory) => directory.path().join(SOCKET).as_os_str().as_bytes().to_vec(),
            Address::Abstract(name) => [b"@".as_slice(), name].concat(),
        }
    }

    /// The next message; `None` if there is none, or if too many descriptors wait to be closed.
    pub fn receive(&self) -> Option<Message> {
        if self.received.is_full() {
            return None;
        }
        let raw = datagram::receive(self.fd.as_fd()).ok()?;
        // This also completes a barrier: `BARRIER=1` sends a pipe and waits until it is closed.
        self.received.close(raw.fds);
        Some(Message { sender: raw.sender, pidfd: raw.pidfd, text: raw.text })
    }

    /// The descriptor to poll for the next message. It changes while [`receive`](Self::receive) waits for descriptors
    /// to be closed, so get it again after each round.
    pub fn watched(&self) -> BorrowedFd<'_> {
        if self.received.is_full() { self.received.drained() } else { self.fd.as_fd() }
    }
}

/// A socket that receives the credentials of senders with each message.
fn new_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    sockopt::set_socket_passcred(&fd, true)?;
    // Linux before 6.5 does not have this option. Then only the pid identifies the sender.
    let _unknown_option = datagram::set_option(fd.as_fd(), SO_PASSPIDFD, true);
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::os::unix::net::UnixDatagram;
    use std::path::PathBuf;

    use super::*;

    fn ourselves() -> WorkerUser<'static> {
        WorkerUser { uid: rustix::process::geteuid().as_raw(), gid: None, groups: &[] }
    }

    fn path_of(socket: &NotifySocket) -> PathBuf {
        String::from_utf8(socket.address()).expect("UTF-8").into()
    }

    #[test]
    fn the_path_is_ours_alone_and_goes_with_the_socket() {
        let base = tempfile::tempdir().expect("a temporary folder");
        let socket = NotifySocket::in_directory(base.path(), ourselves()).expect("opened");
        let path = path_of(&socket);
        let directory = path.parent().expect("it has a folder").to_owned();
        assert_eq!(directory.metadata().expect("there").permissions().mode() & 0o7777, 0o700);
        assert_eq!(path.metadata().expect("there").permissions().mode() & 0o7777, 0o600);
        let sender = UnixDatagram::unbound().expect("a socket");
        sender.send_to(b"READY=1", &path).expect("sent");
        let message = socket.receive().expect("received");
        assert_eq!(
            (message.text.as_slice(), message.sender),
            (b"READY=1".as_slice(), Some(rustix::process::getpid()))
        );
        assert!(!message.is_sender_gone());
        assert!(socket.receive().is_none());
        drop(socket);
        assert_eq!(base.path().read_dir().expect("there").count(), 0);
    }

    #[test]
    fn what_a_killed_supervisor_left_is_removed_and_what_lives_stays() {
        let base = tempfile::tempdir().expect("a temporary folder");
        let alive = NotifySocket::in_directory(base.path(), ourselves()).expect("opened");
        let left = base.path().join("master-process-4194304-0123456789abcdef");
        std::fs::create_dir(&left).expect("ours");
        drop(UnixDatagram::bind(left.join(SOCKET)).expect("ours"));
        let other = base.path().join("master-process-4194304-fedcba9876543210");
        std::fs::create_dir(&other).expect("ours");
        std::fs::write(other.join(SOCKET), "no socket").expect("ours");
        let next = NotifySocket::in_directory(base.path(), ourselves()).expect("opened");
        assert!(!left.exists());
        assert!(other.join(SOCKET).exists() && path_of(&alive).exists() && path_of(&next).exists());
    }

    #[test]
    fn a_link_in_the_place_of_a_directory_is_not_followed() {
        let base = tempfile::tempdir().expect("a temporary folder");
        let target = tempfile::tempdir().expect("a temporary folder");
        drop(UnixDatagram::bind(target.path().join(SOCKET)).expect("ours"));
        let link = base.path().join("master-process-1-0123456789abcdef");
        std::os::unix::fs::symlink(target.path(), &link).expect("ours");
        let _socket = NotifySocket::in_directory(base.path(), ourselves()).expect("opened");
        assert!(target.path().join(SOCKET).exists());
    }

    #[test]
    fn a_base_that_others_can_write_to_is_refused_without_the_sticky_bit() {
        let base = tempfile::tempdir().expect("a temporary folder");
        let set = |mode| {
            std::fs::set_permissions(base.path(), std::fs::Permissions::from_mode(mode)).expect("ours");
        };
        set(0o777);
        let error = NotifySocket::in_directory(base.path(), ourselves()).expect_err("not safe");
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        set(0o1777);
        assert!(NotifySocket::in_directory(base.path(), ourselves()).is_ok());
    }

    #[test]
    fn a_base_that_the_sender_cannot_reach_is_refused() {
        let base = tempfile::tempdir().expect("a temporary folder");
        std::fs::set_permissions(base.path(), std::fs::Permissions::from_mode(0o700)).expect("ours");
        let uid = base.path().metadata().expect("there").uid() + 4242;
        let user = WorkerUser { uid, gid: Some(4242), groups: &[] };
        let error = NotifySocket::in_directory(base.path(), user).expect_err("mode 0700");
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn a_path_that_is_too_long_is_refused_and_leaves_nothing() {
        let base = tempfile::tempdir().expect("a temporary folder");
        let deep = base.path().join("x".repeat(100));
        std::fs::create_dir(&deep).expect("ours");
        assert!(NotifySocket::in_directory(&deep, ourselves()).is_err());
        assert_eq!(deep.read_dir().expect("there").count(), 0);
    }

    #[test]
    fn a_sender_that_was_reaped_is_gone_and_a_zombie_is_not() {
        use rustix::process::{PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};
        let mut child = std::process::Command::new("true").spawn().expect("every host has it");
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a pid");
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).expect("it is our child");
        waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).expect("it ends");
        let message = Message { sender: Some(pid), pidfd: Some(pidfd), text: Vec::new() };
        assert!(!message.is_sender_gone());
        child.wait().expect("it is our child");
        assert!(message.is_sender_gone());
    }

    #[test]
    fn an_abstract_address_begins_with_the_sign_for_it() {
        let socket = NotifySocket::with_abstract_address().expect("opened");
        assert!(socket.address().starts_with(b"@"));
    }
}
