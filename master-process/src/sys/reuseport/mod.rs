//! Selection among the sockets that share one address: `SO_REUSEPORT`, socket(7).
//!
//! Sockets of the same address, each with `SO_REUSEPORT`, form a group. The kernel gives a new connection, or a
//! datagram, to one of the group: by a hash of the addresses, or as a program of the group decides. There are two
//! kinds of program:
//!
//! - [`attach_selector`], classic BPF: needs no privilege. It names members by their position in the group, and the
//!   kernel renumbers the group when a member closes. What waits in the queue of a listener that closes is reset,
//!   unless [`migrates_without_program`].
//! - [`Selector`], eBPF: needs `CAP_BPF` (or `CAP_SYS_ADMIN`) and Linux 5.14. It names members by an index that the
//!   caller chooses, and moves the queue of a listener that closes to the remaining targets.
//!
//! What was tried of groups, on Linux 6.18:
//!
//! - A socket joins if the ones that are bound have `SO_REUSEPORT` by then and were made by the same user: their own
//!   may have been set after their bind, and the user is the one that made the socket (or that fchown(2) gave it), not
//!   the one that binds. Set before `listen`, it makes a group at once; set after it, the group begins
//!   with the second listener. The first one has position 0 in both cases.
//! - `0.0.0.0` and `::` of one port are two groups, each with a program of its own. IPv4 connections go to the first,
//!   for as long as it has a listener.
//! - A listener that is closed or shut down leaves its position to the last one. The group ends with its last listener,
//!   and its program with it; half-open connections that are left are reset, and are in nobody's way.

mod assembler;
mod classic;
mod selector;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{Ipv4Addr, TcpListener};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::sockets::{Tcp, bind_tcp};

pub use classic::attach_selector;
pub use selector::{MAX_CAPACITY, Selector};

/// How connections or datagrams are spread over the targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spread {
    /// Each one goes to a random target: for TCP, where it is asked once a connection.
    Random,
    /// All of one source address and port go to the same target, as long as the targets are the same: for UDP, where
    /// it is asked for every datagram.
    Flow,
}

/// Where the kernel tells whether it migrates queues without a program; ip-sysctl.rst.
const MIGRATE_REQ: &str = "/proc/sys/net/ipv4/tcp_migrate_req";

/// Whether the kernel is told to move what waits in the queue of a TCP listener that closes to another member of its
/// group, whatever its program: `net.ipv4.tcp_migrate_req`, of the caller's network namespace. Kernels before 5.14 lack
/// the setting, or have it without effect: [`migrates_without_program`] tries it.
///
/// # Errors
/// Those of reading the file, other than that it does not exist.
pub fn is_migration_enabled() -> io::Result<bool> {
    match std::fs::read_to_string(MIGRATE_REQ) {
        Ok(value) => Ok(value.trim() != "0"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// How long a connection of the loopback device may take: it takes microseconds where anything comes of it.
const PROBE: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// Whether the kernel moves the queue of a TCP listener that closes without a program that says where to: where it is
/// told to, one connection of the loopback device is moved to see. Linux 5.10.223 has the setting, but not what it
/// sets.
///
/// Takes a few system calls and less than a millisecond; where loopback is filtered, up to 0.4 seconds.
///
/// # Errors
/// Those of [`is_migration_enabled`] and of making the sockets; TimedOut where the connection does not come.
pub fn migrates_without_program() -> io::Result<bool> {
    if !is_migration_enabled()? {
        return Ok(false);
    }
    let listener = |port| {
        let fd = bind_tcp((Ipv4Addr::LOCALHOST, port).into(), Tcp { reuseport: true, ..Tcp::default() })?;
        rustix::net::listen(&fd, 1)?;
        io::Result::Ok(TcpListener::from(fd))
    };
    let closing = listener(0)?;
    let address = closing.local_addr()?;
    let client = socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    match rustix::net::connect(&client, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    if !is_readable_within(&closing, PROBE)? {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let remaining = listener(address.port())?;
    drop(closing);
    is_readable_within(&remaining, PROBE)
}

fn is_readable_within(listener: &TcpListener, timeout: Timespec) -> io::Result<bool> {
    let mut wish = [PollFd::new(listener, PollFlags::IN)];
    Ok(poll(&mut wish, Some(&timeout))? > 0)
}
