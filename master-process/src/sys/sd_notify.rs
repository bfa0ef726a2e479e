//! Messages to the service manager: sd_notify(3).
//!
//! The `sd-notify` crate connects a new blocking socket for each message. If the service manager does not read, the
//! caller waits with it; a supervisor must not. It also reads `NOTIFY_SOCKET` again for each message.

use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, sendmsg_addr, socket_with,
};
use rustix::time::{ClockId, clock_gettime};

/// The socket of the service manager. It is not connected: a service manager that opens its socket again at the same
/// address gets the later messages.
#[derive(Debug)]
pub struct ManagerSocket {
    fd: OwnedFd,
    address: SocketAddrUnix,
}

/// Why a message was not sent.
#[derive(Debug)]
pub enum NotSent {
    /// The service manager's queue is full; it may be sent later.
    Full,
    /// Nobody receives it.
    Failed(io::Error),
}

impl ManagerSocket {
    /// A socket for messages to this `NOTIFY_SOCKET`.
    ///
    /// # Errors
    /// `InvalidInput` for an address that is neither an absolute path nor an abstract name with `@`; EMFILE.
    pub fn open(address: &OsStr) -> io::Result<ManagerSocket> {
        let address = match address.as_bytes() {
            [b'@', name @ ..] if !name.is_empty() => SocketAddrUnix::new_abstract_name(name)?,
            path @ [b'/', ..] => SocketAddrUnix::new(path)?,
            _other => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "not a path, nor an abstract name that begins with @",
                ));
            }
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
        Ok(ManagerSocket { fd, address })
    }

    /// Sends a message, with a descriptor if there is one. It never blocks.
    ///
    /// # Errors
    /// [`NotSent`].
    pub fn send(&self, text: &str, fd: Option<BorrowedFd<'_>>) -> Result<(), NotSent> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = fd.as_slice();
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(NotSent::Failed(io::ErrorKind::OutOfMemory.into()));
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match sendmsg_addr(&self.fd, &self.address, &[IoSlice::new(text.as_bytes())], &mut control, flags) {
            Ok(_length) => Ok(()),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::NOBUFS | rustix::io::Errno::NOMEM) => {
                Err(NotSent::Full)
            }
            Err(error) => Err(NotSent::Failed(error.into())),
        }
    }
}

/// Tells the service manager, if there is one, why this process ends. If it cannot be told, it has the exit status.
pub fn failed(code: u8, errno: Option<i32>, why: &dyn Display) {
    let Some(address) = std::env::var_os("NOTIFY_SOCKET").filter(|address| !address.is_empty()) else {
        return;
    };
    if let Ok(socket) = ManagerSocket::open(&address) {
        let _last_words = socket.send(&failure(code, errno, why), None);
    }
}

fn failure(code: u8, errno: Option<i32>, why: &dyn Display) -> String {
    let one_line = why.to_string().replace(char::is_control, " ");
    let errno = errno.map(|errno| format!("ERRNO={errno}\n")).unwrap_or_default();
    format!("STATUS={one_line}\n{errno}EXIT_STATUS={code}\n")
}

/// The time of the monotonic clock in microseconds, as `MONOTONIC_USEC` has it.
#[must_use]
pub fn monotonic_usec() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let part = |number: i64| u64::try_from(number).unwrap_or(0);
    part(now.tv_sec) * 1_000_000 + part(now.tv_nsec) / 1000
}

/// How often the service manager expects `WATCHDOG=1` from this process, if it does: sd_watchdog_enabled(3).
pub fn watchdog(var: impl Fn(&str) -> Option<OsString>) -> Option<Duration> {
    let number = |name| var(name)?.to_str()?.parse::<u64>().ok();
    let ours = u64::from(std::process::id());
    let is_ours = match var("WATCHDOG_PID") {
        None => true,
        Some(_) => number("WATCHDOG_PID") == Some(ours),
    };
    number("WATCHDOG_USEC").filter(|usec| is_ours && *usec > 0).map(Duration::from_micros)
}

/// The number of descriptors that the service manager keeps for this service; 0: none. Since systemd 254.
pub fn store_size(var: impl Fn(&str) -> Option<OsString>) -> usize {
    let is_there = var("NOTIFY_SOCKET").is_some_and(|address| !address.is_empty());
    var("FDSTORE").filter(|_| is_there).and_then(|text| text.to_str()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn a_message_arrives_whole() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).expect("bound");
        let socket = ManagerSocket::open(path.as_os_str()).expect("opened");
        socket.send("READY=1\nSTATUS=up\n", None).expect("sent");
        socket.send("FDSTORE=1\n", Some(manager.as_fd())).expect("sent with a descriptor");
        let mut text = [0; 64];
        let length = manager.recv(&mut text).expect("received");
        assert_eq!(&text[..length], b"READY=1\nSTATUS=up\n");
    }

    #[test]
    fn a_full_queue_and_a_missing_socket_are_told_apart_and_neither_blocks() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("notify");
        let socket = ManagerSocket::open(path.as_os_str()).expect("opened");
        assert!(matches!(socket.send("READY=1", None), Err(NotSent::Failed(_))));
        let _unread = UnixDatagram::bind(&path).expect("bound");
        let full = (0..100_000).find_map(|_| socket.send("STATUS=x", None).err());
        assert!(matches!(full, Some(NotSent::Full)), "{full:?}");
    }

    #[test]
    fn only_addresses_of_the_protocol_are_accepted() {
        for wrong in ["", "@", "run/notify", "vsock:2:1234"] {
            assert!(ManagerSocket::open(OsStr::new(wrong)).is_err(), "{wrong:?}");
        }
        assert!(ManagerSocket::open(OsStr::new("@name")).is_ok());
    }

    #[test]
    fn a_failure_names_its_reason_in_one_line_and_the_exit_status() {
        assert_eq!(failure(1, Some(2), &"no\nfile"), "STATUS=no file\nERRNO=2\nEXIT_STATUS=1\n");
        assert_eq!(failure(70, None, &"gave up"), "STATUS=gave up\nEXIT_STATUS=70\n");
    }

    #[test]
    fn the_watchdog_counts_only_for_its_process() {
        let with = |usec: &str, pid: Option<String>| {
            let (usec, pid) = (OsString::from(usec), pid.map(OsString::from));
            watchdog(move |name| match name {
                "WATCHDOG_USEC" => Some(usec.clone()),
                "WATCHDOG_PID" => pid.clone(),
                _other => None,
            })
        };
        let ours = Some(std::process::id().to_string());
        assert_eq!(with("3000000", ours), Some(Duration::from_secs(3)));
        assert_eq!(with("3000000", None), Some(Duration::from_secs(3)));
        assert_eq!(with("3000000", Some("1".to_owned())), None, "it belongs to a parent");
        assert_eq!(with("0", None), None);
        assert_eq!(with("soon", None), None);
    }
}
