//! Closes descriptors that arrive with messages.
//!
//! The last close of a descriptor can block: for the peer of a socket with `SO_LINGER`, or for a file system that a
//! process serves. So a thread closes them. The number that waits for the thread has two limits:
//!
//! - At the first limit the socket refuses descriptors (`SO_PASSRIGHTS`, Linux 6.16): sendmsg(2) with descriptors,
//!   including `BARRIER=1`, fails with EPERM, and `READY=1` still arrives. Messages that are queued already are still
//!   received.
//! - At the second limit no message is received until the thread has caught up. Only a sender with many files in
//!   flight, or an older kernel, gets there.
//!
//! The alternatives are worse. Without room for the descriptors, the kernel would close them during recvmsg(2) and
//! block the whole supervisor. Refusing all descriptors would break `BARRIER=1`, which `systemd-notify` sends.

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

/// The second limit. A full queue of the default length (10 messages of 253 descriptors) is below it.
const MAX_WAITING: usize = 4096;

/// The first limit is this fraction of the second.
const REFUSING_FRACTION: usize = 4;

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
    /// An eventfd that becomes readable when the thread has caught up.
    drained: OwnedFd,
}

#[derive(Debug, Default)]
struct State {
    waiting: usize,
    refusing: bool,
}

/// Has a socket accept descriptors, as a new one does.
pub(super) fn accept_descriptors(socket: BorrowedFd<'_>) {
    // Before Linux 6.16 there is no such option.
    let _unknown_option = set_option(socket, SO_PASSRIGHTS, true);
}

impl ReceivedFds {
    /// Closes what `socket` receives.
    ///
    /// # Errors
    /// EMFILE, ENFILE, ENOMEM.
    pub(super) fn new(socket: BorrowedFd<'_>) -> io::Result<ReceivedFds> {
        let drained = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let socket = rustix::io::fcntl_dupfd_cloexec(socket, 3)?;
        // The supervisor needs descriptors for its workers, too.
        let limit = getrlimit(Resource::Nofile).maximum.and_then(|limit| usize::try_from(limit).ok());
        let most = MAX_WAITING.min(limit.unwrap_or(usize::MAX) / 4);
        let shared = Arc::new(Shared { state: Mutex::default(), socket, drained });
        Ok(ReceivedFds { shared, thread: OnceLock::new(), most })
    }

    /// Closes descriptors without blocking. The first call starts the thread. If it cannot be started, the call closes
    /// them itself.
    pub(super) fn close(&self, fds: Vec<OwnedFd>) {
        if fds.is_empty() {
            return;
        }
        let Some(thread) = self.thread.get_or_init(|| start(&self.shared)) else { return };
        self.shared.add(fds.len(), self.most / REFUSING_FRACTION);
        for fd in fds {
            // The thread runs as long as this sender exists.
            let _taken = thread.send(fd);
        }
    }

    /// Whether the limit is reached and no message may be received.
    pub(super) fn is_full(&self) -> bool {
        let state = self.shared.state();
        if state.waiting < self.most {
            return false;
        }
        // Resets an earlier event. The thread sets a new one under the same lock.
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
        // No code that holds the lock can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts descriptors that wait to be closed, and refuses more from `bound` on.
    fn add(&self, count: usize, bound: usize) {
        let mut state = self.state();
        state.waiting += count;
        if state.waiting >= bound && !state.refusing {
            state.refusing = true;
            // Before Linux 6.16 only the second limit applies.
            let _unknown_option = set_option(self.socket.as_fd(), SO_PASSRIGHTS, false);
        }
    }

    /// Counts a closed descriptor. When none is left, the socket accepts descriptors again.
    fn remove_one(&self) {
        let mut state = self.state();
        state.waiting -= 1;
        if state.waiting == 0 && state.refusing {
            state.refusing = false;
            let _unknown_option = set_option(self.socket.as_fd(), SO_PASSRIGHTS, true);
            // The write fails only if the counter is full.
            let _said_already = rustix::io::write(&self.drained, &1u64.to_ne_bytes());
        }
    }
}

fn start(shared: &Arc<Shared>) -> Option<Sender<OwnedFd>> {
    let (sender, receiver) = channel::<OwnedFd>();
    let shared = Arc::clone(shared);
    let thread = std::thread::Builder::new().name("notify-close".to_owned()).stack_size(64 * 1024);
    let started = thread.spawn(move || {
        for fd in receiver {
            do_not_linger(fd.as_fd());
            drop(fd);
            shared.remove_one();
        }
    });
    started.ok().map(|_running| sender)
}

/// Clears `SO_LINGER`, so the close does not wait for the socket's peer. The option belongs to the open file
/// description, so a sender that still has the socket loses it, too.
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
        // The thread takes the lock for each descriptor, so it does not run while this test holds the lock.
        received.shared.add(8, 2);
        assert!(received.is_full());
        for _ in 0..7 {
            received.shared.remove_one();
        }
        assert!(!received.is_full());
        assert!(rustix::io::read(&received.shared.drained, &mut [0u8; 8]).is_err(), "one is left");
        received.shared.remove_one();
        assert_eq!(rustix::io::read(&received.shared.drained, &mut [0u8; 8]), Ok(8), "the end is signalled");
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
