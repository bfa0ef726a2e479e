//! Listening sockets of our own.

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

/// The queue of sockets whose backlog nobody has named; the kernel cuts it to `net.core.somaxconn`.
pub const LONGEST_QUEUE: i32 = 4096;

/// How a TCP socket is made.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tcp {
    /// Whether an IPv6 socket leaves IPv4 to others.
    pub v6only: bool,
    /// Whether it is one of several that the kernel chooses among.
    pub reuseport: bool,
}

/// A TCP socket bound to `addr`, not listening yet.
///
/// # Errors
/// Those of socket(2) and bind(2), above all EADDRINUSE, EADDRNOTAVAIL and EACCES.
pub fn bind_tcp(addr: SocketAddr, how: Tcp) -> io::Result<OwnedFd> {
    let family = if addr.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let fd = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // A restart must not wait for connections of the last run that linger in TIME_WAIT.
    sockopt::set_socket_reuseaddr(&fd, true)?;
    sockopt::set_socket_reuseport(&fd, how.reuseport)?;
    if addr.is_ipv6() {
        sockopt::set_ipv6_v6only(&fd, how.v6only)?;
    }
    rustix::net::bind(&fd, &addr)?;
    Ok(fd)
}

/// Whether a read or an accept would not wait.
pub fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let mut wish = [PollFd::new(&fd, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut wish, Some(&now)).is_ok_and(|ready| ready > 0)
}

/// How many connections wait in a TCP listener's queue: `tcpi_unacked` of tcp(7)'s `TCP_INFO` counts them.
pub fn waiting(fd: BorrowedFd<'_>) -> u32 {
    /// Eight bytes of states, then 32-bit numbers, of which this is the fifth: `<linux/tcp.h>`.
    const UNACKED_AT: usize = 24;
    let info = option(fd, libc::IPPROTO_TCP, libc::TCP_INFO).unwrap_or_default();
    info.get(UNACKED_AT..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

/// Ends a listener: who waits in its queue is told so, and whoever waits in `accept` on it wakes up.
pub fn shut_down(fd: BorrowedFd<'_>) {
    let _not_listening = rustix::net::shutdown(fd, rustix::net::Shutdown::Both);
}

/// A Unix stream socket, not bound yet.
///
/// # Errors
/// Those of socket(2).
pub fn new_unix() -> io::Result<OwnedFd> {
    unix_socket(SocketFlags::CLOEXEC)
}

/// Binds a Unix socket to `name` in the directory `dir`, its file with these permission bits from its first moment.
/// `shown` is a path to the same place, where there is one: peers see it as the socket's address.
///
/// # Errors
/// Those of bind(2), above all EADDRINUSE, EACCES and ENAMETOOLONG.
pub fn bind_unix(
    fd: BorrowedFd<'_>,
    dir: BorrowedFd<'_>,
    name: &OsStr,
    shown: Option<&Path>,
    mode: u32,
) -> io::Result<()> {
    // The file gets the mode of the unbound socket, less the umask (unix_bind_bsd, net/unix/af_unix.c). To set
    // it afterwards, by name, would be to trust that nobody has put something else there.
    rustix::fs::fchmod(fd, Mode::from_raw_mode(mode))?;
    let fitting = shown.and_then(|shown| SocketAddrUnix::new(shown).ok());
    let address = fitting.map_or_else(|| SocketAddrUnix::new(in_dir(dir, name)), Ok)?;
    let umask = rustix::process::umask(Mode::empty());
    let bound = rustix::net::bind(fd, &address);
    rustix::process::umask(umask);
    Ok(bound?)
}

/// What a connection to a socket file comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answers {
    /// The file is surely dead, or gone.
    No,
    /// Somebody answers, or may: only a socket that is surely dead may be removed. The process that has called `listen`
    /// there, where that is known and of our PID namespace; it may be gone by now.
    Yes(Option<Pid>),
}

/// Whether anybody answers on the socket file `name` in `dir`. What cannot be known counts as yes.
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

/// Whether somebody has an IP address so that it cannot be bound: tried, with a socket that is closed at once. `false`
/// where that cannot be told. What is bound without listening is not in the way of a TCP socket with `SO_REUSEADDR`.
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

/// Gives the socket file `name` to somebody, as far as given. Whatever stands there by now that is not a socket
/// of `creator` with one name is left alone.
///
/// # Errors
/// EPERM where we may not, and where something else stands there.
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

/// Gives the socket file `name` these permission bits, with the same care as [`set_owner`].
///
/// # Errors
/// As [`set_owner`].
pub fn set_mode(dir: BorrowedFd<'_>, name: &OsStr, creator: u32, mode: u32) -> io::Result<()> {
    let file = open_socket_file(dir, name, creator)?;
    // fchmod(2) refuses such a handle; its path leads to what it is a handle of and nowhere else.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(rustix::fs::chmod(path, Mode::from_raw_mode(mode))?)
}

/// A handle on a socket file of one name that `creator` owns, and on nothing else.
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

/// Starts or widens a queue for connections.
///
/// # Errors
/// EADDRINUSE where another socket listens there already; see listen(2).
pub fn listen(fd: BorrowedFd<'_>, backlog: i32) -> io::Result<()> {
    Ok(rustix::net::listen(fd, backlog)?)
}

/// The IP address that a socket is bound to; `None` where it is no such socket, or has no port yet.
pub fn inet_address(fd: BorrowedFd<'_>) -> Option<SocketAddr> {
    SocketAddr::try_from(rustix::net::getsockname(fd).ok()?).ok().filter(|address| address.port() != 0)
}

/// The path that a Unix stream socket is bound to; `None` for every other kind.
pub fn unix_path(fd: BorrowedFd<'_>) -> Option<std::path::PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    if sockopt::socket_type(fd).ok()? != SocketType::STREAM {
        return None;
    }
    let bound = SocketAddrUnix::try_from(rustix::net::getsockname(fd).ok()?).ok()?;
    Some(Path::new(OsStr::from_bytes(bound.path_bytes()?)).to_owned())
}

/// The abstract name that a Unix stream socket is bound to, without its leading zero; `None` for every other kind.
pub fn abstract_name(fd: BorrowedFd<'_>) -> Option<Vec<u8>> {
    if sockopt::socket_type(fd).ok()? != SocketType::STREAM {
        return None;
    }
    let bound = SocketAddrUnix::try_from(rustix::net::getsockname(fd).ok()?).ok()?;
    bound.abstract_name().map(<[u8]>::to_vec)
}

/// Whether an IPv6 socket leaves IPv4 to others.
pub fn is_v6only(fd: BorrowedFd<'_>) -> bool {
    sockopt::ipv6_v6only(fd).unwrap_or(false)
}

/// What kind of socket a descriptor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// TCP, of IPv6 where that is said.
    Tcp {
        /// Over IPv6.
        v6: bool,
        /// It asked for MPTCP.
        multipath: bool,
    },
    /// UDP.
    Udp {
        /// Over IPv6.
        v6: bool,
    },
    /// A Unix stream.
    UnixStream,
    /// Other datagrams, netlink and the rest.
    Other,
}

/// What kind of socket this is.
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

/// Lets other sockets of the same user bind the same address, where they have asked for it as well: socket(7).
///
/// # Errors
/// EOPNOTSUPP for other families than IP.
pub fn set_reuseport(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(sockopt::set_socket_reuseport(fd, true)?)
}

/// Whether a socket may be bound beside others: socket(7).
pub fn is_reuseaddr(fd: BorrowedFd<'_>) -> bool {
    sockopt::socket_reuseaddr(fd).unwrap_or(false)
}

/// A TCP socket that is to stand in the place of a worker's.
///
/// # Errors
/// Those of socket(2).
pub fn new_tcp(v6: bool) -> io::Result<OwnedFd> {
    let family = if v6 { AddressFamily::INET6 } else { AddressFamily::INET };
    Ok(socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

/// Binds a socket to an IP address, with our own rights.
///
/// # Errors
/// Those of bind(2).
pub fn bind_to(fd: BorrowedFd<'_>, address: SocketAddr) -> io::Result<()> {
    Ok(rustix::net::bind(fd, &address)?)
}

/// The interface that a socket is bound to, by number; 0: none.
pub fn interface(fd: BorrowedFd<'_>) -> u32 {
    /// Linux 5.7; before, a name tells only that there is one.
    const SO_BINDTOIFINDEX: libc::c_int = 62;
    let number = option(fd, libc::SOL_SOCKET, SO_BINDTOIFINDEX);
    let number = number.and_then(|bytes| bytes.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes)));
    number.unwrap_or_else(|| if is_bound_to_device(fd) { u32::MAX } else { 0 })
}

/// Whether `SO_REUSEPORT` is set: then binding an address twice is meant.
pub fn is_reuseport(fd: BorrowedFd<'_>) -> bool {
    sockopt::socket_reuseport(fd).unwrap_or(false)
}

/// Whether a socket is bound to a device: then its address means something else than another's.
fn is_bound_to_device(fd: BorrowedFd<'_>) -> bool {
    option(fd, libc::SOL_SOCKET, libc::SO_BINDTODEVICE).is_some_and(|name| !name.is_empty())
}

/// Whether a TCP socket is neither connected nor listening.
pub fn is_closed(fd: BorrowedFd<'_>) -> bool {
    /// The first byte of `TCP_INFO` is the state; TCP_CLOSE in `<net/tcp_states.h>`.
    const CLOSE: u8 = 7;
    option(fd, libc::IPPROTO_TCP, libc::TCP_INFO).is_none_or(|info| info.first() == Some(&CLOSE))
}

/// Closes a copy of another process's socket, which may be the last one. It is closed when this returns, so that the
/// other process finds what it would find without the copy; a connection, whose last close may wait for its peer, is
/// closed in a thread of its own.
pub fn close_copy(copy: OwnedFd) {
    if is_closed(copy.as_fd()) || is_listening(copy.as_fd()) {
        return drop(copy);
    }
    close_async(copy);
}

/// Whether a socket listens.
pub fn is_listening(fd: BorrowedFd<'_>) -> bool {
    sockopt::socket_acceptconn(fd).unwrap_or(false)
}

/// Whether a socket has an address already.
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

/// Makes calls on a socket's open file description wait, or not.
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

/// A short path to a file in an open directory: a socket's address has room for 107 bytes only, and the
/// directory cannot be exchanged between two looks at it.
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
