//! Which addresses are shared: `--share-only` and `--no-share`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

/// The addresses that `--share-only` and `--no-share` name. The default shares every address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShareRules {
    /// `--share-only`: only an address that one of these matches is shared. Empty: every address.
    pub only: Vec<AddressPattern>,
    /// `--no-share`: an address that one of these matches is not shared, even if it is in `only`.
    pub except: Vec<AddressPattern>,
}

/// One entry of `--share-only`, `--no-share` or `--ready listen:`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddressPattern {
    /// These ports on any IP address; a single port is a range of one.
    Ports(RangeInclusive<u16>),
    /// One IP address and port, as the worker binds it: `0.0.0.0:80` does not match `127.0.0.1:80`.
    Inet(SocketAddr),
    /// The absolute path of a Unix socket, see unix(7).
    Path(PathBuf),
    /// A name in the abstract namespace of Unix sockets, without its leading zero byte.
    Abstract(Vec<u8>),
}

impl ShareRules {
    /// Whether an IP address, of TCP or UDP, is shared. The IPv6 scope and flow label make no difference, and an
    /// IPv4-mapped IPv6 address is the IPv4 address.
    #[must_use]
    pub fn shares_inet(&self, address: SocketAddr) -> bool {
        self.shares(|pattern| pattern.matches_inet(address))
    }

    /// Whether the Unix socket at an absolute path is shared. Paths are compared by their components: `//` and `/./`
    /// make no difference; `..` and symbolic links are not resolved.
    #[must_use]
    pub fn shares_path(&self, path: &Path) -> bool {
        self.shares(|pattern| pattern.matches_path(path))
    }

    /// Whether the Unix socket of this abstract name, given without its leading zero byte, is shared.
    #[must_use]
    pub fn shares_abstract(&self, name: &[u8]) -> bool {
        self.shares(|pattern| pattern.matches_abstract(name))
    }

    /// Whether any path can be shared.
    #[must_use]
    pub fn may_share_paths(&self) -> bool {
        self.only.is_empty() || self.only.iter().any(|pattern| matches!(pattern, AddressPattern::Path(_)))
    }

    fn shares(&self, matches: impl Fn(&AddressPattern) -> bool) -> bool {
        (self.only.is_empty() || self.only.iter().any(&matches)) && !self.except.iter().any(matches)
    }
}

impl AddressPattern {
    /// Whether the pattern matches an IP address, with the rules of [`ShareRules::shares_inet`].
    #[must_use]
    pub fn matches_inet(&self, address: SocketAddr) -> bool {
        match self {
            AddressPattern::Ports(ports) => ports.contains(&address.port()),
            AddressPattern::Inet(wanted) => inet_key(*wanted) == inet_key(address),
            AddressPattern::Path(_) | AddressPattern::Abstract(_) => false,
        }
    }

    /// Whether the pattern matches the Unix socket at an absolute path, with the rules of [`ShareRules::shares_path`].
    #[must_use]
    pub fn matches_path(&self, path: &Path) -> bool {
        match self {
            AddressPattern::Path(wanted) => wanted == path,
            AddressPattern::Ports(_) | AddressPattern::Inet(_) | AddressPattern::Abstract(_) => false,
        }
    }

    /// Whether the pattern matches the Unix socket of this abstract name, given without its leading zero byte.
    #[must_use]
    pub fn matches_abstract(&self, name: &[u8]) -> bool {
        match self {
            AddressPattern::Abstract(wanted) => wanted == name,
            AddressPattern::Ports(_) | AddressPattern::Inet(_) | AddressPattern::Path(_) => false,
        }
    }
}

impl fmt::Display for AddressPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AddressPattern::Ports(ports) if ports.start() == ports.end() => {
                write!(f, "port {}", ports.start())
            }
            AddressPattern::Ports(ports) => write!(f, "ports {}-{}", ports.start(), ports.end()),
            AddressPattern::Inet(address) => write!(f, "{address}"),
            AddressPattern::Path(path) => write!(f, "{}", path.display()),
            AddressPattern::Abstract(name) => write!(f, "@{}", name.escape_ascii()),
        }
    }
}

/// The parts of an IP address that are compared.
fn inet_key(address: SocketAddr) -> (IpAddr, u16) {
    (address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inet(text: &str) -> SocketAddr {
        text.parse().expect("a test's address")
    }

    fn only(pattern: AddressPattern) -> ShareRules {
        ShareRules { only: vec![pattern], except: Vec::new() }
    }

    #[test]
    fn without_rules_every_address_is_shared() {
        let rules = ShareRules::default();
        assert!(rules.shares_inet(inet("127.0.0.1:80")));
        assert!(rules.shares_path(Path::new("/run/a.sock")));
        assert!(rules.shares_abstract(b"a"));
    }

    #[test]
    fn a_port_matches_on_every_ip_address() {
        let rules = only(AddressPattern::Ports(80..=80));
        for address in ["0.0.0.0:80", "127.0.0.1:80", "[::]:80", "[::1]:80"] {
            assert!(rules.shares_inet(inet(address)), "{address}");
        }
        assert!(!rules.shares_inet(inet("127.0.0.1:81")));
        assert!(!rules.shares_path(Path::new("/80")));
        assert!(!rules.shares_abstract(b"80"));
    }

    #[test]
    fn a_range_includes_both_ends() {
        let rules = only(AddressPattern::Ports(9100..=9199));
        let shared =
            [9099, 9100, 9150, 9199, 9200].map(|port| rules.shares_inet(([127, 0, 0, 1], port).into()));
        assert_eq!(shared, [false, true, true, true, false]);
    }

    #[test]
    fn an_ip_address_matches_as_the_worker_binds_it() {
        let rules = only(AddressPattern::Inet(inet("0.0.0.0:80")));
        assert!(rules.shares_inet(inet("0.0.0.0:80")));
        assert!(rules.shares_inet(inet("[::ffff:0.0.0.0]:80")), "mapped");
        for address in ["127.0.0.1:80", "[::]:80", "0.0.0.0:81"] {
            assert!(!rules.shares_inet(inet(address)), "{address}");
        }
        let rules = only(AddressPattern::Inet(inet("[fe80::1]:80")));
        assert!(rules.shares_inet(inet("[fe80::1%2]:80")), "the scope is not part of the pattern");
    }

    #[test]
    fn paths_match_by_their_components() {
        let rules = only(AddressPattern::Path("/run/a.sock".into()));
        for path in ["/run/a.sock", "//run/./a.sock"] {
            assert!(rules.shares_path(Path::new(path)), "{path}");
        }
        for path in ["/run", "/run/a.sock/b", "/run/x/../a.sock", "run/a.sock"] {
            assert!(!rules.shares_path(Path::new(path)), "{path}");
        }
        assert!(!rules.shares_abstract(b"/run/a.sock"));
    }

    #[test]
    fn abstract_names_match_byte_for_byte() {
        let rules = only(AddressPattern::Abstract(b"bus".to_vec()));
        assert!(rules.shares_abstract(b"bus"));
        assert!(!rules.shares_abstract(b"bus\0"));
        assert!(!rules.shares_path(Path::new("bus")));
    }

    #[test]
    fn an_exception_wins_over_what_is_shared() {
        let rules = ShareRules {
            only: vec![AddressPattern::Ports(80..=89)],
            except: vec![AddressPattern::Inet(inet("127.0.0.1:85"))],
        };
        assert!(rules.shares_inet(inet("127.0.0.1:84")));
        assert!(!rules.shares_inet(inet("127.0.0.1:85")));
        assert!(rules.shares_inet(inet("127.0.0.2:85")));
        assert!(!rules.shares_inet(inet("127.0.0.2:90")));
    }

    #[test]
    fn exceptions_alone_leave_everything_else_shared() {
        let rules = ShareRules { only: Vec::new(), except: vec![AddressPattern::Path("/a".into())] };
        assert!(!rules.shares_path(Path::new("/a")));
        assert!(rules.shares_path(Path::new("/b")));
        assert!(rules.shares_inet(inet("127.0.0.1:1")));
    }
}
