//! The socket of a waiting call, and the stand-in that replaces it where the supervisor gets no copy of it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use super::address::{Key, Protocol};
use super::core::SocketId;
use crate::sys::peer::Peer;
use crate::sys::socket_options;
use crate::sys::sockets::{self, Kind};

/// A worker's socket.
#[derive(Debug)]
pub(super) struct CallerSocket {
    pub(super) kind: Kind,
    /// Its inode number.
    pub(super) inode: u64,
    /// `IPV6_V6ONLY`; `None`: unknown.
    pub(super) v6only: Option<bool>,
    /// `SO_REUSEPORT`; `None`: unknown.
    pub(super) reuseport: Option<bool>,
    /// The index of the interface that it is bound to, or 0.
    pub(super) interface: u32,
    /// Whether the kernel would bind it; `false` if it is bound already.
    pub(super) bindable: bool,
    /// A copy, where the kernel gives one. If the worker has closed its own descriptor meanwhile, this is the last
    /// one, so closing it may take time; the loop must not wait for that.
    copy: Option<OwnedFd>,
}

impl CallerSocket {
    /// Inspects the socket behind descriptor `fd` of a worker.
    pub(super) fn inspect(peer: &Peer, fd: RawFd) -> io::Result<CallerSocket> {
        match peer.copy(fd) {
            Ok(copy) => CallerSocket::from_copy(copy),
            Err(error) if is_shortage(&error) => Err(error),
            Err(_denied) => CallerSocket::from_proc(peer, fd),
        }
    }

    fn from_copy(copy: OwnedFd) -> io::Result<CallerSocket> {
        let fd = copy.as_fd();
        let kind = sockets::kind(fd)?;
        let (v6, tcp) = match kind {
            Kind::Tcp { v6, .. } => (v6, true),
            Kind::Udp { v6 } => (v6, false),
            Kind::UnixStream | Kind::Other => (false, false),
        };
        Ok(CallerSocket {
            kind,
            inode: sockets::inode(fd)?,
            v6only: v6.then(|| sockets::is_v6only(fd)),
            reuseport: Some(sockets::is_reuseport(fd)),
            interface: sockets::interface(fd),
            bindable: !sockets::is_bound(fd) && (!tcp || sockets::is_closed(fd)),
            copy: Some(copy),
        })
    }

    fn from_proc(peer: &Peer, fd: RawFd) -> io::Result<CallerSocket> {
        let kind = match peer.protocol(fd)?.as_str() {
            "TCP" => Kind::Tcp { v6: false, multipath: false },
            "TCPv6" => Kind::Tcp { v6: true, multipath: false },
            "MPTCP" => Kind::Tcp { v6: false, multipath: true },
            "MPTCPv6" => Kind::Tcp { v6: true, multipath: true },
            "UNIX-STREAM" => Kind::UnixStream,
            _other => Kind::Other,
        };
        let inode = peer.inode(fd)?;
        Ok(CallerSocket {
            kind,
            inode,
            v6only: None,
            reuseport: None,
            interface: 0,
            bindable: true,
            copy: None,
        })
    }

    /// The copy, if there is one.
    pub(super) fn copy(&self) -> Option<BorrowedFd<'_>> {
        self.copy.as_ref().map(AsFd::as_fd)
    }

    /// Takes the copy.
    pub(super) fn take_copy(&mut self) -> Option<OwnedFd> {
        self.copy.take()
    }
}

impl Drop for CallerSocket {
    fn drop(&mut self) {
        if let Some(copy) = self.copy.take() {
            sockets::close_copy(copy);
        }
    }
}

/// The socket to bind: the worker's own, or a stand-in. A stand-in is needed where the kernel gives no copy of the
/// worker's socket, where that is an MPTCP socket, which cannot be selected in a group, and for the addresses of
/// `--listen`.
pub(super) struct OwnSocket {
    caller: CallerSocket,
    stand_in: Option<(OwnedFd, SocketId)>,
    is_stand_in: bool,
}

impl OwnSocket {
    /// The socket to bind to an address. `is_ours`: the worker got its socket from the supervisor.
    pub(super) fn of(
        caller: CallerSocket,
        key: &Key,
        joins_permanent: bool,
        v6only: bool,
        is_ours: bool,
    ) -> io::Result<OwnSocket> {
        let Kind::Tcp { v6, multipath } = caller.kind else {
            return Ok(OwnSocket { caller, stand_in: None, is_stand_in: false });
        };
        let needs = (caller.copy().is_none() || multipath || joins_permanent) && !is_ours;
        if !needs || key.is_datagram() {
            return Ok(OwnSocket { caller, stand_in: None, is_stand_in: false });
        }
        let socket = sockets::new_tcp(v6)?;
        match caller.copy() {
            Some(model) => socket_options::copy_options(model, socket.as_fd()),
            // A restart must not fail because of connections of the last run. The options that the program set are
            // unknown.
            None => socket_options::set_reuseaddr(socket.as_fd())?,
        }
        if v6 {
            socket_options::set_v6only(socket.as_fd(), v6only)?;
        }
        let id = sockets::inode(socket.as_fd())?;
        Ok(OwnSocket { caller, stand_in: Some((socket, id)), is_stand_in: true })
    }

    pub(super) fn id(&self) -> SocketId {
        self.stand_in.as_ref().map_or(self.caller.inode, |(_, id)| *id)
    }

    pub(super) fn is_stand_in(&self) -> bool {
        self.is_stand_in
    }

    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.stand_in.as_ref().map(|(socket, _)| socket.as_fd()).or_else(|| self.caller.copy())
    }

    /// Takes the descriptor.
    pub(super) fn take(&mut self) -> Option<OwnedFd> {
        match self.stand_in.take() {
            Some((socket, id)) => {
                self.caller.inode = id;
                Some(socket)
            }
            None => self.caller.take_copy(),
        }
    }
}

/// The address of an IP socket; `None` if it is not bound.
pub(super) fn bound_key(fd: BorrowedFd<'_>) -> Option<Key> {
    let protocol = match sockets::kind(fd).ok()? {
        Kind::Tcp { .. } => Protocol::Tcp,
        Kind::Udp { .. } => Protocol::Udp,
        Kind::UnixStream | Kind::Other => return None,
    };
    let address = sockets::inet_address(fd)?;
    let v6only = address.is_ipv6() && sockets::is_v6only(fd);
    Some(Key::Inet { protocol, address, v6only, interface: sockets::interface(fd) })
}

/// Whether an error means a lack of descriptors or memory. The caller must try again later instead of deciding
/// without the information.
pub(super) fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM))
}
