//! What can be known of the socket in a waiting call.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use crate::sys::closer::close_elsewhere;
use crate::sys::peer::Peer;
use crate::sys::sockets::{self, Kind};

/// A worker's socket.
#[derive(Debug)]
pub(super) struct CallerSocket {
    pub(super) kind: Kind,
    /// As far as it could be seen; `None`: unknown.
    pub(super) v6only: Option<bool>,
    /// As far as it could be seen; `None`: unknown.
    pub(super) reuseport: Option<bool>,
    /// Whether the kernel would bind it: not where it is bound already.
    pub(super) bindable: bool,
    /// A copy, where the kernel gives us one. It may be the last one by the time that it is closed, if the worker
    /// has closed its own meanwhile: so its end is not ours to wait for.
    copy: Option<OwnedFd>,
}

impl CallerSocket {
    /// Looks at the socket behind descriptor `fd` of a worker.
    pub(super) fn look(peer: Peer, fd: RawFd) -> io::Result<CallerSocket> {
        match peer.copy(fd) {
            Ok(copy) => CallerSocket::from_copy(copy),
            Err(error) if is_shortage(&error) => Err(error),
            Err(_denied) => CallerSocket::from_proc(peer, fd),
        }
    }

    fn from_copy(copy: OwnedFd) -> io::Result<CallerSocket> {
        let fd = copy.as_fd();
        let kind = sockets::kind(fd)?;
        Ok(CallerSocket {
            kind,
            v6only: (kind == Kind::Inet6).then(|| sockets::is_v6only(fd)),
            reuseport: Some(sockets::is_reuseport(fd)),
            bindable: !sockets::is_bound(fd) && !sockets::is_bound_to_device(fd) && sockets::is_closed(fd),
            copy: Some(copy),
        })
    }

    fn from_proc(peer: Peer, fd: RawFd) -> io::Result<CallerSocket> {
        let kind = match peer.protocol(fd)?.as_str() {
            "TCP" | "MPTCP" => Kind::Inet,
            "TCPv6" | "MPTCPv6" => Kind::Inet6,
            "UNIX-STREAM" => Kind::UnixStream,
            _other => Kind::Other,
        };
        Ok(CallerSocket { kind, v6only: None, reuseport: None, bindable: true, copy: None })
    }

    /// The copy, where there is one.
    pub(super) fn copy(&self) -> Option<BorrowedFd<'_>> {
        self.copy.as_ref().map(AsFd::as_fd)
    }
}

impl Drop for CallerSocket {
    fn drop(&mut self) {
        if let Some(copy) = self.copy.take() {
            close_elsewhere(copy);
        }
    }
}

/// Whether something is short just now: what cannot be known for that must not be guessed.
pub(super) fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM))
}
