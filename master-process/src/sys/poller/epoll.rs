//! The poller with epoll(7).

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

/// The number of events that one call takes. The rest comes with the next call.
const MAX_EVENTS: usize = 64;

/// The epoll instance.
pub struct Epoll {
    fd: OwnedFd,
}

impl Epoll {
    pub(super) fn new() -> io::Result<Epoll> {
        Ok(Epoll { fd: epoll::create(CreateFlags::CLOEXEC)? })
    }

    pub(super) fn watch(&mut self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        self.add(fd, token, EventFlags::IN)
    }

    pub(super) fn watch_room(&mut self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        self.add(fd, token, EventFlags::OUT)
    }

    /// epoll reports EPOLLHUP and EPOLLERR without a request; epoll_ctl(2).
    pub(super) fn watch_hang_up(&mut self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        self.add(fd, token, EventFlags::empty())
    }

    fn add(&mut self, fd: BorrowedFd<'_>, token: u64, events: EventFlags) -> io::Result<()> {
        let (data, once) = (EventData::new_u64(token), events | EventFlags::ONESHOT);
        match epoll::add(&self.fd, fd, data, once) {
            // After its event, a one-shot registration stays in the instance, disabled.
            Err(rustix::io::Errno::EXIST) => Ok(epoll::modify(&self.fd, fd, data, once)?),
            result => Ok(result?),
        }
    }

    pub(super) fn wait(&mut self, limit: Option<Duration>, ready: &mut Vec<u64>) -> io::Result<()> {
        let mut events = [Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; MAX_EVENTS];
        let limit = limit.map(whole_milliseconds);
        match epoll::wait(&self.fd, &mut events, limit.as_ref()) {
            Ok(count) => {
                ready.extend(events.iter().take(count).map(|event| event.data.u64()));
                Ok(())
            }
            Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Rounds up. epoll_wait(2) has a resolution of milliseconds (epoll_pwait2 needs Linux 5.11), and a wait that ends too
/// early would find nothing to do.
fn whole_milliseconds(limit: Duration) -> Timespec {
    let millis = limit.as_nanos().div_ceil(1_000_000).min(i32::MAX.unsigned_abs().into());
    let millis = i64::try_from(millis).unwrap_or(i64::MAX);
    Timespec { tv_sec: millis / 1000, tv_nsec: (millis % 1000) * 1_000_000 }
}
