//! Sockets that every worker has open from descriptor 3 on: those of `--listen`, and those passed by systemd.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use super::address::Key;
use super::caller_socket::bound_key;
use super::core::SocketId;
use super::kept::{self, KeptSocket};
use super::occupants::{self, Takeover, Wanted};
use super::report::Report;
use super::unix::{Access, Place, Refused, SocketFile};
use crate::config::{Listen, ListenAddr};
use crate::sys::fds;
use crate::sys::sockets::{self, Tcp};

/// The name of a socket without a name of its own; sd_listen_fds_with_names(3).
const NAMELESS: &str = "unknown";

/// The sockets, in the order of the workers' descriptors.
#[derive(Debug, Default)]
pub struct InheritedListeners {
    sockets: Vec<OwnedFd>,
    names: Vec<String>,
    opened: Vec<Opened>,
    /// Those that the service manager kept for an earlier supervisor.
    kept: Vec<KeptSocket>,
    /// Their names, as far as the service manager knows them.
    kept_names: Vec<(String, SocketId)>,
    /// Reports about processes that held their addresses and were ended.
    reports: Vec<Report>,
}

/// A socket that a worker may bind by itself as well.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) id: SocketId,
    pub(super) key: Key,
    pub(super) fd: OwnedFd,
    pub(super) file: Option<SocketFile>,
    /// The queue's length; `None`: it does not listen yet.
    pub(super) backlog: Option<i32>,
    /// Whether other sockets can be bound to the same address, so that each worker that binds it has its own.
    pub(super) can_be_joined: bool,
    /// Whether it belongs to a socket unit of the service manager.
    pub(super) external: bool,
    /// Its number in the kernel's group, if the service manager kept it.
    pub(super) kept_number: Option<u32>,
}

impl Opened {
    fn new(key: Key, fd: OwnedFd, file: Option<SocketFile>) -> io::Result<Opened> {
        let id = sockets::inode(fd.as_fd())?;
        let (external, kept_number) = (false, None);
        Ok(Opened { id, key, fd, file, backlog: None, can_be_joined: false, external, kept_number })
    }
}

/// Why a socket of `--listen` could not be opened.
#[derive(Debug)]
pub struct OpenError {
    address: String,
    why: Refused,
    /// The process that holds the address, and what was done about it.
    found: Vec<Report>,
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--listen {}: {}", self.address, self.why)?;
        self.found.iter().try_for_each(|report| write!(f, "; {report}"))
    }
}

impl std::error::Error for OpenError {}

impl InheritedListeners {
    /// The sockets that systemd passed to this process, if any: sd_listen_fds(3).
    ///
    /// # Errors
    /// EBADF if the variables name a descriptor that is not open.
    pub fn from_service_manager(var: impl Fn(&str) -> Option<OsString>) -> io::Result<InheritedListeners> {
        let number = |name| var(name)?.to_str()?.parse::<RawFd>().ok();
        let ours = rustix::process::getpid().as_raw_pid();
        let count = number("LISTEN_FDS").filter(|count| *count > 0 && number("LISTEN_PID") == Some(ours));
        let Some(count) = count else {
            return Ok(InheritedListeners::default());
        };
        let names =
            var("LISTEN_FDNAMES").map(|names| names.to_string_lossy().into_owned()).unwrap_or_default();
        let mut names = names.split(':');
        let mut inherited = InheritedListeners::default();
        for socket in fds::take_inherited(count)? {
            let name = names.next().filter(|name| !name.is_empty()).unwrap_or(NAMELESS);
            match KeptSocket::new(name, socket) {
                Ok(kept) => inherited.kept.push(kept),
                Err(socket) => {
                    inherited.opened.extend(recognise(socket.as_fd())?);
                    inherited.sockets.push(socket);
                    inherited.names.push(name.to_owned());
                }
            }
        }
        inherited.kept_names = kept::named(&inherited.kept)?;
        Ok(inherited)
    }

    /// The sockets that the supervisor before has handed over, with their `LISTEN_FDNAMES`.
    pub fn resumed(sockets: Vec<OwnedFd>, names: &str) -> InheritedListeners {
        let names = names.split(':').filter(|_| !sockets.is_empty()).map(str::to_owned).collect();
        InheritedListeners { sockets, names, ..InheritedListeners::default() }
    }

    /// Opens the sockets of `--listen`; all of them listen when this returns. If `takeover` is set, processes that an
    /// earlier supervisor has left and that hold such an address are ended first.
    ///
    /// # Errors
    /// The address, and what prevents the bind. Sockets that were opened before are closed, and their files removed.
    pub fn open(
        &mut self,
        listen: &[Listen],
        access: Access,
        takeover: Option<Takeover>,
    ) -> Result<(), OpenError> {
        for socket in listen {
            let failed = |why| OpenError { address: socket.text.clone(), why, found: Vec::new() };
            let kernel = |call| move |error| Refused::Kernel(call, error);
            let v6only = leaves_ipv4_alone(&socket.addr, listen);
            let kept = self.take_kept_for(&socket.addr, v6only, access);
            let open = || open_one(&socket.addr, v6only, access);
            let opened = kept.map_or_else(open, Ok);
            let mut opened =
                match opened.or_else(|why| if self.clear_for(&socket.addr) { open() } else { Err(why) }) {
                    Ok(opened) => opened,
                    Err(why) => {
                        let found = occupants_of(&socket.addr, v6only, &why, takeover);
                        let is_ended = found.iter().any(|report| matches!(report, Report::TakenOver { .. }));
                        let again = if is_ended { open_one(&socket.addr, v6only, access) } else { Err(why) };
                        match again {
                            Ok(opened) => {
                                self.reports.extend(found);
                                opened
                            }
                            Err(why) => return Err(OpenError { address: socket.text.clone(), why, found }),
                        }
                    }
                };
            if opened.key.has_group() {
                // Only after the bind: with `SO_REUSEPORT` before it, an unrelated process of our user could share
                // the port unnoticed.
                sockets::set_reuseport(opened.fd.as_fd()).map_err(kernel("setsockopt")).map_err(failed)?;
                opened.can_be_joined = true;
            }
            sockets::listen(opened.fd.as_fd(), sockets::DEFAULT_BACKLOG)
                .map_err(kernel("listen"))
                .map_err(failed)?;
            opened.backlog = Some(sockets::DEFAULT_BACKLOG);
            let copy = fds::copy_from(opened.fd.as_fd(), 3).map_err(kernel("fcntl")).map_err(failed)?;
            self.sockets.push(copy);
            self.names.push(socket.name.clone().unwrap_or_else(|| NAMELESS.to_owned()));
            self.opened.push(opened);
        }
        Ok(())
    }

    /// Takes the socket of an address of `--listen` that the service manager kept.
    fn take_kept_for(&mut self, address: &ListenAddr, v6only: bool, access: Access) -> Option<Opened> {
        let at = self.kept.iter().position(|kept| kept.is_of(address, v6only))?;
        let kept = self.kept.remove(at);
        let mut checked = kept.check().ok()?;
        let KeptSocket { name, fd } = kept;
        if let Some(file) = &mut checked.file {
            file.take_charge();
            // It has the access that the earlier supervisor gave it, unless that can be changed.
            let _best_effort = file.set_own_access(access);
        }
        let opened = Opened::new(checked.key, fd, checked.file).ok()?;
        Some(Opened { kept_number: Some(name.number), ..opened })
    }

    /// Closes the sockets that the service manager kept for something else and that are in the way of an address. Returns
    /// false if there are none.
    fn clear_for(&mut self, address: &ListenAddr) -> bool {
        let cleared = self.kept.extract_if(.., |kept| kept.blocks(address));
        // The service manager closes its copies a little later.
        cleared.map(|kept| sockets::shut_down(kept.fd.as_fd())).count() > 0
    }

    /// Takes the other sockets that the service manager kept.
    pub(super) fn take_kept(&mut self) -> Vec<KeptSocket> {
        std::mem::take(&mut self.kept)
    }

    /// Takes the names of all sockets that the service manager keeps.
    pub fn take_kept_names(&mut self) -> Vec<(String, u64)> {
        std::mem::take(&mut self.kept_names)
    }

    /// The number of sockets.
    pub fn count(&self) -> RawFd {
        RawFd::try_from(self.sockets.len()).unwrap_or(RawFd::MAX)
    }

    /// `LISTEN_FDNAMES`.
    pub fn names(&self) -> String {
        self.names.join(":")
    }

    /// Takes the sockets to share.
    pub(super) fn take_opened(&mut self) -> Vec<Opened> {
        std::mem::take(&mut self.opened)
    }

    /// Takes the reports of how they were opened.
    pub(super) fn take_reports(&mut self) -> Vec<Report> {
        std::mem::take(&mut self.reports)
    }

    /// The sockets, each with a descriptor of at least `lowest`.
    ///
    /// # Errors
    /// EMFILE.
    pub fn into_sockets(self, lowest: RawFd) -> io::Result<Vec<OwnedFd>> {
        self.sockets.into_iter().map(|socket| fds::move_from(socket, lowest)).collect()
    }
}

fn open_one(address: &ListenAddr, v6only: bool, access: Access) -> Result<Opened, Refused> {
    let kernel = |error| Refused::Kernel("bind", error);
    let fd = match address {
        ListenAddr::Unix(path) => {
            let place = Place::own(path).map_err(|error| Refused::Kernel("its folder", error))?;
            let key = place.key();
            let (fd, file) = place.bind_own(access)?;
            return Opened::new(key, fd, Some(file)).map_err(kernel);
        }
        ListenAddr::Inet(address) => sockets::bind_tcp(*address, Tcp { v6only, ..Tcp::default() }),
        ListenAddr::Port(port) => bind_port(*port),
    };
    let fd = fd.map_err(kernel)?;
    let key = bound_key(fd.as_fd());
    let key = key.ok_or_else(|| kernel(io::Error::other("the socket has no address")))?;
    Opened::new(key, fd, None).map_err(kernel)
}

/// Reports which process holds an address that could not be bound for the reason `why`, and what was done about it.
fn occupants_of(
    address: &ListenAddr,
    v6only: bool,
    why: &Refused,
    takeover: Option<Takeover>,
) -> Vec<Report> {
    let is_held = matches!(why, Refused::Kernel(_, error) if error.raw_os_error() == Some(libc::EADDRINUSE));
    let wanted = match (address, why) {
        (ListenAddr::Unix(path), Refused::Answered(answerer)) => {
            let place = Place::own(path).ok();
            place.map(|place| Wanted { key: place.key(), answerer: Some(*answerer) })
        }
        (ListenAddr::Inet(address), _) if is_held => {
            Some(Wanted { key: Key::tcp(*address, v6only), answerer: None })
        }
        (ListenAddr::Port(port), _) if is_held => {
            let every = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), *port);
            Some(Wanted { key: Key::tcp(every, false), answerer: None })
        }
        _other => None,
    };
    wanted.map(|wanted| occupants::find(&wanted, takeover).reports(&wanted.key)).unwrap_or_default()
}

/// Whether an IPv6 address takes no IPv4 connections. As in the kernel, it takes them, unless the user names an IPv4
/// address with the same port.
fn leaves_ipv4_alone(address: &ListenAddr, all: &[Listen]) -> bool {
    let ListenAddr::Inet(SocketAddr::V6(v6)) = address else {
        return false;
    };
    let takes = |other: &Listen| matches!(&other.addr, ListenAddr::Inet(SocketAddr::V4(v4)) if v4.port() == v6.port());
    all.iter().any(takes)
}

/// Binds a port on all addresses of the host with one socket; IPv4 only if the host has no IPv6.
fn bind_port(port: u16) -> io::Result<OwnedFd> {
    let bind = |ip: IpAddr| sockets::bind_tcp(SocketAddr::new(ip, port), Tcp::default());
    match bind(Ipv6Addr::UNSPECIFIED.into()).map_err(|error| (error.raw_os_error(), error)) {
        Err((Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL), _)) => bind(Ipv4Addr::UNSPECIFIED.into()),
        result => result.map_err(|(_, error)| error),
    }
}

/// A socket of systemd that a worker may also bind by itself. Its file, if it has one, belongs to systemd, and no
/// worker may remove it. All workers share the one socket, because only systemd decides whether others may join it.
fn recognise(fd: BorrowedFd<'_>) -> io::Result<Option<Opened>> {
    let (key, file) = match (bound_key(fd).filter(|key| !key.is_datagram()), sockets::unix_path(fd)) {
        (Some(key), _) => (key, None),
        (None, Some(path)) => {
            let Ok(place) = Place::own(&path) else { return Ok(None) };
            (place.key(), Some(place.watched()))
        }
        (None, None) => return Ok(None),
    };
    let opened = Opened::new(key, fds::copy_from(fd, 3)?, file)?;
    Ok(Some(Opened { external: true, ..opened }))
}
