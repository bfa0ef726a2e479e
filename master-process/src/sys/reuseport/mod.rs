//! Selection among the sockets that share an address: `SO_REUSEPORT`, socket(7).
//!
//! Sockets with the same address and the option `SO_REUSEPORT` form a group. The kernel gives a new connection or
//! datagram to one socket of the group, by a hash of the addresses or by a program of the group. There are two kinds of
//! programs:
//!
//! - [`attach_selector`], classic BPF: needs no privilege. It identifies members by their position in the group, and
//!   the kernel renumbers the group when a member closes. The connections in the queue of a listener that closes are
//!   reset, unless [`migrates_without_program`].
//! - [`Selector`], eBPF: needs `CAP_BPF` (or `CAP_SYS_ADMIN`) and Linux 5.14. It identifies members by an index that
//!   the caller chooses, and moves the queue of a listener that closes to the remaining targets.
//!
//! Observed behaviour of groups on Linux 6.18:
//!
//! - A socket can join if the bound sockets have `SO_REUSEPORT` at that time and belong to the same user. They may have
//!   set the option after their bind. The user is the one that created the socket (or that fchown(2) set), not the one
//!   that binds it. If the option is set before `listen`, the group exists at once. If it is set later, the group
//!   starts with the second listener. The first listener has position 0 in both cases.
//! - `0.0.0.0` and `::` with the same port are two groups, each with its own program. IPv4 connections go to the first
//!   one as long as it has a listener.
//! - The last listener takes the position of a listener that is closed or shut down. A group and its program end with
//!   its last listener. The remaining half-open connections are reset and do not prevent a new bind.

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

/// How connections or datagrams are distributed over the targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spread {
    /// Each one goes to a random target. For TCP, where the program runs once for each connection.
    Random,
    /// All datagrams from one source address and port go to the same target, as long as the targets do not change. For
    /// UDP, where the program runs for each datagram.
    Flow,
}

/// The setting for migration without a program; ip-sysctl.rst.
const MIGRATE_REQ: &str = "/proc/sys/net/ipv4/tcp_migrate_req";

/// Whether the kernel is configured to move the queue of a TCP listener that closes to another member of its group,
/// whatever its program: `net.ipv4.tcp_migrate_req`, of the caller's network namespace. Kernels before 5.14 lack the
/// setting or ignore it, so [`migrates_without_program`] tries it.
///
/// # Errors
/// Those of reading the file, except that it does not exist.
pub fn is_migration_enabled() -> io::Result<bool> {
    match std::fs::read_to_string(MIGRATE_REQ) {
        Ok(value) => Ok(value.trim() != "0"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The time limit for a connection over loopback, which takes microseconds if it works.
const PROBE: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// Whether the kernel moves the queue of a TCP listener that closes without a program. If it is configured to, this
/// moves one connection over loopback to verify it: Linux 5.10.223 has the setting and ignores it.
///
/// This takes a few system calls and less than a millisecond; if loopback is filtered, up to 0.4 seconds.
///
/// # Errors
/// Those of [`is_migration_enabled`] and of creating the sockets; TimedOut if the connection does not arrive.
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
    let mut polled = [PollFd::new(listener, PollFlags::IN)];
    Ok(poll(&mut polled, Some(&timeout))? > 0)
}
