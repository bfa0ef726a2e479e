//! The kernel's socket tables: connections and listeners of a port, Unix listeners and their queues; sock_diag(7).

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use super::accept_queue::AcceptQueue;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, sendto, socket_with,
};

/// `SOCK_DIAG_BY_FAMILY`, `<linux/sock_diag.h>`.
const BY_FAMILY: u16 = 20;
/// `NLM_F_REQUEST | NLM_F_DUMP`, netlink(7).
const REQUEST_ALL: u16 = 0x301;
/// `NLMSG_ERROR` and `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// The states of `<net/tcp_states.h>`, as bits, in which a connection can wait for `accept`.
const ESTABLISHED_OR_HALF_CLOSED: u32 = 1 << 1 | 1 << 8;
/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;
/// The position in `struct inet_diag_msg` of the ports and addresses, of the local address among them, and of the inode
/// number, which is 0 before `accept`; `<linux/inet_diag.h>`.
const SOCKET_ID: std::ops::Range<usize> = 4..52;
const SOURCE: std::ops::Range<usize> = 8..24;
const INODE: std::ops::Range<usize> = 68..72;
/// `TCP_LISTEN`, which Unix sockets have too, and `TCP_CLOSE`, the state of unconnected UDP sockets.
const LISTENING: u32 = 10;
const UNCONNECTED: u32 = 7;
/// `INET_DIAG_SKV6ONLY`.
const SKV6ONLY: u16 = 11;
/// `UDIAG_SHOW_VFS`, `UNIX_DIAG_VFS`, the same for the queue, and the bytes of `struct unix_diag_msg`;
/// `<linux/unix_diag.h>`.
const SHOW_VFS: u32 = 2;
const UNIX_VFS: u16 = 1;
const SHOW_RQLEN: u32 = 16;
const UNIX_RQLEN: u16 = 4;
const UNIX_HEADER: usize = 16;
/// The number of sockets with one address that are returned.
const MAX_BOUND: usize = 4096;
/// The number of connections that are counted. A listen queue is shorter.
const MAX_CONNECTIONS: usize = 65_536;

/// Hashes of the TCP connections that wait for `accept` on the listeners of an address. A connection has the same hash
/// in each call.
///
/// Connections to other addresses of the port are left out, since they wait for other listeners. The kernel gives a
/// connection the family of its listener, so an IPv6 listener's connections from IPv4 are IPv6 ones here. It walks all
/// connections of the host for this, so the loop must not call it.
///
/// # Errors
/// Those of netlink(7); EOPNOTSUPP if the kernel has no `inet_diag`.
pub fn unaccepted(address: SocketAddr) -> io::Result<HashSet<u64>> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let request = request(family, libc::IPPROTO_TCP, ESTABLISHED_OR_HALF_CLOSED, address.port());
    let mut found = HashSet::new();
    query(&request, |message| {
        if found.len() < MAX_CONNECTIONS && is_to(message, address.ip()) {
            found.extend(fingerprint(message));
        }
    })?;
    Ok(found)
}

/// Whether the local address of a connection is this one, which may be unspecified.
fn is_to(message: &[u8], ip: IpAddr) -> bool {
    let Some(source) = message.get(SOURCE) else { return false };
    match ip {
        ip if ip.is_unspecified() => true,
        IpAddr::V4(ip) => source.starts_with(&ip.octets()),
        IpAddr::V6(ip) => source == ip.octets(),
    }
}

/// Sends a request and calls `each` with the body of each message of the answer.
fn query(request: &[u8], mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let kind = SocketType::DGRAM;
    let socket = socket_with(AddressFamily::NETLINK, kind, SocketFlags::CLOEXEC, Some(netlink::SOCK_DIAG))?;
    sendto(&socket, request, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut buffer = vec![0u8; 32 * 1024];
    loop {
        let (length, _) = recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        let mut rest = &buffer[..length];
        while let Some((kind, message, after)) = split(rest) {
            match kind {
                DONE => return Ok(()),
                ERROR => return Err(error_of(message)),
                _socket => each(message),
            }
            rest = after;
        }
    }
}

/// A socket that makes `bind` fail for others: a TCP listener, or an unconnected UDP socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// Its address.
    pub address: SocketAddr,
    /// `IPV6_V6ONLY`.
    pub v6only: bool,
    /// The interface that it is bound to; 0 if none.
    pub interface: u32,
    /// The user that created it.
    pub uid: u32,
    /// Its inode number.
    pub inode: u64,
}

/// The listeners of a port; with `datagram`, its UDP sockets.
///
/// The kernel walks all of these sockets of the host, so the loop must not call it.
///
/// # Errors
/// Those of [`unaccepted`].
pub fn bound(datagram: bool, port: u16) -> io::Result<Vec<Bound>> {
    let (protocol, state) =
        if datagram { (libc::IPPROTO_UDP, UNCONNECTED) } else { (libc::IPPROTO_TCP, LISTENING) };
    let mut found = Vec::new();
    for family in [AddressFamily::INET, AddressFamily::INET6] {
        query(&request(family, protocol, 1 << state, port), |message| {
            if found.len() < MAX_BOUND {
                found.extend(read_bound(message));
            }
        })?;
    }
    Ok(found)
}

/// `struct inet_diag_msg`.
fn read_bound(message: &[u8]) -> Option<Bound> {
    let family = i32::from(*message.first()?);
    let port = u16::from_be_bytes(*message.get(4..)?.first_chunk()?);
    let ip: [u8; 16] = *message.get(8..)?.first_chunk()?;
    let interface = number(message, 40)?;
    let ip = if family == libc::AF_INET {
        IpAddr::V4(Ipv4Addr::from(*ip.first_chunk::<4>()?))
    } else {
        IpAddr::V6(Ipv6Addr::from(ip))
    };
    let address = match ip {
        IpAddr::V6(ip) if ip.is_unicast_link_local() => SocketAddrV6::new(ip, port, 0, interface).into(),
        IpAddr::V4(_) | IpAddr::V6(_) => SocketAddr::new(ip, port),
    };
    let v6only = attribute(message, INODE.end, SKV6ONLY).is_some_and(|value| value.first() == Some(&1));
    Some(Bound {
        address,
        v6only,
        interface,
        uid: number(message, 64)?,
        inode: number(message, INODE.start)?.into(),
    })
}

/// The inode numbers of the Unix sockets that listen at the file with this device and inode number.
///
/// # Errors
/// Those of netlink(7); EOPNOTSUPP or ENOENT if the kernel has no `unix_diag`.
pub fn listeners_at_file(device: u64, file: u64) -> io::Result<Vec<u64>> {
    // The kernel's encoding: the lower 32 bits of the inode number, and a device number with 12 and 20 bits.
    let device = rustix::fs::major(device) << 20 | rustix::fs::minor(device);
    let wanted = [u32::try_from(file & u64::from(u32::MAX)).unwrap_or(0), device];
    let mut found = Vec::new();
    query(&unix_listeners(SHOW_VFS), |message| {
        let place = attribute(message, UNIX_HEADER, UNIX_VFS);
        let is_there = place.and_then(|place| Some([number(place, 0)?, number(place, 4)?])) == Some(wanted);
        if is_there && found.len() < MAX_BOUND {
            found.extend(number(message, 4).map(u64::from));
        }
    })?;
    Ok(found)
}

/// The accept queues of those Unix sockets that listen and are wanted, by inode number.
///
/// The kernel walks all Unix sockets of our network namespace; the caller bounds their number. The first call can wait
/// until a kernel module is loaded.
///
/// # Errors
/// Those of [`listeners_at_file`].
pub fn unix_queues(is_wanted: impl Fn(u64) -> bool) -> io::Result<HashMap<u64, AcceptQueue>> {
    let mut found = HashMap::new();
    query(&unix_listeners(SHOW_RQLEN), |message| {
        found.extend(read_unix_queue(message).filter(|(inode, _)| is_wanted(*inode)));
    })?;
    Ok(found)
}

/// `struct unix_diag_msg` with a `struct unix_diag_rqlen`. For a listener that has the number of connections that wait,
/// and the limit: `sk_diag_show_rqlen` of net/unix/diag.c.
fn read_unix_queue(message: &[u8]) -> Option<(u64, AcceptQueue)> {
    let rqlen = attribute(message, UNIX_HEADER, UNIX_RQLEN)?;
    let queue = AcceptQueue { length: number(rqlen, 0)?, limit: number(rqlen, 4)? };
    Some((number(message, 4)?.into(), queue))
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// `struct unix_diag_req`: family, protocol, states, inode number, attributes to show, cookie.
fn unix_listeners(show: u32) -> Vec<u8> {
    let mut body = vec![u8::try_from(libc::AF_UNIX).unwrap_or(1), 0, 0, 0];
    for number in [1u32 << LISTENING, 0, show, 0, 0] {
        body.extend(number.to_ne_bytes());
    }
    message(&body)
}

/// The value of an attribute after the first `from` bytes of a message: `struct nlattr`, netlink(7).
fn attribute(message: &[u8], from: usize, wanted: u16) -> Option<&[u8]> {
    let mut rest = message.get(from..)?;
    loop {
        let length = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
        let kind = u16::from_ne_bytes(*rest.get(2..)?.first_chunk()?);
        if kind == wanted {
            return rest.get(4..length);
        }
        rest = rest.get(length.max(4).next_multiple_of(4)..)?;
    }
}

/// `struct inet_diag_req_v2`.
fn request(family: AddressFamily, protocol: i32, states: u32, port: u16) -> Vec<u8> {
    let small = |number: i32| u8::try_from(number).unwrap_or(0);
    let mut body = vec![small(family.as_raw().into()), small(protocol), 0, 0];
    body.extend(states.to_ne_bytes());
    body.extend(port.to_be_bytes());
    // The request names no more of the socket's identity.
    body.resize(8 + SOCKET_ID.len(), 0);
    message(&body)
}

/// Puts a `struct nlmsghdr` in front of a body.
fn message(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.len()).unwrap_or(0);
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(BY_FAMILY.to_ne_bytes());
    message.extend(REQUEST_ALL.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// The type and body of the first message, and the bytes after it.
fn split(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let message = bytes.get(HEADER..length)?;
    let after = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, message, after))
}

fn error_of(message: &[u8]) -> io::Error {
    let errno = message.first_chunk().map_or(libc::EIO, |bytes| -i32::from_ne_bytes(*bytes));
    io::Error::from_raw_os_error(errno)
}

/// The hash of the connection if it was not accepted.
fn fingerprint(message: &[u8]) -> Option<u64> {
    let (id, inode) = (message.get(SOCKET_ID)?, message.get(INODE)?);
    if inode != [0; 4] {
        return None;
    }
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    Some(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_connection_is_listed_until_it_is_accepted() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("it has one");
        assert!(unaccepted(address).expect("listed").is_empty());
        let _clients = [TcpStream::connect(address), TcpStream::connect(address)];
        let both = unaccepted(address).expect("listed");
        assert_eq!(both.len(), 2);
        let _accepted = listener.accept().expect("a connection is queued");
        let one = unaccepted(address).expect("listed");
        assert_eq!(one.len(), 1);
        assert!(one.is_subset(&both), "its hash is the same");
    }

    #[test]
    fn connections_to_another_address_of_the_port_are_not_listed() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("it has one");
        // The kernel gave the port to this process alone, and no other test binds this address.
        let neighbour = SocketAddr::from(([127, 0, 0, 2], address.port()));
        let _other = TcpListener::bind(neighbour).expect("bound");
        let _clients = [TcpStream::connect(neighbour), TcpStream::connect(neighbour)];
        assert_eq!(unaccepted(neighbour).expect("listed").len(), 2);
        assert!(unaccepted(address).expect("listed").is_empty());
    }

    #[test]
    fn a_listener_on_every_address_has_the_connections_of_each_in_its_own_family() {
        use std::net::{Ipv4Addr, Ipv6Addr};
        let dual = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).expect("bound");
        let every = dual.local_addr().expect("it has one");
        let clients = [
            TcpStream::connect((Ipv6Addr::LOCALHOST, every.port())),
            TcpStream::connect((Ipv4Addr::LOCALHOST, every.port())),
        ];
        assert!(clients.iter().all(Result::is_ok), "{clients:?}");
        assert_eq!(unaccepted(every).expect("listed").len(), 2);
        let of_ip = |ip: IpAddr| unaccepted(SocketAddr::new(ip, every.port())).expect("listed").len();
        assert_eq!(of_ip(Ipv6Addr::LOCALHOST.into()), 1);
        assert_eq!(of_ip(Ipv4Addr::LOCALHOST.to_ipv6_mapped().into()), 1);
        assert_eq!(of_ip(Ipv4Addr::UNSPECIFIED.into()), 0, "no IPv4 listener has them");
    }

    #[test]
    fn the_sockets_of_a_port_are_listed_with_the_user_that_created_them() {
        use std::os::fd::AsFd;
        let tcp = TcpListener::bind("[::1]:0").expect("bound");
        let address = tcp.local_addr().expect("it has one");
        let inode = crate::sys::sockets::inode(tcp.as_fd()).expect("open");
        let uid = rustix::process::getuid().as_raw();
        let found = bound(false, address.port()).expect("listed");
        // The kernel sets the option when it binds an address that exists in IPv6 only.
        assert_eq!(found, [Bound { address, v6only: true, interface: 0, uid, inode }]);
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").expect("bound");
        let address = udp.local_addr().expect("it has one");
        let found = bound(true, address.port()).expect("listed");
        assert_eq!(found.iter().map(|bound| bound.address).collect::<Vec<_>>(), [address]);
    }

    #[test]
    fn a_unix_listener_is_found_by_its_file_under_another_name() {
        use std::os::fd::AsFd;
        use std::os::unix::fs::MetadataExt;
        let folder = tempfile::tempdir().expect("a folder");
        let [before, after] = ["before", "after"].map(|name| folder.path().join(name));
        let listener = std::os::unix::net::UnixListener::bind(&before).expect("bound");
        std::fs::rename(&before, &after).expect("renamed");
        let file = after.metadata().expect("it is there");
        let inode = crate::sys::sockets::inode(listener.as_fd()).expect("open");
        match listeners_at_file(file.dev(), file.ino()) {
            Ok(found) => assert_eq!(found, [inode]),
            Err(error) => {
                assert!(matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOENT)), "{error}")
            }
        }
    }

    #[test]
    fn a_unix_listener_of_each_kind_has_a_queue_that_is_full_with_one_more_than_its_limit() {
        use rustix::net::{SocketAddrUnix, accept, bind, connect, listen};
        use std::os::fd::{AsFd, OwnedFd};
        for (kind, name) in [(SocketType::STREAM, "stream"), (SocketType::SEQPACKET, "seqpacket")] {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let new = || socket_with(AddressFamily::UNIX, kind, flags, None).expect("a socket");
            let name = format!("master-process/queue/{name}/{}", std::process::id());
            let address = SocketAddrUnix::new_abstract_name(name.as_bytes()).expect("it fits");
            let listener = new();
            bind(&listener, &address).expect("bound");
            listen(&listener, 2).expect("listening");
            let inode = crate::sys::sockets::inode(listener.as_fd()).expect("open");
            let read = || match unix_queues(|listed| listed == inode) {
                Ok(queues) => queues.get(&inode).copied(),
                Err(error) => {
                    assert!(matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOENT)), "{error}");
                    None
                }
            };
            let Some(empty) = read() else { return };
            assert_eq!(empty, AcceptQueue { length: 0, limit: 2 });
            let clients: Vec<OwnedFd> = (0..3).map(|_| new()).collect();
            clients.iter().for_each(|client| connect(client, &address).expect("there is room"));
            assert_eq!(read(), Some(AcceptQueue { length: 3, limit: 2 }));
            assert!(read().is_some_and(AcceptQueue::is_full));
            assert_eq!(connect(new(), &address), Err(rustix::io::Errno::AGAIN), "there is none");
            let _accepted = accept(&listener).expect("one is queued");
            assert_eq!(read(), Some(AcceptQueue { length: 2, limit: 2 }));
            assert!(!read().is_some_and(AcceptQueue::is_full));
        }
    }
}
