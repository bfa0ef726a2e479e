//! How fast connections are accepted.
//!
//! Workers share the loop with clients, and a client that connects again and again costs it 10 to 20 µs each time. So a
//! round accepts few, and further ones wait in the kernel's queue once there were many: whoever floods a socket waits, and
//! neither the loop nor a CPU is busy with it.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use super::rate::{Limit, Rate};
use crate::policy::Time;
use crate::sys::control_socket;

/// The connections that one round accepts.
const PER_ROUND: u32 = 8;

/// The connections over time. As many as the kernel's queue holds come at once, and then 1,000 in a second, so that the
/// last one in a full queue waits for an eighth of a second.
const LIMIT: Limit = Limit { burst: 128, refill: Duration::from_millis(1) };

/// How soon to try again without a descriptor left.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// When connections are accepted again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextAccept {
    /// When there is one: the listener is to be watched.
    Watch,
    /// After this time, whether or not one waits.
    After(Duration),
}

/// The rate at which a listener's connections are accepted.
#[derive(Debug)]
pub(crate) struct Accepting(Rate);

impl Accepting {
    pub(crate) fn new() -> Accepting {
        Accepting(Rate::new(LIMIT))
    }

    /// Accepts connections that wait, and says when to accept the next ones. An error is one of accept4(2) that concerns
    /// this process.
    pub(crate) fn accept(
        &mut self,
        now: Time,
        listener: BorrowedFd<'_>,
    ) -> (Vec<OwnedFd>, NextAccept, io::Result<()>) {
        let most = self.0.left(LIMIT, now).min(PER_ROUND);
        let (accepted, result) = control_socket::accept_some(listener, most as usize);
        let count = u32::try_from(accepted.len()).unwrap_or(PER_ROUND);
        self.0.count(count);
        let next = match result {
            Err(_) => NextAccept::After(RETRY_AFTER),
            Ok(()) if self.0.left(LIMIT, now) == 0 => NextAccept::After(LIMIT.refill * PER_ROUND),
            Ok(()) => NextAccept::Watch,
        };
        (accepted, next, result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn a_burst_is_accepted_round_by_round_and_then_so_many_in_a_second() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).expect("bound");
        listener.set_nonblocking(true).expect("every socket");
        let mut accepting = Accepting::new();
        let (mut now, mut total) = (Time::new(Duration::ZERO), 0);
        let second = now.after(Duration::from_secs(1));
        while now < second {
            // The queue is never empty.
            let clients: Vec<_> = (0..PER_ROUND).map(|_| UnixStream::connect(&path).expect("room")).collect();
            let (accepted, next, result) = accepting.accept(now, listener.as_fd());
            assert!(result.is_ok() && accepted.len() <= PER_ROUND as usize);
            total += accepted.len();
            match next {
                // The burst, which takes no time here.
                NextAccept::Watch => {
                    assert_eq!((accepted.len(), now), (PER_ROUND as usize, Time::new(Duration::ZERO)))
                }
                NextAccept::After(pause) => now = now.after(pause),
            }
            // What was not accepted goes with its client.
            drop(clients);
            while let Ok(Some(_)) = listener.accept().map(Some) {}
        }
        assert!((1000..=1000 + 128 + 8).contains(&total), "{total} in a second");
    }

    #[test]
    fn few_connections_never_wait() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).expect("bound");
        listener.set_nonblocking(true).expect("every socket");
        let mut accepting = Accepting::new();
        for millis in 0..5000 {
            let _client = UnixStream::connect(&path).expect("room");
            let now = Time::new(Duration::from_millis(millis * 2));
            let (accepted, next, result) = accepting.accept(now, listener.as_fd());
            assert!(result.is_ok());
            assert_eq!((accepted.len(), next), (1, NextAccept::Watch));
        }
    }
}
