//! The registrations in epoll instances of another process.
//!
//! When another socket replaces a descriptor, the registrations of the old socket are lost. This module reads them
//! before and restores them.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::event::epoll::{self, EventData, EventFlags};

use super::deferred_close::close_async;
use super::peer::Peer;

/// The number of descriptors of a process that are searched. A server registers its listener early, when it has few
/// open.
const MAX_DESCRIPTORS: usize = 4096;

/// A registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The descriptor of the epoll instance in the other process.
    pub epoll: RawFd,
    events: u32,
    data: u64,
}

/// The registrations of descriptor `fd`, from `/proc/PID/fdinfo`: proc_pid_fdinfo(5). This reads all descriptors of the
/// process, so the loop must not call it.
///
/// # Errors
/// EACCES if we may not inspect it; E2BIG if there are too many descriptors.
pub fn find(peer: &Peer, fd: RawFd) -> io::Result<Vec<Entry>> {
    let mut found = Vec::new();
    for epoll in peer.epolls(MAX_DESCRIPTORS)? {
        let info = peer.descriptor_info(epoll)?;
        found.extend(info.lines().filter_map(|line| parse(line, epoll, fd)));
    }
    Ok(found)
}

/// Parses `tfd: 5 events: 80000019 data: ffffffff00000005 pos:0 ino:… sdev:…`. The first number is decimal, the others
/// are hexadecimal.
fn parse(line: &str, epoll: RawFd, fd: RawFd) -> Option<Entry> {
    let mut words = line.strip_prefix("tfd:")?.split_whitespace();
    if words.next()?.parse::<RawFd>().ok()? != fd {
        return None;
    }
    let mut field = |name: &str| words.by_ref().skip_while(|word| *word != name).nth(1);
    let events = u32::from_str_radix(field("events:")?, 16).ok()?;
    let data = u64::from_str_radix(field("data:")?, 16).ok()?;
    Some(Entry { epoll, events, data })
}

/// Registers `socket` as in `entries`, under the number `fd` that it has in the other process. That process can change
/// and remove the registrations as if they were its own.
///
/// # Errors
/// Those of pidfd_getfd(2) and epoll_ctl(2); EAGAIN if no thread can be started.
pub fn put_back(peer: &Peer, socket: BorrowedFd<'_>, fd: RawFd, entries: &[Entry]) -> io::Result<()> {
    for entry in entries {
        let epoll = peer.copy(entry.epoll)?;
        let added = add(&epoll, socket, fd, *entry);
        close_async(epoll);
        added?;
    }
    Ok(())
}

/// Adds one registration. The kernel identifies a registration by file and descriptor number, so the call must come
/// from a descriptor table in which the socket has that number. A thread with its own table makes it.
fn add(epoll: &OwnedFd, socket: BorrowedFd<'_>, fd: RawFd, entry: Entry) -> io::Result<()> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("epoll".to_owned()).stack_size(64 * 1024);
        let running = thread.spawn_scoped(scope, || {
            // SAFETY: from here on this thread has its own descriptor table, which ends with the thread. It closes
            // nothing in it except what dup2 replaces, and owns nothing in it.
            let placed = unsafe {
                match libc::unshare(libc::CLONE_FILES) {
                    0 => libc::dup2(socket.as_raw_fd(), fd),
                    failed => failed,
                }
            };
            if placed < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: dup2 has just opened this number in the thread's table.
            let placed = unsafe { BorrowedFd::borrow_raw(fd) };
            let flags = EventFlags::from_bits_retain(entry.events);
            Ok(epoll::add(epoll, placed, EventData::new_u64(entry.data), flags)?)
        })?;
        running.join().unwrap_or_else(|_| Err(io::Error::other("the thread for epoll_ctl ended early")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_by_its_fields() {
        let line = "tfd:        5 events: 80000019 data: ffffffff00000005  pos:0 ino:2f sdev:8";
        assert_eq!(
            parse(line, 4, 5),
            Some(Entry { epoll: 4, events: 0x8000_0019, data: 0xffff_ffff_0000_0005 })
        );
        assert_eq!(parse(line, 4, 6), None);
        assert_eq!(parse("flags:\t02", 4, 5), None);
    }
}
