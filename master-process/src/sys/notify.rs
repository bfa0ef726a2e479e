//! The socket that workers send their sd_notify messages to.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::closer::close_elsewhere;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix, SocketFlags,
    SocketType, recvmsg, socket_with, sockopt,
};
use rustix::process::Pid;

/// The longest message that is read; systemd's own limit.
const LONGEST: usize = 4096;

/// A datagram socket under a name that the kernel chose, in the abstract name space: no file to clean up, no
/// permission that keeps a worker of another user away, and no collision between supervisors.
#[derive(Debug)]
pub struct NotifySocket {
    fd: OwnedFd,
    name: Vec<u8>,
}

/// A message and the process that sent it, as the kernel says.
#[derive(Debug)]
pub struct Message {
    /// The sender; `None` where it lives in a PID namespace that is not below ours.
    pub sender: Option<Pid>,
    /// The text: `NAME=VALUE` lines.
    pub text: Vec<u8>,
}

impl NotifySocket {
    /// Opens the socket.
    ///
    /// # Errors
    /// Those of socket(2) and bind(2): EMFILE, ENFILE, ENOMEM.
    pub fn new() -> io::Result<NotifySocket> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
        sockopt::set_socket_passcred(&fd, true)?;
        // An address of the family alone makes the kernel choose: "autobind" in unix(7).
        rustix::net::bind(&fd, &SocketAddrUnix::new_unnamed())?;
        let bound = SocketAddrUnix::try_from(rustix::net::getsockname(&fd)?)?;
        let name = bound.abstract_name().map(<[u8]>::to_vec);
        let name = name.ok_or_else(|| io::Error::other("the kernel chose no name for an unnamed socket"))?;
        Ok(NotifySocket { fd, name })
    }

    /// What `NOTIFY_SOCKET` says: `@` stands for the leading zero byte.
    pub fn address(&self) -> Vec<u8> {
        [b"@".as_slice(), &self.name].concat()
    }

    /// The next message; `None` when there is none.
    pub fn receive(&self) -> Option<Message> {
        let mut text = vec![0; LONGEST];
        // Room for all that a message can carry (SCM_MAX_FD): what the kernel has to drop, it drops in our time.
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1), ScmRights(253))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let got = recvmsg(&self.fd, &mut [IoSliceMut::new(&mut text)], &mut control, flags).ok()?;
        let mut sender = None;
        for message in control.drain() {
            match message {
                RecvAncillaryMessage::ScmCredentials(credentials) => sender = Some(credentials.pid),
                // `BARRIER=1` sends a pipe and waits until we have closed it.
                RecvAncillaryMessage::ScmRights(given) => given.for_each(close_elsewhere),
                _unknown => {}
            }
        }
        text.truncate(got.bytes);
        Some(Message { sender, text })
    }
}

impl AsFd for NotifySocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
