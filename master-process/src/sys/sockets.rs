//! Sockets of the supervisor: creation, state and attributes.

use std::ffi::OsStr;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use super::deferred_close::close_async;
use super::socket_options::option;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with, sockopt};
use rustix::process::Pid;

/// The backlog if a program names none. The kernel limits it to `net.core.somaxconn`.
pub const DEFAULT_BACKLOG: i32 = 4096;

/// The options of a new TCP socket.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tcp {
    /// Whether an IPv6 socket accepts IPv6 only.
    pub v6only: bool,
    /// Whether the socket joins an `SO_REUSEPORT` group.
    pub reuseport: bool,
}

/// A TCP socket that is bound to `addr` and does not listen yet.
///
/// # Errors
/// Those of socket(2) and bind(2), usually EADDRINUSE, EADDRNOTAVAIL or EACCES.
pub fn bind_tcp(addr: SocketAddr, options: Tcp) -> io::Result<OwnedFd> {
    let family = if addr.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let fd = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // A restart must not wait for connections of the last run in TIME_WAIT.
    sockopt::set_socket_reuseaddr(&fd, true)?;
    sockopt::set_socket_reuseport(&fd, options.reuseport)?;
    if addr.is_ipv6() {
        sockopt::set_ipv6_v6only(&fd, options.v6only)?;
    }
    rustix::net::bind(&fd, &addr)?;
    Ok(fd)
}

/// Whether a read or an accept would not block.
pub fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::new(&fd, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut polled, Some(&now)).is_ok_and(|ready| ready > 0)
}

/// Which of these listeners have nothing to accept, in one system call. `false` also for one that is not a listener any more.
pub fn idle_listeners(fds: &[BorrowedFd<'_>]) -> Vec<bool> {
    let mut polled: Vec<PollFd<'_>> =
        fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    match poll(&mut polled, Some(&now)) {
        Ok(_ready) => polled.iter().map(|fd| fd.revents().is_empty()).collect(),
        Err(_no_memory) => vec![false; fds.len()],
    }
}

/// Shuts a listener down. Clients in its queue see the end of the connection, and blocked `accept` calls return.
pub fn shut_down(fd: BorrowedFd<'_>) {
    let _not_listening = rustix::net::shutdown(fd, rustix::net::Shutdown::Both);
}

/// An unbound Unix stream socket.
///
/// # Errors
/// Those of socket(2).
pub fn new_unix() -> io::Result<OwnedFd> {
    unix_socket(SocketFlags::CLOEXEC)
}

/// Binds a Unix socket to `name` in the directory `dir`. The file has these permission bits from the start. If `shown`
/// is a path to the same place, peers see it as the socket's address.
///
/// # Errors
/// Those of bind(2), usually EADDRINUSE, EACCES or ENAMETOOLONG.
pub fn bind_unix(
    fd: BorrowedFd<'_>,
    dir: BorrowedFd<'_>,
    name: &OsStr,
    shown: Option<&Path>,
    mode: u32,
) -> io::Result<()> {
    // The file gets the mode of the unbound socket, less the umask (unix_bind_bsd, net/unix/af_unix.c). A chmod by name
    // afterwards could reach a file that another process has put there.
    rustix::fs::fchmod(fd, Mode::from_raw_mode(mode))?;
    let fitting = shown.and_then(|shown| SocketAddrUnix::new(shown).ok());
    let address = fitting.map_or_else(|| SocketAddrUnix::new(in_dir(dir, name)), Ok)?;
    let umask = rustix::process::umask(Mode::empty());
    let bound = rustix::net::bind(fd, &address);
    rustix::process::umask(umask);
    Ok(bound?)
}

/// The result of a connection to a socket file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answers {
    /// No process listens at the file, or there is no file.
    No,
    /// A process listens, or may listen: a socket file may be removed only if it is certain that none does. The pid is
    /// that of the process that called `listen`, if it is in our PID namespace. That process may be gone.
    Yes(Option<Pid>),
}

/// Whether a process listens at the socket file `name` in `dir`. If this is unknown, the answer is yes.
pub fn answers(dir: BorrowedFd<'_>, name: &OsStr) -> Answers {
    let connect = || -> io::Result<OwnedFd> {
        let fd = unix_socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
        rustix::net::connect(&fd, &SocketAddrUnix::new(in_dir(dir, name))?)?;
        Ok(fd)
    };
    match connect() {
        Ok(fd) => Answers::Yes(listening_process(fd.as_fd())),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ECONNREFUSED | libc::ENOENT)) => Answers::No,
        Err(_) => Answers::Yes(None),
    }
}

/// The pid of `SO_PEERCRED`, unix(7).
fn listening_process(fd: BorrowedFd<'_>) -> Option<Pid> {
    let credentials = option(fd, libc::SOL_SOCKET, libc::SO_PEERCRED)?;
    Pid::from_raw(i32::from_ne_bytes(*credentials.first_chunk()?))
}

/// Whether an IP address cannot be bound because it is in use. The check binds a socket and closes it; other errors
/// count as "not in use". A TCP socket that is bound and does not listen is no obstacle, because of `SO_REUSEADDR`.
pub fn is_held(address: SocketAddr, v6only: bool, datagram: bool) -> bool {
    let attempt = || -> io::Result<()> {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let kind = if datagram { SocketType::DGRAM } else { SocketType::STREAM };
        let fd = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
        sockopt::set_socket_reuseaddr(&fd, !datagram)?;
        if address.is_ipv6() {
            sockopt::set_ipv6_v6only(&fd, v6only)?;
        }
        Ok(rustix::net::bind(&fd, &address)?)
    };
    attempt().is_err_and(|error| error.raw_os_error() == Some(libc::EADDRINUSE))
}

/// Changes the owner of the socket file `name`. If the file is not a socket with one link that belongs to `creator`,
/// nothing is changed.
///
/// # Errors
/// EPERM if we may not change it or the file is another one.
pub fn set_owner(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    creator: u32,
    uid: Option<u32>,
    gid: Option<u32>,
) -> io::Result<()> {
    let file = open_socket_file(dir, name, creator)?;
    let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
    Ok(rustix::fs::chownat(&file, "", uid, gid, AtFlags::EMPTY_PATH)?)
}

/// Changes the permission bits of the socket file `name` under the conditions of [`set_owner`].
///
/// # Errors
/// Those of [`set_owner`].
pub fn set_mode(dir: BorrowedFd<'_>, name: &OsStr, creator: u32, mode: u32) -> io::Result<()> {
    let file = open_socket_file(dir, name, creator)?;
    // fchmod(2) rejects an `O_PATH` descriptor. The path of the descriptor leads to the same file.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(rustix::fs::chmod(path, Mode::from_raw_mode(mode))?)
}

/// An `O_PATH` descriptor of a socket file with one link that belongs to `creator`.
fn open_socket_file(dir: BorrowedFd<'_>, name: &OsStr, creator: u32) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&file)?;
    let socket = FileType::from_raw_mode(stat.st_mode) == FileType::Socket;
    if !socket || stat.st_uid != creator || stat.st_nlink != 1 {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    Ok(file)
}

/// Starts to listen, or changes the backlog.
///
/// # Errors
/// EADDRINUSE if another socket listens at the address; listen(2).
pub fn listen(fd: BorrowedFd<'_>, backlog: i32) -> io::Result<()> {
    Ok(rustix::net::listen(fd, backlog)?)
}

/// The IP address that a socket is bound to; `None` if it is not an IP socket or has no port yet.
pub fn inet_address(fd: BorrowedFd<'_>) -> Option<SocketAddr> {
    SocketAddr::try_from(rustix::net::getsockname(fd).ok()?).ok().filter(|address| address.port() != 0)
}

/// The path that a Unix stream socket is bound to; `None` for other sockets.
pub fn unix_path(fd: BorrowedFd<'_>) -> Option<std::path::PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    if sockopt::socket_type(fd).ok()? != SocketType::STREAM {
        return None;
    }
    let bound = SocketAddrUnix::try_from(rustix::net::getsockname(fd).ok()?).ok()?;
    Some(Path::new(OsStr::from_bytes(bound.path_bytes()?)).to_owned())
}

/// The abstract name that a Unix stream socket is bound to, without the leading zero byte; `None` for other sockets.
pub fn abstract_name(fd: BorrowedFd<'_>) -> Option<Vec<u8>> {
    if sockopt::socket_type(fd).ok()? != SocketType::STREAM {
        return None;
    }
    let bound = SocketAddrUnix::try_from(rustix::net::getsockname(fd).ok()?).ok()?;
    bound.abstract_name().map(<[u8]>::to_vec)
}

/// Whether an IPv6 socket accepts IPv6 only.
pub fn is_v6only(fd: BorrowedFd<'_>) -> bool {
    sockopt::ipv6_v6only(fd).unwrap_or(false)
}

/// The kind of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// TCP.
    Tcp {
        /// Over IPv6.
        v6: bool,
        /// The program requested MPTCP.
        multipath: bool,
    },
    /// UDP.
    Udp {
        /// Over IPv6.
        v6: bool,
    },
    /// A Unix stream.
    UnixStream,
    /// Other datagram sockets, netlink and all others.
    Other,
}

/// The kind of a socket.
///
/// # Errors
/// ENOTSOCK.
pub fn kind(fd: BorrowedFd<'_>) -> io::Result<Kind> {
    let protocol = sockopt::socket_protocol(fd)?.map_or(0, |protocol| protocol.as_raw().get()).cast_signed();
    let v6 = match sockopt::socket_domain(fd)? {
        AddressFamily::INET => false,
        AddressFamily::INET6 => true,
        AddressFamily::UNIX if sockopt::socket_type(fd)? == SocketType::STREAM => {
            return Ok(Kind::UnixStream);
        }
        _other => return Ok(Kind::Other),
    };
    Ok(match (sockopt::socket_type(fd)?, protocol) {
        (SocketType::STREAM, libc::IPPROTO_TCP) => Kind::Tcp { v6, multipath: false },
        (SocketType::STREAM, libc::IPPROTO_MPTCP) => Kind::Tcp { v6, multipath: true },
        (SocketType::DGRAM, libc::IPPROTO_UDP) => Kind::Udp { v6 },
        _other => Kind::Other,
    })
}

/// Allows other sockets of the same user that have set this option, too, to bind the same address: socket(7).
///
/// # Errors
/// EOPNOTSUPP for families other than IP.
pub fn set_reuseport(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(sockopt::set_socket_reuseport(fd, true)?)
}

/// Whether `SO_REUSEADDR` is set: socket(7).
pub fn is_reuseaddr(fd: BorrowedFd<'_>) -> bool {
    sockopt::socket_reuseaddr(fd).unwrap_or(false)
}

/// An unbound TCP socket.
///
/// # Errors
/// Those of socket(2).
pub fn new_tcp(v6: bool) -> io::Result<OwnedFd> {
    let family = if v6 { AddressFamily::INET6 } else { AddressFamily::INET };
    Ok(socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

/// Binds a socket to an IP address with the supervisor's rights.
///
/// # Errors
/// Those of bind(2).
pub fn bind_to(fd: BorrowedFd<'_>, address: SocketAddr) -> io::Result<()> {
    Ok(rustix::net::bind(fd, &address)?)
}

/// The index of the interface that a socket is bound to; 0 if none.
pub fn interface(fd: BorrowedFd<'_>) -> u32 {
    /// Linux 5.7. Before, the name of the device shows only that there is one.
    const SO_BINDTOIFINDEX: libc::c_int = 62;
    let number = option(fd, libc::SOL_SOCKET, SO_BINDTOIFINDEX);
    let number = number.and_then(|bytes| bytes.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes)));
    number.unwrap_or_else(|| if is_bound_to_device(fd) { u32::MAX } else { 0 })
}

/// Whether `SO_REUSEPORT` is set, so the program intends to bind an address more than once.
pub fn is_reuseport(fd: BorrowedFd<'_>) -> bool {
    sockopt::socket_reuseport(fd).unwrap_or(false)
}

/// Whether a socket is bound to a device, which makes its address a different one.
fn is_bound_to_device(fd: BorrowedFd<'_>) -> bool {
    option(fd, libc::SOL_SOCKET, libc::SO_BINDTODEVICE).is_some_and(|name| !name.is_empty())
}

/// Whether a TCP socket is neither connected nor listening.
pub fn is_closed(fd: BorrowedFd<'_>) -> bool {
    /// The first byte of `TCP_INFO` is the state; this is TCP_CLOSE of `<net/tcp_states.h>`.
    const CLOSE: u8 = 7;
    option(fd, libc::IPPROTO_TCP, libc::TCP_INFO).is_none_or(|info| info.first() == Some(&CLOSE))
}

/// Closes a duplicate of another process's socket, which can be its last descriptor.
///
/// A listener or an unconnected socket is closed before this returns, so the other process finds the same state as
/// without the duplicate. The last close of a connection can block, so a thread closes it.
pub fn close_copy(copy: OwnedFd) {
    if is_closed(copy.as_fd()) || is_listening(copy.as_fd()) {
        return drop(copy);
    }
    close_async(copy);
}

/// Whether both directions of a socket are shut down: POLLHUP of poll(2). A Unix socket still counts as listening then.
pub fn is_shut_down(fd: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::new(&fd, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut polled, Some(&now)).is_ok() && polled[0].revents().contains(PollFlags::HUP)
}

/// Whether a socket listens.
pub fn is_listening(fd: BorrowedFd<'_>) -> bool {
    sockopt::socket_acceptconn(fd).unwrap_or(false)
}

/// Whether a socket has an address.
pub fn is_bound(fd: BorrowedFd<'_>) -> bool {
    let Ok(name) = rustix::net::getsockname(fd) else { return false };
    let port = SocketAddr::try_from(name.clone()).map(|address| address.port());
    let unix = SocketAddrUnix::try_from(name);
    let named = |address: SocketAddrUnix| {
        let path = address.path_bytes().is_some_and(|path| !path.is_empty());
        path || address.abstract_name().is_some_and(|name| !name.is_empty())
    };
    port.is_ok_and(|port| port != 0) || unix.is_ok_and(named)
}

/// The inode number of a socket.
///
/// # Errors
/// None for an open descriptor.
pub fn inode(fd: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(rustix::fs::fstat(fd)?.st_ino)
}

/// The user that made a socket, or to which fchown(2) gave it; `None` if it is not open.
pub fn owner(fd: BorrowedFd<'_>) -> Option<u32> {
    rustix::fs::fstat(fd).ok().map(|stat| stat.st_uid)
}

/// Sets `O_NONBLOCK` on the open file description of a socket.
///
/// # Errors
/// None for an open descriptor.
pub fn set_nonblocking(fd: BorrowedFd<'_>, nonblocking: bool) -> io::Result<()> {
    let mut flags = rustix::fs::fcntl_getfl(fd)?;
    flags.set(rustix::fs::OFlags::NONBLOCK, nonblocking);
    Ok(rustix::fs::fcntl_setfl(fd, flags)?)
}

fn unix_socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

/// A short path to a file in an open directory. A socket address has room for 107 bytes, and the directory cannot be
/// exchanged between two lookups.
fn in_dir(dir: BorrowedFd<'_>, name: &OsStr) -> std::path::PathBuf {
    Path::new("/proc/self/fd").join(dir.as_fd().as_raw_fd().to_string()).join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_bound_when_it_has_an_address_of_any_kind() {
        let unbound = unix_socket(SocketFlags::CLOEXEC).expect("a socket");
        assert!(!is_bound(unbound.as_fd()));
        let name =
            SocketAddrUnix::new_abstract_name(format!("master-process/{}", std::process::id()).as_bytes());
        rustix::net::bind(&unbound, &name.expect("it fits")).expect("bound");
        assert!(is_bound(unbound.as_fd()));
        let flags = SocketFlags::CLOEXEC;
        let unbound = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).expect("a socket");
        assert!(!is_bound(unbound.as_fd()));
        let bound = bind_tcp("127.0.0.1:0".parse().expect("an address"), Tcp::default()).expect("bound");
        assert!(is_bound(bound.as_fd()) && is_closed(bound.as_fd()));
        listen(bound.as_fd(), 1).expect("listening");
        assert!(!is_closed(bound.as_fd()));
    }
}
