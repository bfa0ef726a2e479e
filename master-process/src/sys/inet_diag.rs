//! The kernel's table of TCP connections, for one port: sock_diag(7).

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;

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
/// States of `<net/tcp_states.h>` in which a connection may wait to be accepted, as bits.
const ESTABLISHED_OR_HALF_CLOSED: u32 = 1 << 1 | 1 << 8;
/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Where `struct inet_diag_msg` has the peer's port and address, and the inode number, which is 0 for a connection that
/// nobody has accepted; `<linux/inet_diag.h>`.
const SOCKET_ID: std::ops::Range<usize> = 4..52;
const INODE: std::ops::Range<usize> = 68..72;
/// Connections that are counted: a queue is shorter.
const MAX_CONNECTIONS: usize = 65_536;

/// Marks of the TCP connections to a local port that nobody has accepted yet: the same connection has the same mark in
/// every call. Not for the loop: the kernel goes through all connections of the host.
///
/// # Errors
/// Those of netlink(7); EOPNOTSUPP where the kernel has no `inet_diag`.
pub fn unaccepted(port: u16) -> io::Result<HashSet<u64>> {
    let mut found = HashSet::new();
    for family in [AddressFamily::INET, AddressFamily::INET6] {
        dump(family, port, &mut found)?;
    }
    Ok(found)
}

fn dump(family: AddressFamily, port: u16, found: &mut HashSet<u64>) -> io::Result<()> {
    let kind = SocketType::DGRAM;
    let socket = socket_with(AddressFamily::NETLINK, kind, SocketFlags::CLOEXEC, Some(netlink::SOCK_DIAG))?;
    let family = u8::try_from(family.as_raw()).unwrap_or(0);
    sendto(&socket, &request(family, port), SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut buffer = vec![0u8; 32 * 1024];
    loop {
        let (length, _) = recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        let mut rest = &buffer[..length];
        while let Some((kind, message, after)) = split(rest) {
            match kind {
                DONE => return Ok(()),
                ERROR => return Err(error_of(message)),
                _connection => {
                    if found.len() < MAX_CONNECTIONS {
                        found.extend(mark(message));
                    }
                }
            }
            rest = after;
        }
    }
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2`.
fn request(family: u8, port: u16) -> Vec<u8> {
    let mut body = vec![family, u8::try_from(libc::IPPROTO_TCP).unwrap_or(6), 0, 0];
    body.extend(ESTABLISHED_OR_HALF_CLOSED.to_ne_bytes());
    body.extend(port.to_be_bytes());
    // The rest of the socket's identity is not asked for.
    body.resize(8 + SOCKET_ID.len(), 0);
    let length = u32::try_from(HEADER + body.len()).unwrap_or(0);
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(BY_FAMILY.to_ne_bytes());
    message.extend(REQUEST_ALL.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// The type and body of the first message, and what follows it.
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

/// A mark of the connection, where nobody has accepted it.
fn mark(message: &[u8]) -> Option<u64> {
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
        assert!(unaccepted(address.port()).expect("asked").is_empty());
        let _clients = [TcpStream::connect(address), TcpStream::connect(address)];
        let both = unaccepted(address.port()).expect("asked");
        assert_eq!(both.len(), 2);
        let _accepted = listener.accept().expect("one waits");
        let one = unaccepted(address.port()).expect("asked");
        assert_eq!(one.len(), 1);
        assert!(one.is_subset(&both), "it has the same mark");
        let elsewhere = TcpListener::bind("127.0.0.1:0").expect("bound");
        assert!(unaccepted(elsewhere.local_addr().expect("it has one").port()).expect("asked").is_empty());
    }
}
