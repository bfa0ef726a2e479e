//! Listening sockets of our own.

use std::ffi::OsStr;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, Gid, Mode, Uid};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with, sockopt};

use super::peer::FsIdentity;

/// The queue of sockets whose backlog nobody has named; the kernel cuts it to `net.core.somaxconn`.
pub const LONGEST_QUEUE: i32 = 4096;

/// How a TCP socket is made.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tcp<'a> {
    /// Whether an IPv6 socket leaves IPv4 to others.
    pub v6only: bool,
    /// Whether it is one of several that the kernel chooses among.
    pub reuseport: bool,
    /// A socket whose options it is to have.
    pub model: Option<BorrowedFd<'a>>,
}

/// A TCP socket bound to `addr`, not listening yet.
///
/// # Errors
/// Those of socket(2) and bind(2), above all EADDRINUSE, EADDRNOTAVAIL and EACCES.
pub fn bind_tcp(addr: SocketAddr, how: Tcp<'_>) -> io::Result<OwnedFd> {
    let family = if addr.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let fd = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // A restart must not wait for connections of the last run that linger in TIME_WAIT.
    sockopt::set_socket_reuseaddr(&fd, true)?;
    sockopt::set_socket_reuseport(&fd, how.reuseport)?;
    if addr.is_ipv6() {
        sockopt::set_ipv6_v6only(&fd, how.v6only)?;
    }
    if let Some(model) = how.model {
        copy_options(model, fd.as_fd());
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
    let mut info = [0u8; UNACKED_AT + 4];
    let mut length = libc::socklen_t::try_from(info.len()).unwrap_or(0);
    // SAFETY: the kernel writes at most `length` bytes, the size of `info`, which outlives the call.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &mut length,
        )
    };
    let [.., a, b, c, d] = info;
    if result == 0 { u32::from_ne_bytes([a, b, c, d]) } else { 0 }
}

/// A Unix stream socket bound to an abstract name, not listening yet.
///
/// # Errors
/// Those of socket(2) and bind(2).
pub fn bind_abstract(name: &[u8]) -> io::Result<OwnedFd> {
    let fd = unix_socket(SocketFlags::CLOEXEC)?;
    rustix::net::bind(&fd, &SocketAddrUnix::new_abstract_name(name)?)?;
    Ok(fd)
}

/// A Unix stream socket bound to `name` in the directory `dir`, not listening yet; where `identity` is given,
/// created as that user, with the rights that it has and no more. `shown` is a path to the same place, where
/// there is one: peers see it as the socket's address.
///
/// # Errors
/// Those of socket(2) and bind(2), above all EADDRINUSE, EACCES and ENAMETOOLONG.
pub fn bind_unix(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    shown: Option<&Path>,
    identity: Option<FsIdentity>,
) -> io::Result<OwnedFd> {
    let fd = unix_socket(SocketFlags::CLOEXEC)?;
    let fitting = shown.and_then(|shown| SocketAddrUnix::new(shown).ok());
    let address = fitting.map_or_else(|| SocketAddrUnix::new(in_dir(dir, name)), Ok)?;
    match identity {
        None => rustix::net::bind(&fd, &address)?,
        Some(identity) => as_user(identity, || rustix::net::bind(&fd, &address))?,
    }
    Ok(fd)
}

/// Whether anybody answers on the socket file `name` in `dir`. What cannot be known counts as yes: only a
/// socket that is surely dead may be removed.
pub fn is_answered(dir: BorrowedFd<'_>, name: &OsStr) -> bool {
    let connect = || -> io::Result<()> {
        let fd = unix_socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
        Ok(rustix::net::connect(&fd, &SocketAddrUnix::new(in_dir(dir, name))?)?)
    };
    match connect() {
        Ok(()) => true,
        Err(error) => !matches!(error.raw_os_error(), Some(libc::ECONNREFUSED | libc::ENOENT)),
    }
}

/// Sets the permission bits and, as far as given, the owner of a file.
///
/// # Errors
/// EPERM where we may not.
pub fn set_access(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    mode: u32,
    uid: Option<u32>,
    gid: Option<u32>,
) -> io::Result<()> {
    if uid.is_some() || gid.is_some() {
        let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        rustix::fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    rustix::fs::chmodat(dir, name, Mode::from_raw_mode(mode), AtFlags::empty())?;
    Ok(())
}

/// Starts or widens a queue for connections.
///
/// # Errors
/// EADDRINUSE where another socket listens there already; see listen(2).
pub fn listen(fd: BorrowedFd<'_>, backlog: i32) -> io::Result<()> {
    Ok(rustix::net::listen(fd, backlog)?)
}

/// The address that a TCP socket is bound to; `None` for every other kind.
pub fn tcp_address(fd: BorrowedFd<'_>) -> Option<SocketAddr> {
    if sockopt::socket_type(fd).ok()? != SocketType::STREAM {
        return None;
    }
    SocketAddr::try_from(rustix::net::getsockname(fd).ok()?).ok()
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

/// Whether an IPv6 socket leaves IPv4 to others.
pub fn is_v6only(fd: BorrowedFd<'_>) -> bool {
    sockopt::ipv6_v6only(fd).unwrap_or(false)
}

/// What kind of socket a descriptor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// TCP or MPTCP over IPv4.
    Inet,
    /// TCP or MPTCP over IPv6.
    Inet6,
    /// A Unix stream.
    UnixStream,
    /// Datagrams, netlink and whatever else: none of our business.
    Other,
}

/// What kind of socket this is.
///
/// # Errors
/// ENOTSOCK.
pub fn kind(fd: BorrowedFd<'_>) -> io::Result<Kind> {
    if sockopt::socket_type(fd)? != SocketType::STREAM {
        return Ok(Kind::Other);
    }
    let protocol = sockopt::socket_protocol(fd)?.map_or(0, |protocol| protocol.as_raw().get());
    let tcp = [libc::IPPROTO_TCP, libc::IPPROTO_MPTCP].contains(&protocol.cast_signed());
    Ok(match sockopt::socket_domain(fd)? {
        AddressFamily::INET if tcp => Kind::Inet,
        AddressFamily::INET6 if tcp => Kind::Inet6,
        AddressFamily::UNIX => Kind::UnixStream,
        _other => Kind::Other,
    })
}

/// Whether `SO_REUSEPORT` is set: then binding an address twice is meant.
pub fn is_reuseport(fd: BorrowedFd<'_>) -> bool {
    sockopt::socket_reuseport(fd).unwrap_or(false)
}

/// Options that a program sets before `bind` and accepted connections inherit, or that change what `bind`
/// itself allows. Those that a socket of ours has a reason of its own for are not among them.
const COPIED: [(libc::c_int, libc::c_int); 21] = [
    (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
    (libc::SOL_SOCKET, libc::SO_PRIORITY),
    (libc::SOL_SOCKET, libc::SO_MARK),
    (libc::SOL_SOCKET, libc::SO_RCVLOWAT),
    (libc::SOL_SOCKET, libc::SO_BUSY_POLL),
    (libc::IPPROTO_TCP, libc::TCP_NODELAY),
    (libc::IPPROTO_TCP, libc::TCP_MAXSEG),
    (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE),
    (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL),
    (libc::IPPROTO_TCP, libc::TCP_KEEPCNT),
    (libc::IPPROTO_TCP, libc::TCP_SYNCNT),
    (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT),
    (libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP),
    (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
    (libc::IPPROTO_TCP, libc::TCP_FASTOPEN),
    (libc::IPPROTO_IP, libc::IP_TOS),
    (libc::IPPROTO_IP, libc::IP_TTL),
    (libc::IPPROTO_IP, libc::IP_FREEBIND),
    (libc::IPPROTO_IP, libc::IP_TRANSPARENT),
    (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
    (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS),
];

/// Gives `to` the options that were changed on `from`. An option that cannot be set stays as it is: the worker
/// has been told of its own success already.
pub fn copy_options(from: BorrowedFd<'_>, to: BorrowedFd<'_>) {
    for (level, name) in COPIED {
        if let (Some(theirs), Some(ours)) = (int_option(from, level, name), int_option(to, level, name))
            && theirs != ours
        {
            set_int_option(to, level, name, theirs);
        }
    }
    // The kernel doubles these as they are set, and stops tuning them: so only where they were changed.
    for name in [libc::SO_RCVBUF, libc::SO_SNDBUF] {
        let (theirs, ours) =
            (int_option(from, libc::SOL_SOCKET, name), int_option(to, libc::SOL_SOCKET, name));
        if let Some(theirs) = theirs.filter(|_| theirs != ours) {
            set_int_option(to, libc::SOL_SOCKET, name, theirs / 2);
        }
    }
}

fn int_option(fd: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int) -> Option<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut length = libc::socklen_t::try_from(size_of::<libc::c_int>()).ok()?;
    // SAFETY: the kernel writes at most `length` bytes, the size of `value`, which outlives the call.
    let result = unsafe {
        libc::getsockopt(fd.as_raw_fd(), level, name, std::ptr::from_mut(&mut value).cast(), &mut length)
    };
    (result == 0).then_some(value)
}

fn set_int_option(fd: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: libc::c_int) {
    let length = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or(4);
    // SAFETY: the kernel reads `length` bytes, the size of `value`, which outlives the call.
    unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, std::ptr::from_ref(&value).cast(), length) };
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

/// Runs `call` with the file-system rights of another user: ours come back before this returns.
fn as_user<T>(identity: FsIdentity, call: impl FnOnce() -> rustix::io::Result<T>) -> io::Result<T> {
    struct Restore(libc::c_int, libc::c_int);
    impl Drop for Restore {
        fn drop(&mut self) {
            set_fs_ids(self.0.cast_unsigned(), self.1.cast_unsigned());
        }
    }
    let (gid, uid) = set_fs_ids(identity.uid, identity.gid);
    let _restore = Restore(uid, gid);
    Ok(call()?)
}

/// Returns the group and user id that were in force.
fn set_fs_ids(uid: u32, gid: u32) -> (libc::c_int, libc::c_int) {
    // SAFETY: both calls change a number of this thread and touch no memory. They have no failure to report:
    // without the right to change, they change nothing, and the bind is then made as ourselves.
    unsafe { (libc::setfsgid(gid), libc::setfsuid(uid)) }
}
