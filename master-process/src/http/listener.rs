//! The socket on which clients connect.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::config::ListenAddr;
use crate::sys::control_socket::{Claim, Permissions, SavedClaim};
use crate::sys::handover::{Fd, Incoming, Outgoing};
use crate::sys::sockets::{self, Tcp};

/// The connections that wait until they are accepted.
const BACKLOG: i32 = 128;

/// A listening socket. A Unix socket's file goes with it.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    file: Option<Claim>,
}

/// A listening socket as a supervisor hands it over.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SavedListener {
    fd: Fd,
    file: Option<SavedClaim>,
}

impl Listener {
    /// The descriptors.
    pub fn save(&self, out: &mut Outgoing) -> SavedListener {
        SavedListener { fd: out.keep(self.fd.as_fd()), file: self.file.as_ref().map(|file| file.save(out)) }
    }

    /// Goes on with them.
    pub fn resume(saved: SavedListener, from: &mut Incoming) -> Listener {
        let file = saved.file.map(|file| Claim::resume(file, from));
        Listener { fd: from.take(saved.fd), file }
    }

    /// Opens a socket; `group` may connect to a Unix socket besides its owner.
    ///
    /// # Errors
    /// The address is taken, or cannot be had.
    pub fn open(address: &ListenAddr, group: Option<u32>) -> anyhow::Result<Listener> {
        let bound = match address {
            ListenAddr::Unix(path) => return at_path(path, group),
            ListenAddr::Inet(address) => sockets::bind_tcp(*address, Tcp::default()),
            ListenAddr::Port(port) => {
                let bind = |ip: IpAddr| sockets::bind_tcp(SocketAddr::new(ip, *port), Tcp::default());
                match bind(Ipv6Addr::UNSPECIFIED.into()) {
                    Err(error)
                        if matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) =>
                    {
                        bind(Ipv4Addr::UNSPECIFIED.into())
                    }
                    bound => bound,
                }
            }
        };
        let fd = bound.context("bind")?;
        sockets::set_nonblocking(fd.as_fd(), true).context("fcntl")?;
        sockets::listen(fd.as_fd(), BACKLOG).context("listen")?;
        Ok(Listener { fd, file: None })
    }

    /// The socket.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Whether it is a Unix socket.
    pub fn is_unix(&self) -> bool {
        self.file.is_some()
    }
}

fn at_path(path: &std::path::Path, group: Option<u32>) -> anyhow::Result<Listener> {
    let mut claim = Claim::take(path)?;
    let fd = claim.listen(Permissions { group })?;
    Ok(Listener { fd, file: Some(claim) })
}
