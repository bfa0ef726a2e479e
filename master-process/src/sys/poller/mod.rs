//! Waits for descriptors, with io_uring or epoll.
//!
//! Both report readiness only. A watch reports once; the caller sets it again for the next event.

mod epoll;
mod uring;

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use epoll::Epoll;
use uring::Ring;

/// The mechanism that waits.
pub enum Poller {
    /// io_uring: one call submits new watches and waits.
    Uring(Box<Ring>),
    /// epoll, if io_uring is unavailable: one more call for each watch.
    Epoll(Epoll),
}

impl Poller {
    /// A poller with io_uring.
    ///
    /// # Errors
    /// ENOSYS or EPERM if io_uring is unavailable (`kernel.io_uring_disabled`, a container engine's seccomp profile);
    /// `Unsupported` if it cannot wait with a timeout (before Linux 5.11); io_uring_setup(2).
    pub fn uring() -> io::Result<Poller> {
        Ok(Poller::Uring(Box::new(Ring::new()?)))
    }

    /// A poller with epoll.
    ///
    /// # Errors
    /// EMFILE, ENFILE, ENOMEM; epoll_create(2).
    pub fn epoll() -> io::Result<Poller> {
        Epoll::new().map(Poller::Epoll)
    }

    /// Watches `fd` until it is readable or hung up, once. [`wait`](Self::wait) returns `token` then. With epoll, a
    /// descriptor has one token at a time, and closing it ends the watch.
    ///
    /// # Errors
    /// ENOMEM and ENOSPC of epoll_ctl(2), if the kernel has no room for another watch.
    pub fn watch(&mut self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        match self {
            Poller::Uring(ring) => {
                ring.watch(fd, token);
                Ok(())
            }
            Poller::Epoll(epoll) => epoll.watch(fd, token),
        }
    }

    /// Watches `fd` until it is hung up, once. Readable data is not reported.
    ///
    /// # Errors
    /// Those of [`watch`](Self::watch).
    pub fn watch_hang_up(&mut self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        match self {
            Poller::Uring(ring) => {
                ring.watch_hang_up(fd, token);
                Ok(())
            }
            Poller::Epoll(epoll) => epoll.watch_hang_up(fd, token),
        }
    }

    /// Watches `fd` until it has room for output or is hung up, once.
    ///
    /// # Errors
    /// Those of [`watch`](Self::watch).
    pub fn watch_room(&mut self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        match self {
            Poller::Uring(ring) => {
                ring.watch_room(fd, token);
                Ok(())
            }
            Poller::Epoll(epoll) => epoll.watch_room(fd, token),
        }
    }

    /// Ends the watch of `token`. The caller must do this before it closes the descriptor, because the ring would keep
    /// the file open.
    pub fn forget(&mut self, token: u64) {
        match self {
            Poller::Uring(ring) => ring.forget(token),
            Poller::Epoll(_) => {}
        }
    }

    /// Waits until a descriptor is ready or `limit` has passed (`None`: no limit), and appends the tokens of those that
    /// are ready. It can return without any.
    ///
    /// # Errors
    /// Only permanent errors; io_uring_enter(2) and epoll_wait(2).
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
            assert_eq!(wait(poller, 0), NOTHING, "it is still readable, and the watch was not set again");
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
    fn room_for_output_is_readiness() {
        each(|poller| {
            let (mut reader, writer) = std::io::pipe().expect("a pipe");
            rustix::io::ioctl_fionbio(&writer, true).expect("every descriptor");
            while rustix::io::write(&writer, &[0; 4096]).is_ok() {}
            poller.watch_room(writer.as_fd(), 7).expect("watched");
            assert_eq!(wait(poller, 0), NOTHING, "it is full");
            std::io::Read::read_exact(&mut reader, &mut [0; 65536]).expect("it is full");
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
            let error = writer.write_all(b"x").expect_err("the reading end is closed");
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
