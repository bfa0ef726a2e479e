//! Socket options: copied from a worker's socket to ours, and read.

use std::os::fd::{AsRawFd, BorrowedFd};

/// Options that a program sets before `bind` and that accepted connections inherit, or that change what `bind` allows.
/// The list leaves out options that the supervisor sets on its sockets for its own reasons.
const COPIED: [(libc::c_int, libc::c_int); 29] = [
    (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
    (libc::SOL_SOCKET, libc::SO_LINGER),
    (libc::SOL_SOCKET, libc::SO_OOBINLINE),
    (libc::SOL_SOCKET, libc::SO_PASSCRED),
    (libc::SOL_SOCKET, libc::SO_PRIORITY),
    (libc::SOL_SOCKET, libc::SO_MARK),
    (libc::SOL_SOCKET, libc::SO_RCVLOWAT),
    (libc::SOL_SOCKET, libc::SO_RCVTIMEO),
    (libc::SOL_SOCKET, libc::SO_SNDTIMEO),
    (libc::SOL_SOCKET, libc::SO_BUSY_POLL),
    (libc::SOL_SOCKET, libc::SO_TIMESTAMP),
    (libc::IPPROTO_TCP, libc::TCP_NODELAY),
    (libc::IPPROTO_TCP, libc::TCP_MAXSEG),
    (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE),
    (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL),
    (libc::IPPROTO_TCP, libc::TCP_KEEPCNT),
    (libc::IPPROTO_TCP, libc::TCP_SYNCNT),
    (libc::IPPROTO_TCP, libc::TCP_LINGER2),
    (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT),
    (libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP),
    (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
    (libc::IPPROTO_TCP, libc::TCP_FASTOPEN),
    (libc::IPPROTO_TCP, libc::TCP_CONGESTION),
    (libc::IPPROTO_IP, libc::IP_TOS),
    (libc::IPPROTO_IP, libc::IP_TTL),
    (libc::IPPROTO_IP, libc::IP_FREEBIND),
    (libc::IPPROTO_IP, libc::IP_TRANSPARENT),
    (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
    (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS),
];

/// Sets the options of `to` that differ on `from`. If an option cannot be set, it keeps its value: the worker's own
/// call has already succeeded.
pub fn copy_options(from: BorrowedFd<'_>, to: BorrowedFd<'_>) {
    for (level, name) in COPIED {
        if let Some(theirs) = option(from, level, name)
            && Some(&theirs) != option(to, level, name).as_ref()
        {
            set_option(to, level, name, &theirs);
        }
    }
    // The kernel doubles these values when they are set, and stops tuning them. So they are copied only if the worker
    // changed them.
    for name in [libc::SO_RCVBUF, libc::SO_SNDBUF] {
        let theirs = option(from, libc::SOL_SOCKET, name);
        if let Some(theirs) =
            theirs.filter(|theirs| Some(theirs) != option(to, libc::SOL_SOCKET, name).as_ref())
            && let Some(doubled) = theirs.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes))
        {
            set_option(to, libc::SOL_SOCKET, name, &(doubled / 2).to_ne_bytes());
        }
    }
}

/// Lets a socket bind an address that still has connections of an earlier listener in TIME_WAIT.
///
/// # Errors
/// None for an open socket.
pub fn set_reuseaddr(fd: BorrowedFd<'_>) -> std::io::Result<()> {
    Ok(rustix::net::sockopt::set_socket_reuseaddr(fd, true)?)
}

/// Sets whether an IPv6 socket accepts IPv6 only.
///
/// # Errors
/// EINVAL if the socket is bound.
pub fn set_v6only(fd: BorrowedFd<'_>, on: bool) -> std::io::Result<()> {
    Ok(rustix::net::sockopt::set_ipv6_v6only(fd, on)?)
}

/// The value of an option, at most 64 bytes of it.
pub(in crate::sys) fn option(fd: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int) -> Option<Vec<u8>> {
    let mut value = [0u8; 64];
    read_option(fd, level, name, &mut value).map(<[u8]>::to_vec)
}

/// Reads an option into a buffer, and returns what the kernel has written. For some options the kernel refuses a buffer
/// of another length than theirs.
pub(in crate::sys) fn read_option<'a>(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: &'a mut [u8],
) -> Option<&'a [u8]> {
    let mut length = libc::socklen_t::try_from(value.len()).ok()?;
    // SAFETY: the kernel writes at most `length` bytes, the size of `value`, which outlives the call.
    let result =
        unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &mut length) };
    (result == 0).then(|| &value[..value.len().min(length as usize)])
}

/// Sets an option; errors are ignored.
pub(in crate::sys) fn set_option(fd: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: &[u8]) {
    let length = libc::socklen_t::try_from(value.len()).unwrap_or(0);
    // SAFETY: the kernel reads `length` bytes, the size of `value`, which outlives the call.
    unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, value.as_ptr().cast(), length) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with, sockopt};
    use std::os::fd::{AsFd, OwnedFd};

    #[test]
    fn options_are_copied_where_they_differ() {
        let flags = SocketFlags::CLOEXEC;
        let new = || socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).expect("a socket");
        let (from, to) = (new(), new());
        sockopt::set_tcp_nodelay(&from, true).expect("set");
        sockopt::set_socket_linger(&from, Some(std::time::Duration::from_secs(3))).expect("set");
        sockopt::set_socket_recv_buffer_size(&from, 30_000).expect("set");
        copy_options(from.as_fd(), to.as_fd());
        assert!(sockopt::tcp_nodelay(&to).expect("read"));
        assert_eq!(sockopt::socket_linger(&to).expect("read"), Some(std::time::Duration::from_secs(3)));
        let size = |fd: &OwnedFd| sockopt::socket_recv_buffer_size(fd).expect("read");
        assert_eq!(size(&to), size(&from));
        assert_ne!(size(&to), size(&new()));
    }
}
