//! The supervisor's own descriptor table: who inherits what, and how large it may grow.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Marks every descriptor from 3 on close-on-exec: whatever our own parent left open is not a worker's.
///
/// # Errors
/// Those of close_range(2); before Linux 5.11, which has no flag for this, and where a container engine's profile denies
/// the call, of reading `/proc/self/fd`.
pub fn close_on_exec() -> io::Result<()> {
    let (first, last): (libc::c_uint, libc::c_uint) = (3, libc::c_uint::MAX);
    // SAFETY: the call changes flags of descriptors and touches no memory of ours.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, libc::CLOSE_RANGE_CLOEXEC) };
    match io::Error::last_os_error() {
        _stale if result == 0 => Ok(()),
        error if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS | libc::EPERM)) => {
            close_on_exec_one_by_one()
        }
        error => Err(error),
    }
}

/// Whether close_range(2) can be called here: the profiles of older container engines do not know it.
pub fn has_close_range() -> bool {
    let nothing = libc::c_uint::MAX;
    // SAFETY: no descriptor has that number, so none is closed.
    unsafe { libc::syscall(libc::SYS_close_range, nothing, nothing, 0) == 0 }
}

fn close_on_exec_one_by_one() -> io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let number = entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok());
        if let Some(number) = number.filter(|number| *number >= 3) {
            // SAFETY: the call changes a flag; a number that is not open any more (the directory's own) is refused.
            unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
    Ok(())
}

/// The sockets `3` to `3 + count - 1`, which our own parent left open for us to own: sd_listen_fds(3). They are
/// close-on-exec from here on.
///
/// Call it once, before anything else opens a descriptor: a count that is too large would otherwise reach descriptors
/// of this program, which then had two owners.
///
/// # Errors
/// `InvalidInput` where one of them is not open or not a socket, with its number; none of them is taken then.
pub fn take_inherited(count: RawFd) -> io::Result<Vec<OwnedFd>> {
    let end = 3 + RawFd::from(u16::try_from(count).map_err(|_too_large| wrong_count(count, "is too large"))?);
    for number in 3..end {
        check_socket(number)
            .map_err(|why| wrong_count(count, &format!("names descriptor {number}, which {why}")))?;
    }
    // SAFETY: all of them are open, and no code of ours has opened or taken them: this runs first. Setting the flag of
    // an open descriptor changes nothing else.
    Ok((3..end)
        .map(|number| unsafe {
            libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC);
            OwnedFd::from_raw_fd(number)
        })
        .collect())
}

fn wrong_count(count: RawFd, why: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("the count {count} {why}; check what sets LISTEN_FDS"),
    )
}

/// What is wrong with a descriptor that should be a socket of our parent's.
fn check_socket(number: RawFd) -> Result<(), &'static str> {
    // SAFETY: the call only asks whether the number is in use.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err("is not open");
    }
    // SAFETY: it is open, and nobody closes it during the call: this program has one thread as yet.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::net::sockopt::socket_type(fd).map(drop).map_err(|_not_a_socket| "is not a socket")
}

/// A close-on-exec copy of `fd` with a number of at least `lowest`.
///
/// # Errors
/// EMFILE, and EINVAL where `lowest` lies beyond `RLIMIT_NOFILE`; see fcntl(2).
pub fn copy_from(fd: BorrowedFd<'_>, lowest: RawFd) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(fd, lowest)?)
}

/// The same descriptor, with a number of at least `lowest`.
///
/// # Errors
/// As [`copy_from`].
pub fn move_from(fd: OwnedFd, lowest: RawFd) -> io::Result<OwnedFd> {
    if fd.as_raw_fd() >= lowest { Ok(fd) } else { copy_from(fd.as_fd(), lowest) }
}

/// Raises the soft limit of open files to the hard one, and returns what it was: the workers get that back.
///
/// A supervisor holds two descriptors for a worker, one more with `notify:fd`, and one where procfs measures.
///
/// # Errors
/// None on a sane kernel: a process may always raise its soft limit so far; see setrlimit(2).
pub fn raise_limit() -> io::Result<Rlimit> {
    let given = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: given.maximum, maximum: given.maximum })?;
    Ok(given)
}
