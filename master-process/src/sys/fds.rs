//! The descriptor table of the supervisor: inheritance and limits.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Sets close-on-exec on every descriptor from 3 on: workers must not inherit what our parent left open.
///
/// # Errors
/// Those of close_range(2). Before Linux 5.11, which has no flag for this, and if a container engine's seccomp profile
/// denies the call, those of reading `/proc/self/fd`.
pub fn close_on_exec() -> io::Result<()> {
    let (first, last): (libc::c_uint, libc::c_uint) = (3, libc::c_uint::MAX);
    // SAFETY: the call changes flags of descriptors and touches no memory.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, libc::CLOSE_RANGE_CLOEXEC) };
    match io::Error::last_os_error() {
        _stale if result == 0 => Ok(()),
        error if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS | libc::EPERM)) => {
            close_on_exec_one_by_one()
        }
        error => Err(error),
    }
}

/// Whether close_range(2) is available: seccomp profiles of older container engines deny it.
pub fn has_close_range() -> bool {
    let nothing = libc::c_uint::MAX;
    // SAFETY: no descriptor has that number, so none is closed.
    unsafe { libc::syscall(libc::SYS_close_range, nothing, nothing, 0) == 0 }
}

fn close_on_exec_one_by_one() -> io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let number = entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok());
        if let Some(number) = number.filter(|number| *number >= 3) {
            // SAFETY: the call changes a flag. The kernel rejects a number that is not open any more, such as the
            // directory's own.
            unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
    Ok(())
}

/// The sockets `3` to `3 + count - 1`, which the parent process passed to us: sd_listen_fds(3). The call sets
/// close-on-exec on them.
///
/// It must be called once, before anything else opens a descriptor: a count that is too large would otherwise cover
/// descriptors of this program, which would then have two owners.
///
/// # Errors
/// `InvalidInput`, with the number, if one of them is not open or is not a socket. Then the call takes none of them.
pub fn take_inherited(count: RawFd) -> io::Result<Vec<OwnedFd>> {
    let end = 3 + RawFd::from(u16::try_from(count).map_err(|_too_large| wrong_count(count, "is too large"))?);
    for number in 3..end {
        check_socket(number)
            .map_err(|why| wrong_count(count, &format!("names descriptor {number}, which {why}")))?;
    }
    // SAFETY: all of them are open, and no other code has opened or taken them: this runs first. Setting a flag of an
    // open descriptor changes nothing else.
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

/// The reason why a descriptor is not a socket that our parent passed.
fn check_socket(number: RawFd) -> Result<(), &'static str> {
    // SAFETY: the call only checks whether the number is open.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err("is not open");
    }
    // SAFETY: it is open, and stays open during the call: this program has one thread at this time.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::net::sockopt::socket_type(fd).map(drop).map_err(|_not_a_socket| "is not a socket")
}

/// A close-on-exec duplicate of `fd` with a number of at least `lowest`.
///
/// # Errors
/// EMFILE; EINVAL if `lowest` is beyond `RLIMIT_NOFILE`; fcntl(2).
pub fn copy_from(fd: BorrowedFd<'_>, lowest: RawFd) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(fd, lowest)?)
}

/// `fd` itself if its number is at least `lowest`, otherwise a duplicate.
///
/// # Errors
/// Those of [`copy_from`].
pub fn move_from(fd: OwnedFd, lowest: RawFd) -> io::Result<OwnedFd> {
    if fd.as_raw_fd() >= lowest { Ok(fd) } else { copy_from(fd.as_fd(), lowest) }
}

/// Raises the soft limit of open files to the hard limit and returns the old limits, which the workers get back.
///
/// The supervisor holds two descriptors for each worker, one more with `notify:fd`, and one more if it monitors with
/// procfs.
///
/// # Errors
/// None: a process may always raise its soft limit to the hard limit; setrlimit(2).
pub fn raise_limit() -> io::Result<Rlimit> {
    let given = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: given.maximum, maximum: given.maximum })?;
    Ok(given)
}
