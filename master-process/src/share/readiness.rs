//! Whether a worker listens on all addresses that are expected of it before it counts as ready.

use std::fmt;

use super::address::Key;
use super::callers::Callers;
use super::core::Socket;
use super::sockets::Sockets;
use crate::config::{AddressPattern, ReadyMode};

/// The number of addresses that one line names.
const MAX_NAMED: usize = 4;

/// The addresses on which a worker must listen before it counts as ready.
#[derive(Debug, Clone, Default)]
pub(super) enum Expected {
    /// None: the worker reports its readiness by itself, or its age makes it ready.
    #[default]
    Nothing,
    /// The addresses that its slot serves.
    Served,
    /// These addresses.
    Named(Vec<AddressPattern>),
}

/// Addresses on which a worker does not listen yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Never empty.
    pub addresses: Vec<String>,
    /// Why they are expected.
    pub because: Because,
}

/// Why an address is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Because {
    /// `--ready listen:ADDR` names it.
    Named,
    /// The worker that serves in the slot listens there.
    Served,
    /// The last worker that served in the slot listened there.
    Left,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let listed = self.addresses.iter().take(MAX_NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
        f.write_str(&listed)?;
        if self.addresses.len() > MAX_NAMED {
            write!(f, " and {} more", self.addresses.len() - MAX_NAMED)?;
        }
        f.write_str(match self.because {
            Because::Named => ", which --ready names",
            Because::Served => ", which the old worker serves",
            Because::Left => ", which the worker before it served",
        })
    }
}

impl Expected {
    /// What a worker must listen on in this mode.
    pub(super) fn of(mode: &ReadyMode) -> Expected {
        match mode {
            ReadyMode::Auto | ReadyMode::Listen => Expected::Served,
            ReadyMode::ListenOn(addresses) => Expected::Named(addresses.clone()),
            ReadyMode::Notify | ReadyMode::NotifyFd(_) | ReadyMode::Alive(_) | ReadyMode::None => {
                Expected::Nothing
            }
        }
    }

    /// The expected addresses on which a worker does not listen yet; `None`: it is complete.
    pub(super) fn missing(&self, sockets: &Sockets, callers: &Callers, serial: u64) -> Option<Missing> {
        let (addresses, because) = match self {
            Expected::Nothing => return None,
            Expected::Named(patterns) => (missing_of(sockets, callers, serial, patterns), Because::Named),
            Expected::Served => {
                let keys = sockets.core.missing(serial);
                let because =
                    if sockets.core.is_slot_served(serial) { Because::Served } else { Because::Left };
                (keys.iter().map(Key::to_string).collect(), because)
            }
        };
        (!addresses.is_empty()).then_some(Missing { addresses, because })
    }
}

fn missing_of(sockets: &Sockets, callers: &Callers, serial: u64, patterns: &[AddressPattern]) -> Vec<String> {
    let caller = callers.get(serial);
    let listens = |at: usize, pattern: &AddressPattern| {
        caller.is_some_and(|caller| caller.has_named(at))
            || sockets.core.listening(serial).any(|socket| is_named(sockets, pattern, socket))
    };
    let missing = patterns.iter().enumerate().filter(|(at, pattern)| !listens(*at, pattern));
    missing.map(|(_, pattern)| pattern.to_string()).collect()
}

fn is_named(sockets: &Sockets, pattern: &AddressPattern, socket: &Socket) -> bool {
    if let Key::Unix { shown, .. } = &socket.key
        && !shown.is_absolute()
    {
        let path = sockets.copies.file(socket.id).map(|file| file.place().absolute());
        return path.is_some_and(|path| pattern.matches_path(&path));
    }
    is_at(pattern, &socket.key)
}

/// Whether a listener at an address matches a pattern. A wildcard address matches an `IP:PORT` pattern too.
pub(super) fn is_at(pattern: &AddressPattern, key: &Key) -> bool {
    match key {
        Key::Inet { address, .. } => {
            let is_covered = match pattern {
                // Compared as IPv6 only: the program decides whether its socket takes IPv4 too.
                AddressPattern::Inet(wanted) => key.covers(&Key::tcp(*wanted, true)),
                AddressPattern::Ports(_) | AddressPattern::Path(_) | AddressPattern::Abstract(_) => false,
            };
            !key.is_datagram() && (pattern.matches_inet(*address) || is_covered)
        }
        Key::Unix { shown, .. } => pattern.matches_path(shown),
        Key::Abstract(name) => pattern.matches_abstract(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_the_addresses_that_it_names() {
        let tcp = |text: &str, v6only| Key::tcp(text.parse().expect("an address"), v6only);
        let inet = |text: &str| AddressPattern::Inet(text.parse().expect("an address"));
        let port = AddressPattern::Ports(80..=80);
        for (pattern, key, here) in [
            (&port, tcp("127.0.0.1:80", false), true),
            (&port, tcp("[::1]:80", false), true),
            (&port, tcp("127.0.0.1:81", false), false),
            (&port, Key::Abstract(b"80".to_vec()), false),
            (&inet("127.0.0.1:80"), tcp("127.0.0.1:80", false), true),
            (&inet("127.0.0.1:80"), tcp("0.0.0.0:80", false), true),
            (&inet("127.0.0.1:80"), tcp("[::]:80", false), true),
            (&inet("127.0.0.1:80"), tcp("[::]:80", true), false),
            (&inet("0.0.0.0:80"), tcp("127.0.0.1:80", false), false),
            (&inet("[::]:80"), tcp("[::]:80", true), true),
            (&AddressPattern::Abstract(b"bus".to_vec()), Key::Abstract(b"bus".to_vec()), true),
        ] {
            assert_eq!(is_at(pattern, &key), here, "{pattern} {key}");
        }
        let shown = Key::Unix { folder: (1, 2), name: "a.sock".into(), shown: "/run/a.sock".into() };
        assert!(is_at(&AddressPattern::Path("/run/a.sock".into()), &shown));
        assert!(!is_at(&AddressPattern::Path("/run/b.sock".into()), &shown));
    }

    #[test]
    fn a_datagram_socket_is_no_listener() {
        let key = Key::Inet {
            protocol: super::super::address::Protocol::Udp,
            address: "127.0.0.1:80".parse().expect("an address"),
            v6only: false,
            interface: 0,
        };
        assert!(!is_at(&AddressPattern::Ports(80..=80), &key));
    }

    #[test]
    fn missing_addresses_are_listed_with_their_reason_up_to_a_limit() {
        let addresses: Vec<String> = (1..=6).map(|port| format!("127.0.0.1:{port}")).collect();
        let missing =
            |count, because| Missing { addresses: addresses[..count].to_vec(), because }.to_string();
        assert_eq!(missing(1, Because::Served), "127.0.0.1:1, which the old worker serves");
        assert_eq!(
            missing(6, Because::Left),
            "127.0.0.1:1, 127.0.0.1:2, 127.0.0.1:3, 127.0.0.1:4 and 2 more, which the worker before it served"
        );
    }
}
