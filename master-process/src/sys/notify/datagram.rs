//! Receives a datagram with its control messages: recvmsg(2), cmsg(3), unix(7).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::process::Pid;

/// The longest message that is read; systemd has the same limit.
const MAX_LENGTH: usize = 4096;

/// The number of descriptors that a message can carry: the kernel's `SCM_MAX_FD`.
const MAX_FDS: usize = 253;

/// `SCM_PIDFD` of unix(7), Linux 6.5.
const SCM_PIDFD: i32 = 4;

/// Room for credentials, a pidfd and all descriptors, in `usize`s for the alignment of `cmsghdr`. The kernel closes
/// descriptors without room in the receiving thread, and the last close of a socket can block.
const CONTROL: usize = {
    let header = size_of::<libc::cmsghdr>();
    let bytes = 3 * header + size_of::<libc::ucred>() + size_of::<RawFd>() * (1 + MAX_FDS);
    bytes.div_ceil(size_of::<usize>()) + 3
};

/// The result of one call.
pub(super) struct Raw {
    pub(super) sender: Option<Pid>,
    pub(super) pidfd: Option<OwnedFd>,
    pub(super) fds: Vec<OwnedFd>,
    pub(super) text: Vec<u8>,
}

/// Receives a message without blocking.
///
/// # Errors
/// EAGAIN if there is none; the others of recvmsg(2).
pub(super) fn receive(socket: BorrowedFd<'_>) -> io::Result<Raw> {
    let mut text = vec![0u8; MAX_LENGTH];
    let mut control = [0usize; CONTROL];
    let mut part = libc::iovec { iov_base: text.as_mut_ptr().cast(), iov_len: text.len() };
    // SAFETY: all zero is a valid `msghdr`: no name, no buffers, no control data.
    let mut header = unsafe { MaybeUninit::<libc::msghdr>::zeroed().assume_init() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control) as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the header points to buffers of this frame, with their lengths. The kernel writes no more than that.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
    let length = usize::try_from(received).map_err(|_negative| io::Error::last_os_error())?;
    text.truncate(length);
    let mut raw = Raw { sender: None, pidfd: None, fds: Vec::new(), text };
    // SAFETY: recvmsg has succeeded, so the header describes control messages that the kernel wrote.
    unsafe { read_control(&header, &mut raw) };
    Ok(raw)
}

/// Takes the contents of the control messages.
///
/// # Safety
/// `header` must be the result of a successful recvmsg(2) and must be read only once: this call takes ownership of its
/// descriptors.
unsafe fn read_control(header: &libc::msghdr, raw: &mut Raw) {
    // SAFETY: see the contract. CMSG_FIRSTHDR and CMSG_NXTHDR stay within msg_controllen. The data of each message
    // follows its header for cmsg_len bytes and is read unaligned. The kernel has created each descriptor for us, and
    // only this message names it.
    unsafe {
        let mut at = libc::CMSG_FIRSTHDR(header);
        while let Some(message) = at.as_ref() {
            let data = libc::CMSG_DATA(at);
            #[expect(
                clippy::unnecessary_cast,
                reason = "cmsg_len is not of the same type with every C library"
            )]
            let length = (message.cmsg_len as usize).saturating_sub(data.offset_from_unsigned(at.cast()));
            let numbers = length / size_of::<RawFd>();
            let fd = |index: usize| match data.cast::<RawFd>().add(index).read_unaligned() {
                // If the process is gone, the kernel sends an error instead of a pidfd.
                number if number >= 0 => Some(OwnedFd::from_raw_fd(number)),
                _error => None,
            };
            match (message.cmsg_level, message.cmsg_type) {
                (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) if length >= size_of::<libc::ucred>() => {
                    raw.sender = Pid::from_raw(data.cast::<libc::ucred>().read_unaligned().pid);
                }
                (libc::SOL_SOCKET, SCM_PIDFD) if numbers >= 1 => raw.pidfd = fd(0),
                (libc::SOL_SOCKET, libc::SCM_RIGHTS) => raw.fds.extend((0..numbers).filter_map(fd)),
                _other => {}
            }
            at = libc::CMSG_NXTHDR(header, at);
        }
    }
}

/// Sets an option of `SOL_SOCKET` that rustix does not have.
///
/// # Errors
/// ENOPROTOOPT if the kernel does not have it; setsockopt(2).
pub(super) fn set_option(socket: BorrowedFd<'_>, option: i32, on: bool) -> io::Result<()> {
    let value = libc::c_int::from(on);
    let length = libc::socklen_t::try_from(size_of_val(&value)).unwrap_or(0);
    // SAFETY: the kernel reads an int of this frame.
    let result = unsafe {
        let (fd, value) = (socket.as_raw_fd(), (&raw const value).cast());
        libc::setsockopt(fd, libc::SOL_SOCKET, option, value, length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;
    use std::os::fd::AsFd;

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg, sockopt};

    use super::*;

    #[test]
    fn credentials_and_every_descriptor_are_received() {
        let (ours, theirs) = std::os::unix::net::UnixDatagram::pair().expect("a pair");
        sockopt::set_socket_passcred(&ours, true).expect("every Linux");
        let has_pidfd = set_option(ours.as_fd(), libc::SO_PASSPIDFD, true).is_ok();
        let null = std::fs::File::open("/dev/null").expect("every Linux");
        let sent = [null.as_fd(); MAX_FDS];
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&sent)));
        sendmsg(&theirs, &[IoSlice::new(b"X=1")], &mut control, SendFlags::empty()).expect("sent");
        let raw = receive(ours.as_fd()).expect("received");
        assert_eq!((raw.text.as_slice(), raw.fds.len()), (b"X=1".as_slice(), MAX_FDS));
        assert_eq!(raw.sender, Some(rustix::process::getpid()));
        assert_eq!(raw.pidfd.is_some(), has_pidfd);
        assert!(receive(ours.as_fd()).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock));
    }
}
