//! Closing the descriptors that came with messages, which nobody asked for.
//!
//! The last close of a descriptor may wait: for the peer of a socket with `SO_LINGER`, for a file system that a process
//! serves. So a thread closes them. What waits for it is bounded, in two steps:
//!
//! - At the first bound the socket refuses descriptors (`SO_PASSRIGHTS`, Linux 6.16): sendmsg(2) fails with EPERM for
//!   those who send some, `BARRIER=1` included, and `READY=1` arrives as before. What is in the queue already is still
//!   received.
//! - At the second bound no message is received until the thread has caught up. It takes a sender with many files in
//!   flight, or an older kernel.
//!
//! The alternatives are worse. Without room for them, the kernel would close the descriptors as we receive, and hold
//! the whole supervisor up. Always refusing them would break `BARRIER=1`, which `systemd-notify` sends.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use rustix::net::sockopt;
use rustix::process::{Resource, getrlimit};

use super::datagram::set_option;

/// `SO_PASSRIGHTS` of Linux 6.16, which the C library does not have yet.
const SO_PASSRIGHTS: i32 = 83;

/// The second bound. A queue of the default length (10 messages of 253 descriptors) fits below it.
const MOST: usize = 4096;

/// The first bound is this part of the second.
const REFUSING_PART: usize = 4;

/// The descriptors that wait to be closed.
#[derive(Debug)]
pub(super) struct ReceivedFds {
    shared: Arc<Shared>,
    thread: OnceLock<Option<Sender<OwnedFd>>>,
    most: usize,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// The notify socket.
    socket: OwnedFd,
    /// An eventfd: readable once the thread has caught up.
    drained: OwnedFd,
}

#[derive(Debug, Default)]
struct State {
    waiting: usize,
    refusing: bool,
}

impl ReceivedFds {
    /// For what `socket` receives.
    ///
    /// # Errors
    /// EMFILE, ENFILE, ENOMEM.
    pub(super) fn new(socket: BorrowedFd<'_>) -> io::Result<ReceivedFds> {
        let drained = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let socket = rustix::io::fcntl_dupfd_cloexec(socket, 3)?;
        // Workers need descriptors, too.
        let limit = getrlimit(Resource::Nofile).maximum.and_then(|limit| usize::try_from(limit).ok());
        let most = MOST.min(limit.unwrap_or(usize::MAX) / 4);
        let shared = Arc::new(Shared { state: Mutex::default(), socket, drained });
        Ok(ReceivedFds { shared, thread: OnceLock::new(), most })
    }

    /// Closes descriptors without waiting for it. The thread begins with the first; where none can be had, they are
    /// closed here.
    pub(super) fn close(&self, fds: Vec<OwnedFd>) {
        if fds.is_empty() {
            return;
        }
        let Some(thread) = self.thread.get_or_init(|| start(&self.shared)) else { return };
        self.shared.add(fds.len(), self.most / REFUSING_PART);
        for fd in fds {
            // The thread lives as long as this sender, so there is somebody to take it.
            let _taken = thread.send(fd);
        }
    }

    /// Whether no more may be received.
    pub(super) fn is_full(&self) -> bool {
        let state = self.shared.state();
        if state.waiting < self.most {
            return false;
        }
        // What was said of an earlier time is over; the thread says it anew under the same lock.
        let _nothing_said = rustix::io::read(&self.shared.drained, &mut [0u8; 8]);
        true
    }

    /// Readable when [`is_full`](Self::is_full) may have changed.
    pub(super) fn drained(&self) -> BorrowedFd<'_> {
        self.shared.drained.as_fd()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that holds the lock can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts descriptors that are to be closed, and refuses more from `bound` on.
    fn add(&self, count: usize, bound: usize) {
        let mut state = self.state();
        state.waiting += count;
        if state.waiting >= bound && !state.refusing {
            state.refusing = true;
            // Before Linux 6.16 the second bound has to do.
            let _unknown_option = set_option(self.socket.as_fd(), SO_PASSRIGHTS, false);
        }
    }

    /// Counts one that is closed. When none is left, descriptors are welcome again.
    fn remove_one(&self) {
        let mut state = self.state();
        state.waiting -= 1;
        if state.waiting == 0 && state.refusing {
            state.refusing = false;
            let _unknown_option = set_option(self.socket.as_fd(), SO_PASSRIGHTS, true);
            // Only a counter that is full already refuses this.
            let _said_already = rustix::io::write(&self.drained, &1u64.to_ne_bytes());
        }
    }
}

fn start(shared: &Arc<Shared>) -> Option<Sender<OwnedFd>> {
    let (sender, receiver) = channel::<OwnedFd>();
    let shared = Arc::clone(shared);
    let thread = std::thread::Builder::new().name("notify-closer".to_owned()).stack_size(64 * 1024);
    let started = thread.spawn(move || {
        for fd in receiver {
            do_not_linger(fd.as_fd());
            drop(fd);
            shared.remove_one();
        }
    });
    started.ok().map(|_running| sender)
}

/// Keeps a close from waiting for a socket's peer. Whoever sent us a socket that lingers, and still has it, finds that
/// it does so no more: the price for not being held up by those who send it to us and close it.
fn do_not_linger(fd: BorrowedFd<'_>) {
    if let Ok(Some(_time)) = sockopt::socket_linger(fd) {
        let _still_lingers = sockopt::set_socket_linger(fd, None);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::time::{Duration, Instant};

    use super::*;

    fn pipes(count: usize) -> Vec<OwnedFd> {
        (0..count).map(|_| std::io::pipe().expect("a pipe").0.into()).collect()
    }

    #[test]
    fn at_the_bound_nothing_is_received_until_the_thread_has_caught_up() {
        let (ours, _theirs) = UnixDatagram::pair().expect("a pair");
        let received = ReceivedFds { most: 8, ..ReceivedFds::new(ours.as_fd()).expect("there is room") };
        // The thread takes the lock for each descriptor: it stands still for as long as we have it.
        received.shared.add(8, 2);
        assert!(received.is_full());
        for _ in 0..7 {
            received.shared.remove_one();
        }
        assert!(!received.is_full());
        assert!(rustix::io::read(&received.shared.drained, &mut [0u8; 8]).is_err(), "one is left");
        received.shared.remove_one();
        assert_eq!(rustix::io::read(&received.shared.drained, &mut [0u8; 8]), Ok(8), "it says so");
        assert!(!received.shared.state().refusing);
    }

    #[test]
    fn a_socket_that_lingers_is_closed_at_once() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let stream = std::net::TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        sockopt::set_socket_linger(&stream, Some(Duration::from_secs(60))).expect("every Linux");
        stream.set_nonblocking(true).expect("every Linux");
        while std::io::Write::write(&mut &stream, &[0; 65536]).is_ok() {}
        let (ours, _theirs) = UnixDatagram::pair().expect("a pair");
        let received = ReceivedFds::new(ours.as_fd()).expect("there is room");
        received.close(vec![stream.into()]);
        received.close(pipes(3));
        let start = Instant::now();
        while received.shared.state().waiting > 0 {
            assert!(start.elapsed() < Duration::from_secs(20), "the thread is held up");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
