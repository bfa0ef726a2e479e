//! What can be known of the socket in a waiting call.

use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};

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
    /// A copy, where the kernel gives us one.
    pub(super) copy: Option<OwnedFd>,
}

impl CallerSocket {
    /// Looks at the socket behind descriptor `fd` of a worker.
    pub(super) fn look(peer: Peer, fd: RawFd) -> io::Result<CallerSocket> {
        let Ok(copy) = peer.copy(fd) else {
            return CallerSocket::from_proc(peer, fd);
        };
        let kind = sockets::kind(copy.as_fd())?;
        Ok(CallerSocket {
            kind,
            v6only: (kind == Kind::Inet6).then(|| sockets::is_v6only(copy.as_fd())),
            reuseport: Some(sockets::is_reuseport(copy.as_fd())),
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
        Ok(CallerSocket { kind, v6only: None, reuseport: None, copy: None })
    }
}
