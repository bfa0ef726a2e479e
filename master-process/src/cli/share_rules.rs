//! `--share-only ADDR,…` and `--no-share ADDR,…`, and the addresses of `--ready listen:ADDR,…`.

use std::net::SocketAddr;
use std::ops::RangeInclusive;

use super::count;
use super::directory::absolute;
use super::env::Env;
use super::error::{Parsed, Reason, UsageError};
use super::resolver::Resolver;
use crate::config::{AddressPattern, ShareRules};

/// What fits into `sockaddr_un` beside the leading zero byte of an abstract name, or the closing one of a path.
const MAX_UNIX_NAME: usize = 107;

/// Both options.
pub(super) fn rules(from: &Resolver<'_>) -> Result<ShareRules, UsageError> {
    let patterns = |long| from.list(long, |text| pattern(text, from.env));
    Ok(ShareRules { only: patterns("share-only")?, except: patterns("no-share")? })
}

/// One address, without ranges of ports.
pub(super) fn address(text: &str, env: &dyn Env) -> Parsed<AddressPattern> {
    const FORM: &str = "is not an address; give PORT, IP:PORT, [IPV6]:PORT, unix:/path, /path or @name";
    match parse(text, env, FORM)? {
        AddressPattern::Ports(_) if text.contains('-') => Err("is a range of ports; give one".into()),
        one @ (AddressPattern::Ports(_)
        | AddressPattern::Inet(_)
        | AddressPattern::Path(_)
        | AddressPattern::Abstract(_)) => Ok(one),
    }
}

/// One address pattern.
fn pattern(text: &str, env: &dyn Env) -> Parsed<AddressPattern> {
    const FORM: &str =
        "is not an address; give PORT, PORT-PORT, IP:PORT, [IPV6]:PORT, unix:/path, /path or @name";
    parse(text, env, FORM)
}

fn parse(text: &str, env: &dyn Env, form: &'static str) -> Parsed<AddressPattern> {
    let unix = text.strip_prefix("unix:").or_else(|| text.starts_with(['/', '@']).then_some(text));
    if let Some(path) = unix {
        return match path.strip_prefix('@') {
            Some(name) => abstract_name(name),
            None => unix_path(path, env),
        };
    }
    if let Some(ports) = ports(text) {
        return ports.map(AddressPattern::Ports);
    }
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Ok(AddressPattern::Inet(address)),
        Ok(_port_zero) => Err(no_port()),
        Err(_) => Err(form.into()),
    }
}

/// A port or a range of ports; `None` where the text is meant to be something else.
fn ports(text: &str) -> Option<Parsed<RangeInclusive<u16>>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    if !count::is_digits(first) || !count::is_digits(last) {
        return None;
    }
    let (Some(first), Some(last)) = (port(first), port(last)) else {
        return Some(Err(no_port()));
    };
    let in_order = first <= last;
    Some(
        in_order
            .then_some(first..=last)
            .ok_or("is a range whose end is below its start; give START-END".into()),
    )
}

/// Port 0 means "any free port" to bind(2); such an address is never shared.
fn port(text: &str) -> Option<u16> {
    count::within(text, &(1..=u32::from(u16::MAX))).and_then(|port| u16::try_from(port).ok())
}

fn unix_path(path: &str, env: &dyn Env) -> Parsed<AddressPattern> {
    if path.is_empty() || path.ends_with('/') || path.contains('\0') {
        return Err("has no path of a socket; give unix:/path".into());
    }
    let path = absolute(path, env)?;
    match path.as_os_str().len() {
        0..=MAX_UNIX_NAME => Ok(AddressPattern::Path(path)),
        length => Err(format!("is a path of {length} bytes; give one of at most {MAX_UNIX_NAME}").into()),
    }
}

fn abstract_name(name: &str) -> Parsed<AddressPattern> {
    match name.len() {
        1..=MAX_UNIX_NAME => Ok(AddressPattern::Abstract(name.as_bytes().to_vec())),
        length => {
            Err(format!("is an abstract name of {length} bytes; give @ and 1 to {MAX_UNIX_NAME}").into())
        }
    }
}

fn no_port() -> Reason {
    "has no valid port; give 1 to 65535".into()
}

#[cfg(test)]
mod tests {
    use super::super::testing::Host;
    use super::*;

    fn pattern(text: &str) -> Parsed<AddressPattern> {
        super::pattern(text, &Host::default())
    }

    #[test]
    fn ports_and_ranges() {
        assert_eq!(pattern("3000"), Ok(AddressPattern::Ports(3000..=3000)));
        assert_eq!(pattern("9100-9199"), Ok(AddressPattern::Ports(9100..=9199)));
        assert_eq!(pattern("1-65535"), Ok(AddressPattern::Ports(1..=65535)));
        for garbage in ["0", "0-5", "1-65536", "70000", "127.0.0.1:0"] {
            assert_eq!(pattern(garbage).expect_err(garbage), "has no valid port; give 1 to 65535");
        }
        assert!(pattern("9199-9100").expect_err("backwards").ends_with("give START-END"));
    }

    #[test]
    fn a_single_address_is_no_range() {
        let address = |text: &str| address(text, &Host::default());
        assert_eq!(address("3000"), Ok(AddressPattern::Ports(3000..=3000)));
        for range in ["9100-9199", "9100-9100"] {
            assert_eq!(address(range).expect_err(range), "is a range of ports; give one");
        }
        assert_eq!(address("/run/a-b.sock"), Ok(AddressPattern::Path("/run/a-b.sock".into())));
        assert!(!address("host:80").expect_err("a host").contains("PORT-PORT"));
    }

    #[test]
    fn ip_addresses_with_a_port() {
        for text in ["127.0.0.1:80", "[::]:80", "[fe80::1%2]:80"] {
            assert_eq!(pattern(text), Ok(AddressPattern::Inet(text.parse().expect("an address"))));
        }
    }

    #[test]
    fn paths_and_abstract_names() {
        let path = |text: &str| Ok(AddressPattern::Path(text.into()));
        assert_eq!(pattern("unix:/run/a.sock"), path("/run/a.sock"));
        assert_eq!(pattern("/run/a.sock"), path("/run/a.sock"));
        assert_eq!(pattern("unix:a.sock"), path("/srv/a.sock"));
        assert_eq!(pattern("@bus"), Ok(AddressPattern::Abstract(b"bus".to_vec())));
        assert_eq!(pattern("unix:@bus"), pattern("@bus"));
        let longest = format!("@{}", "x".repeat(107));
        assert!(pattern(&longest).is_ok());
        assert!(pattern(&format!("{longest}x")).expect_err("too long").contains("108 bytes"));
        assert!(pattern(&format!("/{}", "x".repeat(107))).expect_err("too long").contains("108 bytes"));
        for garbage in ["@", "/", "unix:", "unix:/run/", "/a\0b"] {
            assert!(pattern(garbage).is_err(), "{garbage:?}");
        }
    }

    #[test]
    fn garbage_is_told_the_forms() {
        for garbage in
            ["", " ", "localhost:80", "host", "::1", "*:80", "80-", "-80", "80-90-95", "a.sock", "+80"]
        {
            assert!(
                pattern(garbage).expect_err(garbage).starts_with("is not an address; give PORT, "),
                "{garbage}"
            );
        }
    }
}
