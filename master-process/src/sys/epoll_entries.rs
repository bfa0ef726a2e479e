//! The entries of another process's epoll instances: what was registered under a descriptor is lost when another socket
//! is put under its number, and can be put back.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::event::epoll::{self, EventData, EventFlags};

use super::deferred_close::close_async;
use super::peer::Peer;

/// Descriptors of a process that are looked at. A server registers its listener early, and has few open by then.
const MAX_DESCRIPTORS: usize = 4096;

/// A registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The epoll instance's descriptor, in the process that was looked at.
    pub epoll: RawFd,
    events: u32,
    data: u64,
}

/// The registrations of descriptor `fd`, as `/proc/PID/fdinfo` names them: proc_pid_fdinfo(5). Not for the loop: this
/// walks over all descriptors of the process.
///
/// # Errors
/// EACCES where we may not look; E2BIG where there are too many descriptors.
pub fn find(peer: &Peer, fd: RawFd) -> io::Result<Vec<Entry>> {
    let mut found = Vec::new();
    for epoll in peer.epolls(MAX_DESCRIPTORS)? {
        let info = peer.descriptor_info(epoll)?;
        found.extend(info.lines().filter_map(|line| parse(line, epoll, fd)));
    }
    Ok(found)
}

/// `tfd: 5 events: 80000019 data: ffffffff00000005 pos:0 ino:… sdev:…`: the numbers are decimal, then hexadecimal.
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

/// Registers `socket` in the epoll instances of a process as `entries` say, under its number `fd` there: the process can
/// change and remove the registration as its own.
///
/// # Errors
/// Those of pidfd_getfd(2) and epoll_ctl(2), and EAGAIN where no thread can be started.
pub fn put_back(peer: &Peer, socket: BorrowedFd<'_>, fd: RawFd, entries: &[Entry]) -> io::Result<()> {
    for entry in entries {
        let epoll = peer.copy(entry.epoll)?;
        let added = add(&epoll, socket, fd, *entry);
        close_async(epoll);
        added?;
    }
    Ok(())
}

/// The kernel knows a registration by file and number: so it is made from a table in which the socket has that number,
/// which is that of a thread of its own.
fn add(epoll: &OwnedFd, socket: BorrowedFd<'_>, fd: RawFd, entry: Entry) -> io::Result<()> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("epoll".to_owned()).stack_size(64 * 1024);
        let running = thread.spawn_scoped(scope, || {
            // SAFETY: from here on this thread has a table of its own, which ends with it; it closes nothing in it but what
            // dup2 replaces, and owns nothing there.
            let placed = unsafe {
                match libc::unshare(libc::CLONE_FILES) {
                    0 => libc::dup2(socket.as_raw_fd(), fd),
                    failed => failed,
                }
            };
            if placed < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: the number was put into this thread's table just now.
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
