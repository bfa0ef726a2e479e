//! The accept queue of a listening socket: its length, its limit, and what was dropped because of it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};

use super::socket_options::read_option;
use super::sockets::new_unix;

/// `SO_MEMINFO` and `SO_NETNS_COOKIE` of `<asm-generic/socket.h>`; Linux 4.12 and 5.14.
const SO_MEMINFO: libc::c_int = 55;
const SO_NETNS_COOKIE: libc::c_int = 71;

/// The position of `SK_MEMINFO_DROPS` among the 32-bit numbers of `SO_MEMINFO`; `<linux/sock_diag.h>`.
const MEMINFO_DROPS: usize = 8;

/// The positions of `tcpi_unacked` and `tcpi_sacked` in `TCP_INFO`. The structure has eight bytes of states and then
/// 32-bit numbers, of which these are the fifth and the sixth; `<linux/tcp.h>`.
const UNACKED_AT: usize = 24;
const SACKED_AT: usize = 28;

/// An accept queue at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AcceptQueue {
    /// The number of connections that wait for `accept`.
    pub length: u32,
    /// The limit: the backlog that was passed to `listen`, or `net.core.somaxconn` at that time if that was less;
    /// listen(2).
    pub limit: u32,
}

impl AcceptQueue {
    /// Whether a further connection finds no room. A queue holds one connection more than its limit:
    /// `sk_acceptq_is_full` of `<net/sock.h>` for TCP, `unix_recvq_full` of net/unix/af_unix.c for Unix sockets.
    #[must_use]
    pub fn is_full(self) -> bool {
        self.length > self.limit
    }

    /// Whether less of this queue is free, in proportion, than of another one.
    #[must_use]
    pub fn is_fuller_than(self, other: AcceptQueue) -> bool {
        let share = |one: AcceptQueue, of: AcceptQueue| u64::from(one.length) * (u64::from(of.limit) + 1);
        share(self, other) > share(other, self)
    }
}

/// The queue of a TCP listener; `None` for other sockets. For a listener, `tcpi_unacked` is the queue's length and
/// `tcpi_sacked` its limit: `tcp_get_info` of net/ipv4/tcp.c.
#[must_use]
pub fn of_tcp(fd: BorrowedFd<'_>) -> Option<AcceptQueue> {
    /// `TCP_LISTEN` of `<net/tcp_states.h>`.
    const LISTEN: u8 = 10;
    let mut info = [0; SACKED_AT + 4];
    let info = read_option(fd, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info)?;
    let number = |at: usize| info.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
    if info.first() != Some(&LISTEN) {
        return None;
    }
    Some(AcceptQueue { length: number(UNACKED_AT)?, limit: number(SACKED_AT)? })
}

/// The number of packets that a TCP listener has dropped since it was opened; it wraps around.
///
/// A connection request that finds the queue full is one (`tcp_listendrop` of `<net/tcp.h>`), and a client that repeats
/// its request counts again. Malformed packets count as well, so a drop alone does not show that the queue was full. Unix
/// sockets drop nothing.
#[must_use]
pub fn drops(fd: BorrowedFd<'_>) -> Option<u32> {
    let mut info = [0; (MEMINFO_DROPS + 1) * 4];
    let info = read_option(fd, libc::SOL_SOCKET, SO_MEMINFO, &mut info)?;
    info.get(MEMINFO_DROPS * 4..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

/// What all TCP listeners of our network namespace have dropped; `/proc/net/netstat`, proc_net(5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenCounters {
    /// `ListenOverflows`: how often there was no room in an accept queue.
    pub overflows: u64,
    /// `ListenDrops`: the same, and connection requests that were dropped for other reasons.
    pub drops: u64,
}

/// Reads the counters of all TCP listeners.
///
/// # Errors
/// Those of reading the file; it has no such counters.
pub fn listen_counters() -> io::Result<ListenCounters> {
    let mut text = String::with_capacity(NETSTAT);
    File::open("/proc/thread-self/net/netstat")?.read_to_string(&mut text)?;
    let read = |name| {
        counter(&text, "TcpExt:", name).ok_or_else(|| io::Error::other(format!("no {name} in netstat")))
    };
    Ok(ListenCounters { overflows: read("ListenOverflows")?, drops: read("ListenDrops")? })
}

/// More than the file has, so that two calls read it. Without room, the standard library reads 32 bytes first, and then as many
/// as it has.
const NETSTAT: usize = 16 * 1024;

/// The value of a counter. A line with names comes before a line with the values in the same order.
fn counter(text: &str, group: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter(|line| line.starts_with(group));
    let (names, values) = (lines.next()?, lines.next()?);
    let at = names.split_whitespace().position(|word| word == name)?;
    values.split_whitespace().nth(at)?.parse().ok()
}

/// The number of Unix sockets in our network namespace: `/proc/net/protocols`, which has one or two lines for them
/// (`UNIX`, and `UNIX-STREAM` since Linux 5.15).
///
/// # Errors
/// Those of reading the file.
pub fn count_unix_sockets() -> io::Result<usize> {
    let text = std::fs::read_to_string("/proc/thread-self/net/protocols")?;
    let count = |line: &str| {
        let mut fields = line.split_whitespace();
        let is_unix = fields.next().is_some_and(|name| name.starts_with("UNIX"));
        is_unix.then(|| fields.nth(1)?.parse::<usize>().ok()).flatten()
    };
    Ok(text.lines().filter_map(count).sum())
}

/// `net.core.somaxconn` of the network namespace of a socket; `None` if that is not ours or the value is unknown. A
/// process reads the value of its own namespace only. Before Linux 5.14 the namespace of a socket is not known, and
/// ours is assumed.
#[must_use]
pub fn somaxconn_of(fd: BorrowedFd<'_>) -> Option<u32> {
    if !is_in_our_network(fd) {
        return None;
    }
    std::fs::read_to_string("/proc/sys/net/core/somaxconn").ok()?.trim().parse().ok()
}

/// Whether a socket belongs to our network namespace. Before Linux 5.14 this is not known, and assumed.
#[must_use]
pub fn is_in_our_network(fd: BorrowedFd<'_>) -> bool {
    fn cookie(fd: BorrowedFd<'_>) -> Option<Vec<u8>> {
        let mut cookie = [0; 8];
        read_option(fd, libc::SOL_SOCKET, SO_NETNS_COOKIE, &mut cookie).map(<[u8]>::to_vec)
    }
    new_unix().is_ok_and(|ours| cookie(fd) == cookie(ours.as_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::os::fd::OwnedFd;

    use crate::sys::sockets;
    use master_process_tests::{TIMEOUT, eventually};
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

    fn listener(address: &str, backlog: i32) -> (TcpListener, SocketAddr) {
        let bound = sockets::bind_tcp(address.parse().expect("an address"), sockets::Tcp::default());
        let listener = TcpListener::from(bound.expect("bound"));
        sockets::listen(listener.as_fd(), backlog).expect("listening");
        let address = listener.local_addr().expect("it has one");
        (listener, address)
    }

    /// A connection that is requested and not awaited.
    fn request(address: SocketAddr) -> OwnedFd {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let fd = socket_with(family, SocketType::STREAM, flags, None).expect("a socket");
        let _in_progress = rustix::net::connect(&fd, &address);
        fd
    }

    #[test]
    fn a_tcp_queue_has_a_length_a_limit_and_drops_once_it_is_full() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (listener, address) = listener(address, 2);
            let fd = listener.as_fd();
            assert_eq!(of_tcp(fd), Some(AcceptQueue { length: 0, limit: 2 }));
            assert_eq!(drops(fd), Some(0));
            let before = listen_counters().expect("counted");
            let _clients: Vec<OwnedFd> = (0..3).map(|_| request(address)).collect();
            eventually(TIMEOUT, "one more than the limit is queued", || {
                of_tcp(fd).is_some_and(|queue| queue.length == 3)
            });
            assert!(of_tcp(fd).is_some_and(AcceptQueue::is_full));
            assert_eq!(drops(fd), Some(0), "all had room");
            let _further: Vec<OwnedFd> = (0..2).map(|_| request(address)).collect();
            eventually(TIMEOUT, "their requests are dropped", || drops(fd).is_some_and(|drops| drops >= 2));
            let after = listen_counters().expect("counted");
            assert!(after.overflows >= before.overflows + 2 && after.drops >= before.drops + 2, "{after:?}");
            assert_eq!(of_tcp(fd).map(|queue| queue.length), Some(3));
            let _accepted = listener.accept().expect("one is queued");
            assert!(!of_tcp(fd).is_some_and(AcceptQueue::is_full));
        }
    }

    #[test]
    fn other_sockets_have_no_tcp_queue() {
        let (listener, address) = listener("127.0.0.1:0", 2);
        let client = TcpStream::connect(address).expect("connected");
        assert_eq!(of_tcp(client.as_fd()), None);
        assert_eq!(of_tcp(new_unix().expect("a socket").as_fd()), None);
        let unconnected = sockets::new_tcp(false).expect("a socket");
        assert_eq!(of_tcp(unconnected.as_fd()), None);
        drop(listener);
    }

    #[test]
    fn the_fuller_of_two_queues_has_less_room_in_proportion() {
        let queue = |length, limit| AcceptQueue { length, limit };
        assert!(queue(5, 8).is_fuller_than(queue(100, 4096)));
        assert!(!queue(100, 4096).is_fuller_than(queue(5, 8)));
        assert!(!queue(0, 8).is_fuller_than(queue(0, 4096)));
        assert!(queue(1, 0).is_full() && !queue(0, 0).is_full());
        assert!(queue(1, 0).is_fuller_than(queue(8, 8)));
    }

    #[test]
    fn a_counter_is_found_by_its_group_and_name() {
        let text = "TcpExt: A ListenOverflows B\nTcpExt: 1 22 3\nIpExt: ListenOverflows\nIpExt: 9\n";
        assert_eq!(counter(text, "TcpExt:", "ListenOverflows"), Some(22));
        assert_eq!(counter(text, "TcpExt:", "ListenDrops"), None);
        assert_eq!(counter("TcpExt: A\n", "TcpExt:", "A"), None);
    }

    #[test]
    fn every_unix_socket_counts() {
        // Other tests of this process may close theirs meanwhile.
        let _open: Vec<OwnedFd> = (0..8).map(|_| new_unix().expect("a socket")).collect();
        assert!(count_unix_sockets().expect("counted") >= 8);
    }

    #[test]
    fn somaxconn_is_that_of_our_own_namespace_or_unknown() {
        let (listener, _) = listener("127.0.0.1:0", i32::MAX);
        let somaxconn = somaxconn_of(listener.as_fd()).expect("ours");
        assert_eq!(of_tcp(listener.as_fd()).map(|queue| queue.limit), Some(somaxconn));
    }
}
