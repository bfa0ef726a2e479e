//! The parsers of addresses: `--listen [NAME=]ADDR`, `--share-only ADDR,…`, `--no-share ADDR,…`, `--ready MODE`.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use super::arguments::Arguments;
use super::host::Host;
use super::usage_error::{Parsed, Reason, UsageError};
use super::values::{absolute, duration, is_digits, within};
use crate::config::{AddressPattern, Listen, ListenAddr, ReadyMode};

/// The size of a path in `sockaddr_un` without its closing NUL, or of an abstract name without its leading one.
const MAX_UNIX_NAME: usize = 107;

/// systemd's limit for an entry of `LISTEN_FDNAMES`.
const MAX_NAME: usize = 255;

/// The standard streams are below. The kernel opens no descriptor above, unless `fs.nr_open` is raised.
const DESCRIPTORS: RangeInclusive<u32> = 3..=1_048_575;

/// One value of `--listen [NAME=]ADDR`.
pub(super) fn listen(text: &str, host: &dyn Host) -> Parsed<Listen> {
    let (name, addr) = split_name(text)?;
    const FORM: &str = "expected PORT, HOST:PORT, [::]:PORT, unix:/path, or NAME= and one of them";
    Ok(Listen {
        name: name.map(str::to_owned),
        addr: listen_address(addr, host, FORM)?,
        text: text.to_owned(),
    })
}

/// `--metrics ADDR|off`.
pub(super) fn metrics(text: &str, host: &dyn Host) -> Parsed<Option<ListenAddr>> {
    const FORM: &str = "expected PORT, HOST:PORT, [::]:PORT, unix:/path or off";
    match text {
        "off" => Ok(None),
        _address => listen_address(text, host, FORM).map(Some),
    }
}

/// `--listen ADDR` of a command that serves.
pub(super) fn plain(text: &str, host: &dyn Host) -> Parsed<ListenAddr> {
    listen_address(text, host, "expected PORT, HOST:PORT, [::]:PORT or unix:/path")
}

/// The values of `--listen`. No address can be given twice.
pub(super) fn distinct(arguments: &Arguments) -> Result<Vec<Listen>, UsageError> {
    let sockets: Vec<Listen> = arguments.many("listen");
    for (index, socket) in sockets.iter().enumerate() {
        if let Some(twin) = sockets.iter().take(index).find(|earlier| same(&earlier.addr, &socket.addr)) {
            let reason = format!("the same address as {:?}; expected each address once", twin.text);
            return Err(UsageError::value(&arguments.source("listen"), &socket.text, &reason));
        }
    }
    Ok(sockets)
}

/// Whether two addresses are the same. The kernel chooses another port for each port 0.
fn same(one: &ListenAddr, other: &ListenAddr) -> bool {
    let chosen_by_kernel = match one {
        ListenAddr::Port(port) => *port == 0,
        ListenAddr::Inet(addr) => addr.port() == 0,
        ListenAddr::Unix(_) => false,
    };
    one == other && !chosen_by_kernel
}

/// Splits `NAME=ADDR`. A `=` after a `:` is part of the address, for example of a path.
fn split_name(text: &str) -> Parsed<(Option<&str>, &str)> {
    match text.split_once('=') {
        Some((name, addr)) if !name.contains(':') => name_checked(name).map(|name| (Some(name), addr)),
        Some(_) | None => Ok((None, text)),
    }
}

fn name_checked(name: &str) -> Parsed<&str> {
    let fits = (1..=MAX_NAME).contains(&name.len());
    if fits && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',') {
        return Ok(name);
    }
    Err(format!("invalid name before the =; expected 1 to {MAX_NAME} printable ASCII characters without : = , or space")
        .into())
}

fn listen_address(text: &str, host: &dyn Host, form: &'static str) -> Parsed<ListenAddr> {
    if let Some(path) = text.strip_prefix("unix:") {
        return unix(path, host);
    }
    if is_digits(text) {
        return port(text).map(ListenAddr::Port);
    }
    if let Ok(addr) = text.parse::<SocketAddr>() {
        return Ok(ListenAddr::Inet(addr));
    }
    match text.rsplit_once(':') {
        Some((name, number)) if is_name(name) => {
            first_address(name, port(number)?, host).map(ListenAddr::Inet)
        }
        Some(_) | None => Err(form.into()),
    }
}

fn unix(path: &str, host: &dyn Host) -> Parsed<ListenAddr> {
    if path.starts_with('@') {
        return Err("an abstract socket has no mode and no owner; expected unix:/path".into());
    }
    socket_path(path, host).map(ListenAddr::Unix)
}

/// The absolute path of a Unix socket.
fn socket_path(path: &str, host: &dyn Host) -> Parsed<PathBuf> {
    if path.is_empty() || path.ends_with('/') || path.contains('\0') {
        return Err("no path of a socket; expected unix:/path".into());
    }
    let path = absolute(path, || host.current_dir())?;
    match path.as_os_str().len() {
        0..=MAX_UNIX_NAME => Ok(path),
        length => Err(format!("a path of {length} bytes; expected at most {MAX_UNIX_NAME}").into()),
    }
}

fn port(text: &str) -> Parsed<u16> {
    port_from(0, text).ok_or("invalid port; expected 0 to 65535".into())
}

/// A port that is not below `first`.
fn port_from(first: u16, text: &str) -> Option<u16> {
    within(text, &(first.into()..=u16::MAX.into())).and_then(|port| u16::try_from(port).ok())
}

/// Whether the text can be the name of a host. Numbers that are not an address are not resolved: the C library reads
/// `10.1` as 10.0.0.1.
fn is_name(text: &str) -> bool {
    let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'));
    let last_label = text.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    plain && !last_label.is_empty() && !is_digits(last_label)
}

/// The address of a host. IPv4 is preferred: a name such as `localhost` is then the same address on every host.
fn first_address(name: &str, port: u16, host: &dyn Host) -> Parsed<SocketAddr> {
    let found = host.resolve(name, port).map_err(|error| unresolved(&error.to_string()))?;
    let chosen = found.iter().find(|addr| addr.is_ipv4()).or(found.first());
    chosen.copied().ok_or_else(|| unresolved("it has no address"))
}

fn unresolved(why: &str) -> Reason {
    format!("cannot resolve the host ({why}); expected an address or a known name").into()
}

/// One address of `--ready listen:ADDR,…`: a pattern that is not a range of ports.
fn address(text: &str, host: &dyn Host) -> Parsed<AddressPattern> {
    const FORM: &str = "expected PORT, IP:PORT, [IPV6]:PORT, unix:/path, /path or @name";
    match any_pattern(text, host, FORM)? {
        AddressPattern::Ports(_) if text.contains('-') => Err("a range of ports; expected one port".into()),
        one @ (AddressPattern::Ports(_)
        | AddressPattern::Inet(_)
        | AddressPattern::Path(_)
        | AddressPattern::Abstract(_)) => Ok(one),
    }
}

/// One entry of `--share-only` and `--no-share`.
pub(super) fn pattern(text: &str, host: &dyn Host) -> Parsed<AddressPattern> {
    const FORM: &str = "expected PORT, PORT-PORT, IP:PORT, [IPV6]:PORT, unix:/path, /path or @name";
    any_pattern(text.trim(), host, FORM)
}

fn any_pattern(text: &str, host: &dyn Host, form: &'static str) -> Parsed<AddressPattern> {
    let unix = text.strip_prefix("unix:").or_else(|| text.starts_with(['/', '@']).then_some(text));
    if let Some(path) = unix {
        return match path.strip_prefix('@') {
            Some(name) => abstract_name(name),
            None => socket_path(path, host).map(AddressPattern::Path),
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

/// A port or a range of ports. Port 0 is invalid: it means any free port to bind(2), and is never shared. `None`: the text
/// has another form.
fn ports(text: &str) -> Option<Parsed<RangeInclusive<u16>>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    if !is_digits(first) || !is_digits(last) {
        return None;
    }
    let (Some(first), Some(last)) = (port_from(1, first), port_from(1, last)) else {
        return Some(Err(no_port()));
    };
    let in_order = first <= last;
    Some(in_order.then_some(first..=last).ok_or("the range ends below its start; expected START-END".into()))
}

fn abstract_name(name: &str) -> Parsed<AddressPattern> {
    match name.len() {
        1..=MAX_UNIX_NAME => Ok(AddressPattern::Abstract(name.as_bytes().to_vec())),
        length => {
            Err(format!("an abstract name of {length} bytes; expected @ and 1 to {MAX_UNIX_NAME} bytes")
                .into())
        }
    }
}

fn no_port() -> Reason {
    "invalid port; expected 1 to 65535".into()
}

/// `--ready MODE`.
pub(super) fn ready(text: &str, host: &dyn Host) -> Parsed<ReadyMode> {
    if let Some(addresses) = text.strip_prefix("listen:") {
        let address = |text: &str| {
            address(text, host).map_err(|reason| Reason::from(format!("address {text:?}: {reason}")))
        };
        return addresses
            .split(',')
            .map(|text| address(text.trim()))
            .collect::<Result<_, _>>()
            .map(ReadyMode::ListenOn);
    }
    if let Some(number) = text.strip_prefix("notify:fd=") {
        return descriptor(number).map(ReadyMode::NotifyFd);
    }
    if let Some(time) = text.strip_prefix("alive:") {
        let time = duration(time).map_err(|reason| Reason::from(format!("duration {time:?}: {reason}")))?;
        return Ok(ReadyMode::Alive(time));
    }
    match text {
        "auto" => Ok(ReadyMode::Auto),
        "listen" => Ok(ReadyMode::Listen),
        "notify" => Ok(ReadyMode::Notify),
        "none" => Ok(ReadyMode::None),
        _ => Err("expected auto, listen, listen:ADDR, notify, notify:fd=N, alive:DUR or none".into()),
    }
}

fn descriptor(number: &str) -> Parsed<i32> {
    within(number, &DESCRIPTORS).and_then(|fd| i32::try_from(fd).ok()).ok_or_else(|| {
        format!(
            "invalid descriptor; expected notify:fd=N with N from {} to {}",
            DESCRIPTORS.start(),
            DESCRIPTORS.end()
        )
        .into()
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::host::testing::TestHost;
    use super::*;

    fn addr(text: &str) -> Parsed<ListenAddr> {
        listen(text, &TestHost::default()).map(|listen| listen.addr)
    }

    fn inet(text: &str) -> ListenAddr {
        ListenAddr::Inet(text.parse().expect("a test's address"))
    }

    #[test]
    fn ports_hosts_and_paths() {
        assert_eq!(addr("3000"), Ok(ListenAddr::Port(3000)));
        assert_eq!(addr("0"), Ok(ListenAddr::Port(0)));
        assert_eq!(addr("127.0.0.1:80"), Ok(inet("127.0.0.1:80")));
        assert_eq!(addr("[::]:80"), Ok(inet("[::]:80")));
        assert_eq!(addr("unix:/run/a.sock"), Ok(ListenAddr::Unix(PathBuf::from("/run/a.sock"))));
        assert_eq!(addr("unix:a.sock"), Ok(ListenAddr::Unix(PathBuf::from("/srv/a.sock"))));
        assert_eq!(addr("unix:./a=b:c,d"), Ok(ListenAddr::Unix(PathBuf::from("/srv/a=b:c,d"))));
    }

    #[test]
    fn a_name_resolves_to_its_first_ipv4_address() {
        assert_eq!(addr("localhost:80"), Ok(inet("127.0.0.1:80")));
        assert_eq!(addr("six.example:80"), Ok(inet("[2001:db8::1]:80")));
        let reason = addr("nowhere.example:80").expect_err("unknown");
        assert!(reason.starts_with("cannot resolve the host ("), "{reason}");
        assert!(addr("empty.example:80").expect_err("no address").contains("it has no address"));
    }

    #[test]
    fn a_socket_can_have_a_name() {
        let socket = listen("http=unix:/run/a=b", &TestHost::default()).expect("valid");
        assert_eq!(socket.name.as_deref(), Some("http"));
        assert_eq!(socket.addr, ListenAddr::Unix(PathBuf::from("/run/a=b")));
        assert_eq!(socket.text, "http=unix:/run/a=b");
        assert_eq!(
            listen("a.b/c=80", &TestHost::default()).map(|socket| socket.name),
            Ok(Some("a.b/c".to_owned()))
        );
    }

    #[test]
    fn a_name_is_short_printable_ascii() {
        let long = format!("{}=80", "x".repeat(256));
        for garbage in ["=80", "a b=80", "a,b=80", "ä=80", "a\t=80", long.as_str()] {
            assert!(addr(garbage).expect_err(garbage).starts_with("invalid name before the ="), "{garbage}");
        }
        assert!(addr(&long[1..]).is_ok());
    }

    #[test]
    fn another_text_is_no_address_to_listen_on() {
        let garbage = [
            "",
            " ",
            ":",
            ":80",
            "host",
            "/run/a.sock",
            "::1",
            "::1:80",
            "[::1]",
            "1.2.3:80",
            "10:80",
            "256.1.1.1:80",
            "*:80",
            "tcp://host:80",
            "-1",
            "3000 ",
            "a=b=80",
            "[::]",
            "host name:80",
            ".:80",
        ];
        for text in garbage {
            assert!(addr(text).expect_err(text).starts_with("expected PORT"), "{text}");
        }
    }

    #[test]
    fn a_port_is_at_most_65535() {
        for garbage in
            ["65536", "99999999999", "localhost:65536", "localhost:", "localhost:http", "localhost:-1"]
        {
            assert_eq!(addr(garbage).expect_err(garbage), "invalid port; expected 0 to 65535");
        }
        assert!(addr("127.0.0.1:65536").is_err());
    }

    #[test]
    fn a_unix_path_fits_into_an_address() {
        let longest = format!("unix:/{}", "x".repeat(106));
        assert!(addr(&longest).is_ok());
        assert!(
            addr(&format!("{longest}x")).expect_err("too long").contains("108 bytes; expected at most 107")
        );
        let relative = format!("unix:{}", "x".repeat(103));
        assert!(addr(&relative).expect_err("too long once absolute").contains("108 bytes"));
        for garbage in ["unix:", "unix:/", "unix:/run/", "unix:@name", "unix:/a\0b"] {
            assert!(addr(garbage).expect_err(garbage).ends_with("expected unix:/path"), "{garbage}");
        }
    }

    fn pattern(text: &str) -> Parsed<AddressPattern> {
        super::pattern(text, &TestHost::default())
    }

    #[test]
    fn ports_and_ranges() {
        assert_eq!(pattern("3000"), Ok(AddressPattern::Ports(3000..=3000)));
        assert_eq!(pattern("9100-9199"), Ok(AddressPattern::Ports(9100..=9199)));
        assert_eq!(pattern("1-65535"), Ok(AddressPattern::Ports(1..=65535)));
        for garbage in ["0", "0-5", "1-65536", "70000", "127.0.0.1:0"] {
            assert_eq!(pattern(garbage).expect_err(garbage), "invalid port; expected 1 to 65535");
        }
        assert!(pattern("9199-9100").expect_err("backwards").ends_with("expected START-END"));
    }

    #[test]
    fn a_single_address_is_no_range() {
        let address = |text: &str| address(text, &TestHost::default());
        assert_eq!(address("3000"), Ok(AddressPattern::Ports(3000..=3000)));
        for range in ["9100-9199", "9100-9100"] {
            assert_eq!(address(range).expect_err(range), "a range of ports; expected one port");
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
    fn another_text_is_no_pattern() {
        for garbage in
            ["", " ", "localhost:80", "host", "::1", "*:80", "80-", "-80", "80-90-95", "a.sock", "+80"]
        {
            assert!(pattern(garbage).expect_err(garbage).starts_with("expected PORT, "), "{garbage}");
        }
    }

    fn mode(text: &str) -> Parsed<ReadyMode> {
        ready(text, &TestHost::default())
    }

    #[test]
    fn addresses_are_named_as_for_sharing() {
        let expected = vec![
            AddressPattern::Ports(3000..=3000),
            AddressPattern::Inet("127.0.0.1:80".parse().expect("an address")),
            AddressPattern::Path("/run/a.sock".into()),
            AddressPattern::Abstract(b"bus".to_vec()),
        ];
        assert_eq!(
            mode("listen:3000,127.0.0.1:80, unix:/run/a.sock,@bus"),
            Ok(ReadyMode::ListenOn(expected))
        );
    }

    #[test]
    fn an_invalid_address_is_named() {
        for (garbage, reason) in [
            ("listen:", r#"address "": expected PORT, IP:PORT"#),
            ("listen:3000,", r#"address "": expected PORT, IP:PORT"#),
            ("listen:host:80", r#"address "host:80": expected PORT, IP:PORT"#),
            ("listen:0", r#"address "0": invalid port; expected 1 to 65535"#),
            ("listen:3000,80-90", r#"address "80-90": a range of ports; expected one port"#),
        ] {
            let error = mode(garbage).expect_err(garbage);
            assert!(error.starts_with(reason), "{garbage}: {error}");
        }
    }

    #[test]
    fn each_mode_has_a_word() {
        assert_eq!(mode("auto"), Ok(ReadyMode::Auto));
        assert_eq!(mode("listen"), Ok(ReadyMode::Listen));
        assert_eq!(mode("notify"), Ok(ReadyMode::Notify));
        assert_eq!(mode("notify:fd=3"), Ok(ReadyMode::NotifyFd(3)));
        assert_eq!(mode("alive:10s"), Ok(ReadyMode::Alive(Duration::from_secs(10))));
        assert_eq!(mode("none"), Ok(ReadyMode::None));
    }

    #[test]
    fn an_unknown_mode_lists_the_modes() {
        for garbage in ["", "Auto", "notify:", "notify:3", "notify=3", "alive", "listen ", "off"] {
            let reason = mode(garbage).expect_err(garbage);
            assert!(
                reason
                    .ends_with("expected auto, listen, listen:ADDR, notify, notify:fd=N, alive:DUR or none"),
                "{garbage}"
            );
        }
    }

    #[test]
    fn a_descriptor_is_3_or_higher() {
        for garbage in ["notify:fd=", "notify:fd=2", "notify:fd=-1", "notify:fd=x", "notify:fd=2147483648"] {
            assert!(mode(garbage).expect_err(garbage).contains("notify:fd=N with N from 3"), "{garbage}");
        }
    }

    #[test]
    fn an_invalid_duration_is_named() {
        for garbage in ["alive:", "alive:soon", "alive:-1s", "alive:200years"] {
            assert!(mode(garbage).expect_err(garbage).starts_with("duration \""), "{garbage}");
        }
    }
}
