//! `--listen [NAME=]ADDR`.

use std::net::SocketAddr;

use super::count;
use super::directory::absolute;
use super::env::Env;
use super::error::{Parsed, Reason, UsageError};
use super::resolver::Resolved;
use crate::config::{Listen, ListenAddr};

/// What fits into `sockaddr_un` with its closing NUL.
const MAX_UNIX_PATH: usize = 107;

/// systemd's limit for an entry of `LISTEN_FDNAMES`.
const MAX_NAME: usize = 255;

/// One socket.
pub(super) fn parse(text: &str, env: &dyn Env) -> Parsed<Listen> {
    let (name, addr) = split_name(text)?;
    Ok(Listen { name: name.map(str::to_owned), addr: address(addr, env)?, text: text.to_owned() })
}

/// All of them, provided that no address is there twice.
pub(super) fn distinct(sockets: Vec<Resolved<Listen>>) -> Result<Vec<Listen>, UsageError> {
    for (index, socket) in sockets.iter().enumerate() {
        let twin = sockets.iter().take(index).find(|earlier| same(&earlier.value.addr, &socket.value.addr));
        if let Some(twin) = twin {
            return Err(
                socket.misfit(&format!("is the same address as {:?}; give each address once", twin.text))
            );
        }
    }
    Ok(sockets.into_iter().map(|socket| socket.value).collect())
}

/// Port 0 is another port each time.
fn same(one: &ListenAddr, other: &ListenAddr) -> bool {
    let chosen_by_kernel = match one {
        ListenAddr::Port(port) => *port == 0,
        ListenAddr::Inet(addr) => addr.port() == 0,
        ListenAddr::Unix(_) => false,
    };
    one == other && !chosen_by_kernel
}

/// A `=` behind a `:` belongs to the address, a path for example.
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
    Err(format!("has no proper name before the =; give 1 to {MAX_NAME} printable ASCII characters without : = , or space")
        .into())
}

fn address(text: &str, env: &dyn Env) -> Parsed<ListenAddr> {
    if let Some(path) = text.strip_prefix("unix:") {
        return unix(path, env);
    }
    if count::is_digits(text) {
        return port(text).map(ListenAddr::Port);
    }
    if let Ok(addr) = text.parse::<SocketAddr>() {
        return Ok(ListenAddr::Inet(addr));
    }
    match text.rsplit_once(':') {
        Some((host, number)) if is_name(host) => {
            let addr = first_address(host, port(number)?, env)?;
            Ok(ListenAddr::Inet(addr))
        }
        Some(_) | None => Err(form()),
    }
}

fn unix(path: &str, env: &dyn Env) -> Parsed<ListenAddr> {
    if path.starts_with('@') {
        return Err("would be an abstract socket, which has no mode and no owner; give unix:/path".into());
    }
    if path.is_empty() || path.ends_with('/') || path.contains('\0') {
        return Err("has no path of a socket; give unix:/path".into());
    }
    let path = absolute(path, env)?;
    let length = path.as_os_str().len();
    if length > MAX_UNIX_PATH {
        return Err(format!("is a path of {length} bytes; give one of at most {MAX_UNIX_PATH}").into());
    }
    Ok(ListenAddr::Unix(path))
}

fn port(text: &str) -> Parsed<u16> {
    let number = count::within(text, &(0..=u32::from(u16::MAX)));
    number.and_then(|number| u16::try_from(number).ok()).ok_or("has no valid port; give 0 to 65535".into())
}

/// Whether it is worth asking the network. Numbers that are no address are not: the C library would take `10.1` for
/// 10.0.0.1.
fn is_name(host: &str) -> bool {
    let plain = host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'));
    let last_label = host.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    plain && !last_label.is_empty() && !count::is_digits(last_label)
}

/// IPv4 first: a name such as `localhost` is then the same address on every host.
fn first_address(host: &str, port: u16, env: &dyn Env) -> Parsed<SocketAddr> {
    let found = env.resolve(host, port).map_err(|error| unresolved(&error.to_string()))?;
    let chosen = found.iter().find(|addr| addr.is_ipv4()).or(found.first());
    chosen.copied().ok_or_else(|| unresolved("it has no address"))
}

fn unresolved(why: &str) -> Reason {
    format!("has a host that cannot be resolved ({why}); give an address or a known name").into()
}

fn form() -> Reason {
    "is not an address; give PORT, HOST:PORT, [::]:PORT, unix:/path, or NAME= and one of them".into()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::resolver::Source;
    use super::super::testing::Host;
    use super::*;

    fn addr(text: &str) -> Parsed<ListenAddr> {
        parse(text, &Host::default()).map(|listen| listen.addr)
    }

    fn inet(text: &str) -> ListenAddr {
        ListenAddr::Inet(text.parse().expect("a test's address"))
    }

    fn all(texts: &[&str]) -> Result<Vec<Listen>, UsageError> {
        let parsed = texts.iter().map(|text| Resolved {
            value: parse(text, &Host::default()).expect("a valid address"),
            source: Source::Flag("listen"),
            text: (*text).to_owned(),
        });
        distinct(parsed.collect())
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
        assert!(reason.starts_with("has a host that cannot be resolved ("), "{reason}");
        assert!(addr("empty.example:80").expect_err("no address").contains("it has no address"));
    }

    #[test]
    fn a_socket_may_have_a_name() {
        let listen = parse("http=unix:/run/a=b", &Host::default()).expect("valid");
        assert_eq!(listen.name.as_deref(), Some("http"));
        assert_eq!(listen.addr, ListenAddr::Unix(PathBuf::from("/run/a=b")));
        assert_eq!(listen.text, "http=unix:/run/a=b");
        assert_eq!(
            parse("a.b/c=80", &Host::default()).map(|listen| listen.name),
            Ok(Some("a.b/c".to_owned()))
        );
    }

    #[test]
    fn a_name_is_short_printable_ascii() {
        let long = format!("{}=80", "x".repeat(256));
        for garbage in ["=80", "a b=80", "a,b=80", "ä=80", "a\t=80", long.as_str()] {
            assert!(addr(garbage).expect_err(garbage).starts_with("has no proper name"), "{garbage}");
        }
        assert!(addr(&long[1..]).is_ok());
    }

    #[test]
    fn garbage_is_told_the_forms() {
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
            assert!(addr(text).expect_err(text).starts_with("is not an address; give PORT"), "{text}");
        }
    }

    #[test]
    fn a_port_is_at_most_65535() {
        for garbage in
            ["65536", "99999999999", "localhost:65536", "localhost:", "localhost:http", "localhost:-1"]
        {
            assert_eq!(addr(garbage).expect_err(garbage), "has no valid port; give 0 to 65535");
        }
        assert!(addr("127.0.0.1:65536").is_err());
    }

    #[test]
    fn a_unix_path_fits_into_an_address() {
        let longest = format!("unix:/{}", "x".repeat(106));
        assert!(addr(&longest).is_ok());
        assert!(
            addr(&format!("{longest}x"))
                .expect_err("too long")
                .contains("108 bytes; give one of at most 107")
        );
        let relative = format!("unix:{}", "x".repeat(103));
        assert!(addr(&relative).expect_err("too long once absolute").contains("108 bytes"));
        for garbage in ["unix:", "unix:/", "unix:/run/", "unix:@name", "unix:/a\0b"] {
            assert!(addr(garbage).expect_err(garbage).ends_with("give unix:/path"), "{garbage}");
        }
    }

    #[test]
    fn no_address_is_there_twice() {
        assert_eq!(all(&["80", "81", "unix:/a"]).map(|sockets| sockets.len()), Ok(3));
        let error = all(&["127.0.0.1:80", "81", "web=localhost:80"]).expect_err("the same address");
        assert_eq!(
            error.to_string(),
            r#"--listen: "web=localhost:80" is the same address as "127.0.0.1:80"; give each address once"#
        );
        assert!(all(&["unix:/srv/a", "unix:a"]).is_err());
        assert!(all(&["80", "80"]).is_err());
    }

    #[test]
    fn port_0_is_another_one_each_time() {
        assert_eq!(all(&["0", "0", "127.0.0.1:0", "127.0.0.1:0"]).map(|sockets| sockets.len()), Ok(4));
    }
}
