//! Waiting for descriptors, by io_uring or by epoll.
//!
//! Both carry readiness only, and a watch is for once: whoever wants more asks again.

mod epoll;
mod uring;

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use epoll::Epoll;
use uring::Ring;

/// The way in which we wait.
pub enum Poller {
    /// One call submits new watches and waits.
    Uring(Box<Ring>),
    /// Where io_uring is not to be had: one call more for each watch.
    Epoll(Epoll),
}

impl Poller {
    /// io_uring.
    ///
    /// # Errors
    /// ENOSYS or EPERM where it is not to be had (`kernel.io_uring_disabled`, a container engine's seccomp
    /// profile), `Unsupported` where it cannot wait with a time-out (before Linux 5.11); see
    /// io_uring_setup(2).
    pub fn uring() -> io::Result<Poller> {
        Ok(Poller::Uring(Box::new(Ring::new()?)))
    }

    /// epoll, which every Linux has.
    ///
    /// # Errors
    /// EMFILE, ENFILE, ENOMEM; see epoll_create(2).
    pub fn epoll() -> io::Result<Poller> {
        Epoll::new().map(Poller::Epoll)
    }

    /// Watches `fd` until it is readable or hung up, once; `token` comes back from [`wait`](Self::wait). With
    /// epoll, a descriptor has one token at a time, and closing it ends the watch.
    ///
    /// # Errors
    /// ENOMEM and ENOSPC of epoll_ctl(2), where the kernel has no room for another watch.
    pub fn watch(&mut self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        match self {
            Poller::Uring(ring) => {
                ring.watch(fd, token);
                Ok(())
            }
            Poller::Epoll(epoll) => epoll.watch(fd, token),
        }
    }

    /// Watches `fd` until it is hung up, whatever there is to read, once.
    ///
    /// # Errors
    /// As [`watch`](Self::watch).
    pub fn watch_hang_up(&mut self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        match self {
            Poller::Uring(ring) => {
                ring.watch_hang_up(fd, token);
                Ok(())
            }
            Poller::Epoll(epoll) => epoll.watch_hang_up(fd, token),
        }
    }

    /// Ends the watch of `token`, whose descriptor the caller closes next: the ring would hold it open.
    pub fn forget(&mut self, token: u64) {
        match self {
            Poller::Uring(ring) => ring.forget(token),
            Poller::Epoll(_) => {}
        }
    }

    /// Waits until something is ready or `limit` has passed (`None`: for ever), and appends the tokens of what
    /// is. It may return with none.
    ///
    /// # Errors
    /// Those that no later try would mend; see io_uring_enter(2) and epoll_wait(2).
    pub fn wait(&mut self, limit: Option<Duration>, ready: &mut Vec<u64>) -> io::Result<()> {
        match self {
            Poller::Uring(ring) => ring.wait(limit, ready),
            Poller::Epoll(epoll) => epoll.wait(limit, ready),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;

    const NOTHING: [u64; 0] = [];

    fn each(test: impl Fn(&mut Poller)) {
        test(&mut Poller::epoll().expect("every Linux has epoll"));
        test(&mut Poller::uring().expect("this machine has io_uring"));
    }

    fn wait(poller: &mut Poller, millis: u64) -> Vec<u64> {
        let mut ready = Vec::new();
        poller.wait(Some(Duration::from_millis(millis)), &mut ready).expect("it waits");
        ready
    }

    #[test]
    fn a_watch_is_for_once_and_can_be_set_again() {
        each(|poller| {
            let (reader, mut writer) = std::io::pipe().expect("a pipe");
            poller.watch(reader.as_fd(), 7).expect("watched");
            assert_eq!(wait(poller, 0), NOTHING);
            writer.write_all(b"x").expect("written");
            assert_eq!(wait(poller, 10_000), [7]);
            assert_eq!(wait(poller, 0), NOTHING, "it is still readable, and nobody has asked again");
            poller.watch(reader.as_fd(), 8).expect("watched");
            assert_eq!(wait(poller, 10_000), [8]);
        });
    }

    #[test]
    fn a_hang_up_is_readiness() {
        each(|poller| {
            let (reader, writer) = std::io::pipe().expect("a pipe");
            poller.watch(reader.as_fd(), 7).expect("watched");
            drop(writer);
            assert_eq!(wait(poller, 10_000), [7]);
        });
    }

    #[test]
    fn what_is_readable_is_no_hang_up() {
        each(|poller| {
            let (reader, mut writer) = std::io::pipe().expect("a pipe");
            poller.watch_hang_up(reader.as_fd(), 7).expect("watched");
            writer.write_all(b"x").expect("written");
            assert_eq!(wait(poller, 0), NOTHING);
            drop(writer);
            assert_eq!(wait(poller, 10_000), [7]);
        });
    }

    #[test]
    fn what_is_forgotten_and_closed_is_heard_of_no_more() {
        each(|poller| {
            let (reader, mut writer) = std::io::pipe().expect("a pipe");
            poller.watch(reader.as_fd(), 7).expect("watched");
            assert_eq!(wait(poller, 0), NOTHING);
            poller.forget(7);
            assert_eq!(wait(poller, 0), NOTHING);
            drop(reader);
            let error = writer.write_all(b"x").expect_err("nobody holds the reading end any more");
            assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
        });
    }

    #[test]
    fn a_wait_lasts_as_long_as_it_should() {
        each(|poller| {
            let since = std::time::Instant::now();
            wait(poller, 30);
            assert!(since.elapsed() >= Duration::from_millis(30), "an early end would be a spin");
        });
    }

    #[test]
    fn more_watches_than_the_queue_has_entries_are_all_served() {
        each(|poller| {
            let pipes: Vec<_> = (0..300).map(|_| std::io::pipe().expect("a pipe")).collect();
            for (token, (reader, _)) in (0..).zip(&pipes) {
                poller.watch(reader.as_fd(), token).expect("watched");
            }
            drop(
                pipes
                    .iter()
                    .map(|(_, writer)| writer)
                    .map(|mut writer| writer.write_all(b"x"))
                    .collect::<Vec<_>>(),
            );
            let mut ready = Vec::new();
            while ready.len() < 300 {
                let before = ready.len();
                poller.wait(Some(Duration::from_secs(10)), &mut ready).expect("it waits");
                assert!(ready.len() > before, "{before} of 300");
            }
            ready.sort_unstable();
            assert!(ready.into_iter().eq(0..300));
        });
    }
}
