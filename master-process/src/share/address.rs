//! Socket addresses, as a worker's `bind` names them.

use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A socket address as a program wrote it, decoded from a copy of its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Address {
    /// An IP address and a port that is not 0.
    Inet(SocketAddr),
    /// A path as the program wrote it, possibly relative.
    Path(#[serde(with = "crate::forms::path")] PathBuf),
    /// A name in the abstract name space, without its leading zero.
    Abstract(Vec<u8>),
    /// An address that is not shared: port 0, unnamed, another family, or malformed.
    Private,
}

impl Address {
    /// Decodes a `sockaddr` of any family; see ip(7), ipv6(7) and unix(7).
    pub(super) fn decode(bytes: &[u8]) -> Address {
        let Some((family, rest)) = bytes.split_first_chunk::<2>() else {
            return Address::Private;
        };
        match i32::from(u16::from_ne_bytes(*family)) {
            libc::AF_INET => decode_v4(rest),
            libc::AF_INET6 => decode_v6(rest),
            libc::AF_UNIX => decode_unix(rest),
            _other => Address::Private,
        }
    }
}

fn decode_v4(rest: &[u8]) -> Address {
    let Some((port, ip)) = port_and(rest) else {
        return Address::Private;
    };
    let Some(ip) = ip.first_chunk::<4>() else {
        return Address::Private;
    };
    Address::Inet(SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::from(*ip), port)))
}

fn decode_v6(rest: &[u8]) -> Address {
    let Some((port, rest)) = port_and(rest) else {
        return Address::Private;
    };
    let Some((_flow, rest)) = rest.split_first_chunk::<4>() else {
        return Address::Private;
    };
    let Some((ip, rest)) = rest.split_first_chunk::<16>() else {
        return Address::Private;
    };
    // Programs that use the older, shorter structure omit the scope.
    let scope = rest.first_chunk::<4>().map_or(0, |scope| u32::from_ne_bytes(*scope));
    Address::Inet(SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::from(*ip), port, 0, scope)))
}

fn port_and(rest: &[u8]) -> Option<(u16, &[u8])> {
    let (port, rest) = rest.split_first_chunk::<2>()?;
    let port = u16::from_be_bytes(*port);
    (port != 0).then_some((port, rest))
}

fn decode_unix(path: &[u8]) -> Address {
    match path {
        [] | [0] => Address::Private,
        [0, name @ ..] => Address::Abstract(name.to_vec()),
        path => {
            let end = path.iter().position(|byte| *byte == 0).unwrap_or(path.len());
            Address::Path(OsString::from_vec(path[..end].to_vec()).into())
        }
    }
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) enum Protocol {
    /// TCP; also the protocol of an MPTCP socket.
    Tcp,
    /// UDP.
    Udp,
}

/// The identity of an address.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) enum Key {
    /// An IP address. An IPv6 socket with `IPV6_V6ONLY` has a different key from one without.
    Inet {
        /// The protocol.
        protocol: Protocol,
        /// Address and port.
        address: SocketAddr,
        /// `IPV6_V6ONLY`.
        #[serde(default, skip_serializing_if = "crate::forms::is_default")]
        v6only: bool,
        /// The index of the interface that it is bound to, or 0.
        #[serde(default, skip_serializing_if = "crate::forms::is_default")]
        interface: u32,
    },
    /// A name in a folder, independent of the path that leads there.
    Unix {
        /// Device and inode.
        folder: (u64, u64),
        /// The file's name.
        #[serde(with = "crate::forms::path")]
        name: OsString,
        /// The path as a worker wrote it.
        #[serde(with = "crate::forms::path")]
        shown: PathBuf,
    },
    /// A name in the abstract name space.
    Abstract(Vec<u8>),
}

impl Key {
    /// A TCP address on every interface.
    pub(super) fn tcp(address: SocketAddr, v6only: bool) -> Key {
        Key::Inet { protocol: Protocol::Tcp, address, v6only, interface: 0 }
    }

    /// Whether both are the same address. The spelling of a path is ignored.
    pub(super) fn matches(&self, other: &Key) -> bool {
        match (self, other) {
            (Key::Unix { folder, name, .. }, Key::Unix { folder: other_folder, name: other_name, .. }) => {
                folder == other_folder && name == other_name
            }
            (one, other) => one == other,
        }
    }

    /// Whether connections to `other` arrive here when `other` has no listener. An equal path in the folder of
    /// another release counts as the same address.
    pub(super) fn covers(&self, other: &Key) -> bool {
        match (self, other) {
            (
                Key::Inet { protocol, address, v6only, interface },
                Key::Inet {
                    protocol: other_protocol,
                    address: other_address,
                    v6only: other_v6only,
                    interface: other_interface,
                },
            ) => {
                protocol == other_protocol
                    && address.port() == other_address.port()
                    && (interface == other_interface || *interface == 0)
                    && ip_covers((address.ip(), *v6only), (other_address.ip(), *other_v6only))
            }
            (Key::Unix { shown, .. }, Key::Unix { shown: other_shown, .. }) => {
                self.matches(other) || shown == other_shown
            }
            (one, other) => one.matches(other),
        }
    }

    /// Splits a wildcard address of both families into one address for each family.
    pub(super) fn families(&self) -> Option<[Key; 2]> {
        match self {
            Key::Inet { protocol, address: SocketAddr::V6(address), v6only: false, interface }
                if address.ip().is_unspecified() =>
            {
                let (protocol, interface) = (*protocol, *interface);
                let four = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
                Some([
                    Key::Inet { protocol, address: SocketAddr::V6(*address), v6only: true, interface },
                    Key::Inet { protocol, address: four, v6only: false, interface },
                ])
            }
            Key::Inet { .. } | Key::Unix { .. } | Key::Abstract(_) => None,
        }
    }

    /// Whether the kernel lets only one socket without `SO_REUSEPORT` listen on both
    /// (`inet_rcv_saddr_equal` with wildcards, net/ipv4/inet_connection_sock.c).
    pub(super) fn overlaps(&self, other: &Key) -> bool {
        let (
            Key::Inet { protocol, address, v6only, interface },
            Key::Inet {
                protocol: other_protocol,
                address: other_address,
                v6only: other_v6only,
                interface: other_interface,
            },
        ) = (self, other)
        else {
            return self.matches(other);
        };
        let interfaces = interface == other_interface || *interface == 0 || *other_interface == 0;
        protocol == other_protocol
            && address.port() == other_address.port()
            && interfaces
            && ips_overlap((address.ip(), *v6only), (other_address.ip(), *other_v6only))
    }

    /// Whether its sockets can be in a group of `SO_REUSEPORT`.
    pub(super) fn has_group(&self) -> bool {
        matches!(self, Key::Inet { .. })
    }

    /// Whether its sockets have no queue of connections.
    pub(super) fn is_datagram(&self) -> bool {
        matches!(self, Key::Inet { protocol: Protocol::Udp, .. })
    }
}

fn ips_overlap((one, one_v6only): (IpAddr, bool), (other, other_v6only): (IpAddr, bool)) -> bool {
    if one.is_ipv4() == other.is_ipv4() {
        return one == other || one.is_unspecified() || other.is_unspecified();
    }
    let (v4, v6, v6only) = if one.is_ipv4() { (one, other, other_v6only) } else { (other, one, one_v6only) };
    let takes_v4 = v6.is_unspecified() && !v6only;
    takes_v4 || v6.to_canonical() == v4
}

fn ip_covers((one, one_v6only): (IpAddr, bool), (other, other_v6only): (IpAddr, bool)) -> bool {
    match (one.to_canonical(), other.to_canonical()) {
        (IpAddr::V4(one), IpAddr::V4(other)) => one == other || one.is_unspecified(),
        (IpAddr::V6(one), IpAddr::V6(other)) => {
            let takes_both = other.is_unspecified() && !other_v6only;
            (one == other || one.is_unspecified()) && (!takes_both || !one_v6only)
        }
        (IpAddr::V6(one), IpAddr::V4(_)) => one.is_unspecified() && !one_v6only,
        (IpAddr::V4(_), IpAddr::V6(_)) => false,
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Inet { protocol: Protocol::Tcp, address, .. } => write!(f, "{address}"),
            Key::Inet { protocol: Protocol::Udp, address, .. } => write!(f, "{address}/udp"),
            Key::Unix { shown, .. } => write!(f, "{}", shown.display()),
            Key::Abstract(name) => write!(f, "@{}", name.escape_ascii()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sockaddr(family: i32, rest: &[u8]) -> Vec<u8> {
        let family = u16::try_from(family).expect("small").to_ne_bytes();
        [&family, rest].concat()
    }

    #[test]
    fn ip_addresses_are_decoded_with_their_port() {
        let v4 = sockaddr(libc::AF_INET, &[0x1f, 0x90, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Address::decode(&v4), Address::Inet("127.0.0.1:8080".parse().expect("an address")));
        let v6 = sockaddr(libc::AF_INET6, &[[0x1f, 0x90].as_slice(), &[0; 4], &[0; 16], &[0; 4]].concat());
        assert_eq!(Address::decode(&v6), Address::Inet("[::]:8080".parse().expect("an address")));
        assert_eq!(Address::decode(&v6[..24]), Address::decode(&v6), "without the scope, as RFC 2133 had it");
    }

    #[test]
    fn port_zero_and_malformed_addresses_are_private() {
        let port_zero = sockaddr(libc::AF_INET, &[0, 0, 127, 0, 0, 1]);
        let cut = sockaddr(libc::AF_INET6, &[0x1f, 0x90, 0, 0]);
        let netlink = sockaddr(libc::AF_NETLINK, &[0; 10]);
        let autobind = sockaddr(libc::AF_UNIX, &[]);
        for bytes in [port_zero, cut, netlink, autobind, vec![], vec![2]] {
            assert_eq!(Address::decode(&bytes), Address::Private, "{bytes:?}");
        }
    }

    #[test]
    fn addresses_overlap_as_in_the_kernel() {
        let key = |text: &str, v6only| Key::tcp(text.parse().expect("an address"), v6only);
        let overlap = |one: &str, other: &str, v6only| {
            let (one, other) = (key(one, false), key(other, v6only));
            assert_eq!(one.overlaps(&other), other.overlaps(&one));
            one.overlaps(&other)
        };
        assert!(overlap("127.0.0.1:80", "127.0.0.1:80", false));
        assert!(overlap("127.0.0.1:80", "0.0.0.0:80", false));
        assert!(overlap("127.0.0.1:80", "[::]:80", false));
        assert!(!overlap("127.0.0.1:80", "[::]:80", true));
        assert!(overlap("127.0.0.1:80", "[::ffff:127.0.0.1]:80", false));
        assert!(overlap("[::1]:80", "[::]:80", true));
        assert!(!overlap("127.0.0.1:80", "127.0.0.2:80", false));
        assert!(!overlap("127.0.0.1:80", "0.0.0.0:81", false));
        assert!(!overlap("127.0.0.1:80", "[::1]:80", false));
    }

    #[test]
    fn unix_paths_end_at_the_first_zero_and_abstract_names_do_not() {
        let path = sockaddr(libc::AF_UNIX, b"run/app.sock\0garbage");
        assert_eq!(Address::decode(&path), Address::Path("run/app.sock".into()));
        let unterminated = sockaddr(libc::AF_UNIX, b"/x");
        assert_eq!(Address::decode(&unterminated), Address::Path("/x".into()));
        let name = sockaddr(libc::AF_UNIX, b"\0a\0b");
        assert_eq!(Address::decode(&name), Address::Abstract(b"a\0b".to_vec()));
    }
}
