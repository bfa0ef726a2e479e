//! A property of our unit, asked of systemd over D-Bus: org.freedesktop.systemd1(5).
//!
//! The environment of a service does not have it. A library for D-Bus would be many times larger than this one
//! question, and `systemctl` would be a process for each start of a supervisor. Everything is sent at once, which the
//! protocol allows, and the answer is read when it has come.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv, send,
    socket_with,
};

/// The longest answer that is read. Those that are expected have some hundred bytes.
const MAX_ANSWER: usize = 16 * 1024;

/// The serial numbers of our two messages.
const HELLO: u32 = 1;
const QUESTION: u32 = 2;

/// `METHOD_RETURN` of the D-Bus specification.
const METHOD_RETURN: u8 = 2;

/// The unit that a process belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Its name.
    pub name: String,
    /// Whether it belongs to the service manager of a user.
    of_user: bool,
}

impl Unit {
    /// Our unit, if we are the process that systemd has started for a service. A process that merely has the environment
    /// of one is not.
    pub fn own(var: impl Fn(&str) -> Option<std::ffi::OsString>) -> Option<Unit> {
        let started = var("SYSTEMD_EXEC_PID")?.to_str()?.parse::<u32>().ok()?;
        if started != std::process::id() {
            return None;
        }
        Unit::of_cgroup(&std::fs::read_to_string("/proc/self/cgroup").ok()?)
    }

    /// From the text of `/proc/PID/cgroup`, cgroups(7).
    fn of_cgroup(text: &str) -> Option<Unit> {
        // systemd uses one of these hierarchies; the other one may be a container engine's.
        let mut paths = text.lines().filter_map(|line| {
            let (_, rest) = line.split_once(':')?;
            rest.strip_prefix("name=systemd:").or_else(|| rest.strip_prefix(':'))
        });
        let unit = |path: &str| {
            let name = path.rsplit('/').find(|part| part.ends_with(".service"))?;
            let of_user = path.split('/').any(|part| part.starts_with("user@") && part != name);
            Some(Unit { name: name.to_owned(), of_user })
        };
        paths.find_map(unit)
    }
}

/// A question that was sent.
#[derive(Debug)]
pub struct Query {
    fd: OwnedFd,
    received: Vec<u8>,
}

/// What has come of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Nothing yet.
    Pending,
    /// The value.
    Value(u64),
    /// There will be none.
    None,
}

impl Query {
    /// Asks for the `TimeoutStopUSec` of a unit. It does not block.
    ///
    /// # Errors
    /// Those of connect(2): there is no service manager, or we may not ask it.
    pub fn stop_timeout(unit: &Unit, runtime: Option<PathBuf>) -> io::Result<Query> {
        let uid = rustix::process::geteuid();
        let (address, is_bus) = match runtime {
            Some(runtime) if unit.of_user => (runtime.join("systemd/private"), false),
            _system if uid.is_root() => (PathBuf::from("/run/systemd/private"), false),
            _system => (PathBuf::from("/run/dbus/system_bus_socket"), true),
        };
        Query::ask(&address, uid.as_raw(), is_bus, &unit.name)
    }

    fn ask(address: &Path, uid: u32, is_bus: bool, unit: &str) -> io::Result<Query> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&fd, &SocketAddrUnix::new(address)?)?;
        let text = request(uid, is_bus, unit);
        // The buffer of a new socket has room for it.
        let sent = send(&fd, &text, SendFlags::NOSIGNAL)?;
        if sent < text.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(Query { fd, received: Vec::new() })
    }

    /// Reads what has come.
    pub fn read(&mut self) -> Answer {
        let mut part = [0; 4096];
        loop {
            match recv(&self.fd, &mut part, RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Answer::None,
                Ok((_, length)) if self.received.len() + length <= MAX_ANSWER => {
                    self.received.extend_from_slice(&part[..length]);
                }
                Err(rustix::io::Errno::AGAIN) => break,
                Ok(_) | Err(_) => return Answer::None,
            }
        }
        answer(&self.received)
    }
}

impl AsFd for Query {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The bytes of the whole conversation from our side.
fn request(uid: u32, is_bus: bool, unit: &str) -> Vec<u8> {
    let hex: String = uid.to_string().bytes().map(|digit| format!("{digit:02x}")).collect();
    let mut text = format!("\0AUTH EXTERNAL {hex}\r\nBEGIN\r\n").into_bytes();
    if is_bus {
        let bus = "org.freedesktop.DBus";
        text.extend(call(HELLO, [bus, "/org/freedesktop/DBus", bus, "Hello"], &[]));
    }
    let path = format!("/org/freedesktop/systemd1/unit/{}", escaped(unit));
    let target = ["org.freedesktop.systemd1", &path, "org.freedesktop.DBus.Properties", "Get"];
    text.extend(call(QUESTION, target, &["org.freedesktop.systemd1.Service", "TimeoutStopUSec"]));
    text
}

/// A method call with strings as arguments.
fn call(serial: u32, [destination, path, interface, member]: [&str; 4], arguments: &[&str]) -> Vec<u8> {
    let mut body = Vec::new();
    arguments.iter().for_each(|argument| push_string(&mut body, argument));
    let mut fields = Vec::new();
    for (code, kind, value) in
        [(1, b'o', path), (2, b's', interface), (3, b's', member), (6, b's', destination)]
    {
        pad(&mut fields, 8);
        fields.extend([code, 1, kind, 0]);
        push_string(&mut fields, value);
    }
    if !arguments.is_empty() {
        pad(&mut fields, 8);
        let count = u8::try_from(arguments.len()).unwrap_or(0);
        fields.extend([8, 1, b'g', 0, count]);
        fields.extend(std::iter::repeat_n(b's', arguments.len()));
        fields.push(0);
    }
    let mut message = vec![b'l', 1, 0, 1];
    message.extend(length(&body));
    message.extend(serial.to_le_bytes());
    message.extend(length(&fields));
    // The header's fixed part has 16 bytes, so the alignment in `fields` is that in the message.
    message.extend(fields);
    pad(&mut message, 8);
    message.extend(body);
    message
}

fn push_string(bytes: &mut Vec<u8>, text: &str) {
    pad(bytes, 4);
    bytes.extend(length(text.as_bytes()));
    bytes.extend(text.as_bytes());
    bytes.push(0);
}

fn length(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len()).unwrap_or(0).to_le_bytes()
}

fn pad(bytes: &mut Vec<u8>, to: usize) {
    bytes.resize(bytes.len().next_multiple_of(to), 0);
}

/// A name as a part of an object path.
fn escaped(name: &str) -> String {
    let mut text = String::new();
    for (at, byte) in name.bytes().enumerate() {
        if byte.is_ascii_alphabetic() || (at > 0 && byte.is_ascii_digit()) {
            text.push(char::from(byte));
        } else {
            text += &format!("_{byte:02x}");
        }
    }
    text
}

/// The answer to our question in what has been received: a line about the authentication, then messages.
fn answer(received: &[u8]) -> Answer {
    let Some(end) = received.windows(2).position(|two| two == b"\r\n") else { return Answer::Pending };
    if !received.starts_with(b"OK ") {
        return Answer::None;
    }
    let mut rest = &received[end + 2..];
    loop {
        match message(rest) {
            Ok(None) => return Answer::Pending,
            Ok(Some((QUESTION, value, _))) => return value.map_or(Answer::None, Answer::Value),
            Ok(Some((_other, _, length))) => rest = &rest[length..],
            Err(Malformed) => return Answer::None,
        }
    }
}

#[derive(Debug)]
struct Malformed;

/// The first message: the serial number that it answers, or 0, its value if it has one, and its length. `None`: it is not
/// complete.
fn message(bytes: &[u8]) -> Result<Option<(u32, Option<u64>, usize)>, Malformed> {
    let number = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    if bytes.first().is_some_and(|order| *order != b'l') {
        return Err(Malformed);
    }
    let (Some(body), Some(fields)) = (number(4), number(12)) else { return Ok(None) };
    let (body, fields) = (body as usize, fields as usize);
    if body.max(fields) > MAX_ANSWER {
        return Err(Malformed);
    }
    let body_at = (16 + fields).next_multiple_of(8);
    let Some(whole) = bytes.get(..body_at + body) else { return Ok(None) };
    let serial = reply_serial(&whole[..16 + fields])?;
    let is_return = whole.get(1) == Some(&METHOD_RETURN);
    // A variant with a 64-bit number: its signature, padding, the number.
    let variant = whole[body_at..].strip_prefix(&[1, b't', 0]).and_then(|rest| rest.get(5..));
    let value = variant.and_then(<[u8]>::first_chunk).map(|bytes| u64::from_le_bytes(*bytes));
    Ok(Some((serial, value.filter(|_| is_return), whole.len())))
}

/// The field `REPLY_SERIAL` of a header, or 0.
fn reply_serial(header: &[u8]) -> Result<u32, Malformed> {
    let number = |at: usize| {
        let bytes = header.get(at..).and_then(<[u8]>::first_chunk).ok_or(Malformed)?;
        Ok(u32::from_le_bytes(*bytes))
    };
    let mut at = 16;
    while at < header.len() {
        let code = header[at];
        let kind = match header.get(at + 1..at + 4) {
            Some([1, kind, 0]) => *kind,
            _other => return Err(Malformed),
        };
        let value = at + 4;
        let end = match kind {
            b'u' if code == 5 => return number(value),
            b'u' => value + 4,
            b's' | b'o' => value + 4 + number(value)? as usize + 1,
            b'g' => value + 1 + usize::from(*header.get(value).ok_or(Malformed)?) + 1,
            _other => return Err(Malformed),
        };
        at = end.next_multiple_of(8);
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    use master_process_tests::{TIMEOUT, await_some};

    use super::*;

    /// A reply of the service manager, as `systemctl` 254 got it, with another serial number and value.
    fn reply(kind: u8, to: u32, body: &[u8]) -> Vec<u8> {
        let mut fields = vec![5, 1, b'u', 0];
        fields.extend(to.to_le_bytes());
        fields.extend([8, 1, b'g', 0, 1, b'v', 0]);
        let mut message = vec![b'l', kind, 1, 1];
        message.extend(length(body));
        message.extend(7u32.to_le_bytes());
        message.extend(length(&fields));
        message.extend(fields);
        pad(&mut message, 8);
        message.extend(body);
        message
    }

    fn variant(value: u64) -> Vec<u8> {
        let mut body = vec![1, b't', 0, 0, 0, 0, 0, 0];
        body.extend(value.to_le_bytes());
        body
    }

    #[test]
    fn the_unit_is_the_innermost_service() {
        let of = |text: &str| Unit::of_cgroup(text).map(|unit| (unit.name, unit.of_user));
        let system = |name: &str| Some((name.to_owned(), false));
        assert_eq!(of("0::/system.slice/app.service\n"), system("app.service"));
        assert_eq!(of("0::/system.slice/app.service/worker-1\n"), system("app.service"));
        assert_eq!(of("3:cpu:/x\n1:name=systemd:/system.slice/app.service\n0::/\n"), system("app.service"));
        assert_eq!(of("1:name=systemd:/docker/1\n0::/system.slice/app.service\n"), system("app.service"));
        let user = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/app.service\n";
        assert_eq!(of(user), Some(("app.service".to_owned(), true)));
        assert_eq!(of("0::/user.slice/user-1000.slice/session-1.scope\n"), None);
    }

    #[test]
    fn a_unit_is_escaped_as_an_object_path() {
        assert_eq!(escaped("master-process@api.service"), "master_2dprocess_40api_2eservice");
        assert_eq!(escaped("9.service"), "_39_2eservice");
    }

    #[test]
    fn the_question_is_put_as_the_protocol_says() {
        let text = request(1000, true, "a.service");
        assert!(text.starts_with(b"\0AUTH EXTERNAL 31303030\r\nBEGIN\r\n"));
        let calls = &text[text.windows(6).position(|part| part == b"EGIN\r\n").expect("there") + 6..];
        let (_, _, first) = message(calls).expect("well-formed").expect("whole");
        let second = &calls[first..];
        let (_, _, last) = message(second).expect("well-formed").expect("whole");
        assert_eq!(first + last, calls.len());
        assert_eq!((second[8], first % 8), (2, 0), "its serial number and its place");
        assert!(second.ends_with(b"\x0f\0\0\0TimeoutStopUSec\0"));
    }

    #[test]
    fn the_answer_is_found_among_other_messages() {
        let other = reply(METHOD_RETURN, HELLO, b"\x05\0\0\0:1.23\0");
        let parts = [
            b"OK 0123456789abcdef\r\n".to_vec(),
            other,
            reply(METHOD_RETURN, QUESTION, &variant(90_000_000)),
        ];
        let all = parts.concat();
        assert_eq!(answer(&all), Answer::Value(90_000_000));
        for end in 0..all.len() {
            assert_eq!(answer(&all[..end]), Answer::Pending, "{end} bytes");
        }
    }

    #[test]
    fn anything_else_is_no_answer() {
        let after = |bytes: Vec<u8>| answer(&[b"OK 01\r\n".to_vec(), bytes].concat());
        assert_eq!(answer(b"REJECTED EXTERNAL\r\n"), Answer::None);
        let error = 3;
        assert_eq!(after(reply(error, QUESTION, b"\x02\0\0\0no\0")), Answer::None);
        assert_eq!(after(reply(METHOD_RETURN, QUESTION, b"\x01s\0\0")), Answer::None);
        assert_eq!(after(b"HTTP/1.1 400 Bad Request".to_vec()), Answer::None);
        let mut huge = reply(METHOD_RETURN, QUESTION, &variant(1));
        huge[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(after(huge), Answer::None);
    }

    #[test]
    fn it_asks_without_waiting() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let address = folder.path().join("private");
        assert!(Query::ask(&address, 0, false, "a.service").is_err());
        let manager = UnixListener::bind(&address).expect("bound");
        let mut query = Query::ask(&address, 0, false, "a.service").expect("asked");
        assert_eq!(query.read(), Answer::Pending);
        let (mut connection, _) = manager.accept().expect("it connected");
        let mut question = vec![0; request(0, false, "a.service").len()];
        connection.read_exact(&mut question).expect("it asked");
        assert_eq!(question, request(0, false, "a.service"));
        let text = [b"OK 01\r\n".to_vec(), reply(METHOD_RETURN, QUESTION, &variant(7))].concat();
        connection.write_all(&text).expect("it listens");
        let value = await_some(TIMEOUT, "the answer", || match query.read() {
            Answer::Pending => None,
            answer @ (Answer::Value(_) | Answer::None) => Some(answer),
        });
        assert_eq!(value, Answer::Value(7));
    }
}
