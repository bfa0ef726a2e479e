//! Sockets that every worker finds open from descriptor 3 on: `--listen`'s, and those that systemd gave us.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use super::address::Key;
use super::table::{Held, Part};
use super::unix::{Access, Claim, Place, Refused};
use crate::config::{Listen, ListenAddr};
use crate::sys::fds;
use crate::sys::sockets::{self, Tcp};

/// What a socket without a name of its own is called; sd_listen_fds_with_names(3).
const NAMELESS: &str = "unknown";

/// The sockets, in the order in which the workers get them.
#[derive(Debug, Default)]
pub struct HandedOver {
    sockets: Vec<OwnedFd>,
    names: Vec<String>,
    held: Vec<Held>,
}

/// Why a socket of `--listen` could not be opened.
#[derive(Debug)]
pub struct OpenError {
    address: String,
    why: Refused,
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--listen {}: {}", self.address, self.why)
    }
}

impl std::error::Error for OpenError {}

impl HandedOver {
    /// What systemd passed to this process, if it did: sd_listen_fds(3).
    ///
    /// # Errors
    /// EBADF where the variables promise a descriptor that is not open.
    pub fn from_service_manager(var: impl Fn(&str) -> Option<OsString>) -> io::Result<HandedOver> {
        let number = |name| var(name)?.to_str()?.parse::<RawFd>().ok();
        let ours = rustix::process::getpid().as_raw_pid();
        let count = number("LISTEN_FDS").filter(|count| *count > 0 && number("LISTEN_PID") == Some(ours));
        let Some(count) = count else {
            return Ok(HandedOver::default());
        };
        let names =
            var("LISTEN_FDNAMES").map(|names| names.to_string_lossy().into_owned()).unwrap_or_default();
        let mut names = names.split(':');
        let mut handed_over = HandedOver::default();
        for socket in fds::take_inherited(count)? {
            handed_over.held.extend(recognise(socket.as_fd())?);
            handed_over.sockets.push(socket);
            let name = names.next().filter(|name| !name.is_empty());
            handed_over.names.push(name.unwrap_or(NAMELESS).to_owned());
        }
        Ok(handed_over)
    }

    /// Opens the sockets of `--listen`; all of them listen when this returns.
    ///
    /// # Errors
    /// The address, and what is in its way. What was opened before is closed, and its file removed.
    pub fn open(&mut self, listen: &[Listen], access: Access) -> Result<(), OpenError> {
        for wish in listen {
            let failed = |why| OpenError { address: wish.text.clone(), why };
            let kernel = |call| move |error| Refused::Kernel(call, error);
            let mut held =
                open_one(&wish.addr, leaves_ipv4_alone(&wish.addr, listen), access).map_err(failed)?;
            held.listen(sockets::LONGEST_QUEUE).map_err(kernel("listen")).map_err(failed)?;
            let copy = fds::copy_from(held.fd(), 3).map_err(kernel("fcntl")).map_err(failed)?;
            self.sockets.push(copy);
            self.names.push(wish.name.clone().unwrap_or_else(|| NAMELESS.to_owned()));
            self.held.push(held);
        }
        Ok(())
    }

    /// How many there are.
    pub fn count(&self) -> RawFd {
        RawFd::try_from(self.sockets.len()).unwrap_or(RawFd::MAX)
    }

    /// `LISTEN_FDNAMES`.
    pub fn names(&self) -> String {
        self.names.join(":")
    }

    /// What is held for sharing, taken out.
    pub(super) fn take_held(&mut self) -> Vec<Held> {
        std::mem::take(&mut self.held)
    }

    /// The sockets themselves, each with a number of at least `lowest`.
    ///
    /// # Errors
    /// EMFILE.
    pub fn into_sockets(self, lowest: RawFd) -> io::Result<Vec<OwnedFd>> {
        self.sockets.into_iter().map(|socket| fds::move_from(socket, lowest)).collect()
    }
}

fn open_one(address: &ListenAddr, v6only: bool, access: Access) -> Result<Held, Refused> {
    let kernel = |error| Refused::Kernel("bind", error);
    let (key, fd, file) = match address {
        ListenAddr::Unix(path) => {
            let place = Place::own(path).map_err(|error| Refused::Kernel("its folder", error))?;
            let key = place.key();
            let (fd, file) = place.claim(Claim { access, identity: None, model: None })?;
            (Some(key), fd, Some(file))
        }
        ListenAddr::Inet(address) => {
            let fd = sockets::bind_tcp(*address, Tcp { v6only, ..Tcp::default() }).map_err(kernel)?;
            (inet_key(fd.as_fd()), fd, None)
        }
        ListenAddr::Port(port) => {
            let fd = bind_port(*port).map_err(kernel)?;
            (inet_key(fd.as_fd()), fd, None)
        }
    };
    let key = key.ok_or_else(|| kernel(io::Error::other("the socket has no address")))?;
    Held::bound(key, Part::All, fd, file).map_err(kernel)
}

/// An IPv6 address takes IPv4 connections as well, as the kernel has it, unless the user gives that port of
/// IPv4 an address of its own.
fn leaves_ipv4_alone(address: &ListenAddr, all: &[Listen]) -> bool {
    let ListenAddr::Inet(SocketAddr::V6(v6)) = address else {
        return false;
    };
    let takes = |other: &Listen| matches!(&other.addr, ListenAddr::Inet(SocketAddr::V4(v4)) if v4.port() == v6.port());
    all.iter().any(takes)
}

/// Every address of the host on one socket; IPv4 alone where the host has no IPv6.
fn bind_port(port: u16) -> io::Result<OwnedFd> {
    let bind = |ip: IpAddr| sockets::bind_tcp(SocketAddr::new(ip, port), Tcp::default());
    match bind(Ipv6Addr::UNSPECIFIED.into()).map_err(|error| (error.raw_os_error(), error)) {
        Err((Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL), _)) => bind(Ipv4Addr::UNSPECIFIED.into()),
        result => result.map_err(|(_, error)| error),
    }
}

fn inet_key(fd: BorrowedFd<'_>) -> Option<Key> {
    let address = sockets::tcp_address(fd)?;
    Some(Key::Inet { address, v6only: address.is_ipv6() && sockets::is_v6only(fd) })
}

/// A socket of systemd's that a worker may bind by itself as well; its file, where it has one, is systemd's, and
/// no worker may remove it.
fn recognise(fd: BorrowedFd<'_>) -> io::Result<Option<Held>> {
    let (key, file) = match (inet_key(fd), sockets::unix_path(fd)) {
        (Some(key), _) => (key, None),
        (None, Some(path)) => {
            let Ok(place) = Place::own(&path) else { return Ok(None) };
            (place.key(), Some(place.watched()))
        }
        (None, None) => return Ok(None),
    };
    Ok(Some(Held::bound(key, Part::All, fds::copy_from(fd, 3)?, file)?))
}
