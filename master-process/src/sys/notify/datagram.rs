//! One datagram with what came beside it: recvmsg(2), cmsg(3), unix(7).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::process::Pid;

/// The longest message that is read; systemd's own limit.
const LONGEST: usize = 4096;

/// As many descriptors as a message can carry: `SCM_MAX_FD` of the kernel.
const MOST_FDS: usize = 253;

/// `SCM_PIDFD` of unix(7), Linux 6.5.
const SCM_PIDFD: i32 = 4;

/// Room for credentials, a pidfd and all descriptors, in `usize`s so that it is aligned for `cmsghdr`. What had no
/// room would be closed by the kernel in this thread, and the last close of a socket may wait.
const CONTROL: usize = {
    let header = size_of::<libc::cmsghdr>();
    let bytes = 3 * header + size_of::<libc::ucred>() + size_of::<RawFd>() * (1 + MOST_FDS);
    bytes.div_ceil(size_of::<usize>()) + 3
};

/// What one call received.
pub(super) struct Raw {
    pub(super) sender: Option<Pid>,
    pub(super) pidfd: Option<OwnedFd>,
    pub(super) fds: Vec<OwnedFd>,
    pub(super) text: Vec<u8>,
}

/// Receives a message without waiting for one.
///
/// # Errors
/// EAGAIN where there is none; the others of recvmsg(2).
pub(super) fn receive(socket: BorrowedFd<'_>) -> io::Result<Raw> {
    let mut text = vec![0u8; LONGEST];
    let mut control = [0usize; CONTROL];
    let mut part = libc::iovec { iov_base: text.as_mut_ptr().cast(), iov_len: text.len() };
    // SAFETY: all zero is a valid `msghdr`: no name, no parts, no control data.
    let mut header = unsafe { MaybeUninit::<libc::msghdr>::zeroed().assume_init() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control) as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the header points to buffers of this frame, with their lengths; the kernel writes no more than those.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
    let length = usize::try_from(received).map_err(|_negative| io::Error::last_os_error())?;
    text.truncate(length);
    let mut raw = Raw { sender: None, pidfd: None, fds: Vec::new(), text };
    // SAFETY: recvmsg has succeeded, so the header describes control messages that the kernel wrote.
    unsafe { read_control(&header, &mut raw) };
    Ok(raw)
}

/// Takes over what the control messages hold.
///
/// # Safety
/// `header` must be what a successful recvmsg(2) left, and be read only once: its descriptors are owned from here on.
unsafe fn read_control(header: &libc::msghdr, raw: &mut Raw) {
    // SAFETY: the caller's promise. CMSG_FIRSTHDR and CMSG_NXTHDR stay within msg_controllen, and the data of each
    // message lies behind its header for cmsg_len bytes; it is read unaligned. Each descriptor was made for us by the
    // kernel and is named by this one message only.
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
                // The kernel puts an error in the place of a pidfd whose process is gone.
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

/// Switches an option of `SOL_SOCKET` that rustix does not know.
///
/// # Errors
/// ENOPROTOOPT where the kernel does not know it either; see setsockopt(2).
pub(super) fn set_option(socket: BorrowedFd<'_>, option: i32, on: bool) -> io::Result<()> {
    let value = libc::c_int::from(on);
    let length = libc::socklen_t::try_from(size_of_val(&value)).unwrap_or(0);
    // SAFETY: the kernel reads an int of ours.
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
        let sent = [null.as_fd(); MOST_FDS];
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&sent)));
        sendmsg(&theirs, &[IoSlice::new(b"X=1")], &mut control, SendFlags::empty()).expect("sent");
        let raw = receive(ours.as_fd()).expect("received");
        assert_eq!((raw.text.as_slice(), raw.fds.len()), (b"X=1".as_slice(), MOST_FDS));
        assert_eq!(raw.sender, Some(rustix::process::getpid()));
        assert_eq!(raw.pidfd.is_some(), has_pidfd);
        assert!(receive(ours.as_fd()).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock));
    }
}
