//! Watches many listeners through one descriptor: an epoll instance, which does not keep them open.
//!
//! An io_uring keeps the files that it polls open: a listener that we close would keep listening until its poll is
//! cancelled.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

use super::handover::{Fd, Incoming, Outgoing};

/// The number of events that one call takes.
const MAX_EVENTS: usize = 64;

/// The epoll instance.
#[derive(Debug)]
pub struct QueueWatch {
    epoll: OwnedFd,
}

impl QueueWatch {
    /// # Errors
    /// EMFILE, ENFILE, ENOMEM; see epoll_create(2).
    pub fn new() -> io::Result<QueueWatch> {
        Ok(QueueWatch { epoll: epoll::create(CreateFlags::CLOEXEC)? })
    }

    /// The instance. It watches the same listeners in the next program, which has them under the same numbers.
    pub fn save(&self, out: &mut Outgoing) -> Fd {
        out.keep(self.epoll.as_fd())
    }

    /// Goes on with it.
    pub fn resume(saved: Fd, from: &mut Incoming) -> QueueWatch {
        QueueWatch { epoll: from.take(saved) }
    }

    /// Watches a listener for connections and for its shutdown.
    ///
    /// The event repeats as long as a connection is queued: the caller uses
    /// [`ignore_connections`](Self::ignore_connections) to stop it.
    ///
    /// # Errors
    /// ENOMEM and ENOSPC of epoll_ctl(2).
    pub fn watch(&self, fd: BorrowedFd<'_>, id: u64) -> io::Result<()> {
        self.set(fd, id, EventFlags::IN)
    }

    /// Watches a listener for its shutdown only, which epoll always reports.
    ///
    /// # Errors
    /// Those of [`watch`](Self::watch).
    pub fn ignore_connections(&self, fd: BorrowedFd<'_>, id: u64) -> io::Result<()> {
        self.set(fd, id, EventFlags::empty())
    }

    fn set(&self, fd: BorrowedFd<'_>, id: u64, events: EventFlags) -> io::Result<()> {
        let data = EventData::new_u64(id);
        match epoll::modify(&self.epoll, fd, data, events) {
            Err(rustix::io::Errno::NOENT) => Ok(epoll::add(&self.epoll, fd, data, events)?),
            result => Ok(result?),
        }
    }

    /// Stops watching a socket. Closing it is not enough if a worker has it open as well.
    pub fn forget(&self, fd: BorrowedFd<'_>) {
        let _not_watched = epoll::delete(&self.epoll, fd);
    }

    /// Appends the ids of the sockets that have events. Does not block.
    pub fn take(&self, ids: &mut Vec<u64>) {
        if let Ok(events) = self.events() {
            ids.extend(events.iter().map(|event| event.data.u64()));
        }
    }

    /// The ids of all sockets that have events, which they keep; `None`: they are many. The others that are watched for connections
    /// have none, which takes no look at each of them.
    pub fn peek(&self) -> Option<Vec<u64>> {
        let events = self.events().ok().filter(|events| events.len() < MAX_EVENTS)?;
        Some(events.iter().map(|event| event.data.u64()).collect())
    }

    fn events(&self) -> io::Result<Vec<Event>> {
        let mut events: Vec<Event> = Vec::with_capacity(MAX_EVENTS);
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&now))?;
        Ok(events)
    }
}

impl AsFd for QueueWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    fn taken(watch: &QueueWatch) -> Vec<u64> {
        let mut ids = Vec::new();
        watch.take(&mut ids);
        ids
    }

    #[test]
    fn a_connection_and_a_shutdown_are_told_and_a_closed_listener_is_closed() {
        let watch = QueueWatch::new().expect("an epoll instance");
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("it has one");
        watch.watch(listener.as_fd(), 7).expect("watched");
        assert_eq!(taken(&watch), [0; 0]);
        assert_eq!(watch.peek(), Some(Vec::new()));
        let _client = TcpStream::connect(address).expect("it listens");
        assert_eq!(watch.peek(), Some(vec![7]));
        assert_eq!(taken(&watch), [7], "it is still there");
        watch.ignore_connections(listener.as_fd(), 7).expect("watched");
        assert_eq!(taken(&watch), [0; 0], "connections are ignored");
        rustix::net::shutdown(&listener, rustix::net::Shutdown::Both).expect("shut down");
        assert_eq!(taken(&watch), [7], "a shutdown is not");
        let other = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = other.local_addr().expect("it has one");
        watch.watch(other.as_fd(), 8).expect("watched");
        drop(other);
        TcpStream::connect(address).expect_err("a watch does not keep it open");
    }
}
