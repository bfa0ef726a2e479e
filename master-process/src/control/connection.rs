//! One end of a connection that is never waited for: what is to be written to it, and whether it is still there.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};

use crate::policy::Time;
use crate::sys::handover::{Fd, Incoming, Outgoing};
use crate::sys::poller::Poller;

/// The connection is broken.
#[derive(Debug)]
pub(crate) struct Broken;

/// What the poller is to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Watch {
    /// Input.
    Input,
    /// Room for output.
    Output,
    /// The end of the connection.
    HangUp,
}

impl Watch {
    /// Begins to wait.
    ///
    /// # Errors
    /// Those of the poller.
    pub(crate) fn begin(self, fd: BorrowedFd<'_>, poller: &mut Poller, token: u64) -> io::Result<()> {
        match self {
            Watch::Input => poller.watch(fd, token),
            Watch::Output => poller.watch_room(fd, token),
            Watch::HangUp => poller.watch_hang_up(fd, token),
        }
    }
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Connection {
    fd: OwnedFd,
    output: Vec<u8>,
    written: usize,
    /// When the other side last did what was its turn to do.
    pub(crate) since: Time,
    /// Whether it will send nothing more.
    pub(crate) input_ended: bool,
}

/// A connection as a supervisor hands it over.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SavedConnection {
    fd: Fd,
    output: Vec<u8>,
    since: Time,
    input_ended: bool,
}

impl Connection {
    pub(crate) fn save(&self, out: &mut Outgoing) -> SavedConnection {
        let output = self.output.get(self.written..).unwrap_or_default().to_owned();
        SavedConnection {
            fd: out.keep(self.fd.as_fd()),
            output,
            since: self.since,
            input_ended: self.input_ended,
        }
    }

    pub(crate) fn resume(saved: SavedConnection, from: &mut Incoming) -> Connection {
        let SavedConnection { fd, output, since, input_ended } = saved;
        Connection { fd: from.take(fd), output, written: 0, since, input_ended }
    }

    pub(crate) fn new(fd: OwnedFd, now: Time) -> Connection {
        Connection { fd, output: Vec::new(), written: 0, since: now, input_ended: false }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The bytes that wait to be written.
    pub(crate) fn pending_output(&self) -> usize {
        self.output.len() - self.written
    }

    /// Reads once into `bytes`. 0: nothing is there, or nothing more will come.
    pub(crate) fn read(&mut self, bytes: &mut [u8]) -> Result<usize, Broken> {
        match rustix::io::read(&self.fd, bytes) {
            Ok(0) => {
                self.input_ended = true;
                Ok(0)
            }
            Ok(count) => Ok(count),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(0),
            Err(_broken) => Err(Broken),
        }
    }

    /// Adds to what is to be written. An answer about a thousand workers has a megabyte, which is not copied.
    pub(crate) fn send(&mut self, now: Time, mut bytes: Vec<u8>) {
        if self.pending_output() == 0 {
            (self.output, self.written, self.since) = (bytes, 0, now);
        } else {
            self.output.append(&mut bytes);
        }
    }

    /// Writes what there is room for. Returns whether any was written.
    pub(crate) fn write(&mut self) -> Result<bool, Broken> {
        let mut any = false;
        while self.written < self.output.len() {
            let flags = rustix::net::SendFlags::NOSIGNAL | rustix::net::SendFlags::DONTWAIT;
            match rustix::net::send(&self.fd, &self.output[self.written..], flags) {
                Ok(count) => {
                    self.written += count;
                    any = true;
                }
                Err(rustix::io::Errno::AGAIN) => return Ok(any),
                Err(rustix::io::Errno::INTR) => {}
                Err(_broken) => return Err(Broken),
            }
        }
        (self.output, self.written) = (Vec::new(), 0);
        Ok(any)
    }

    /// Whether the connection is closed from the other side, both ways.
    pub(crate) fn is_hung_up(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut state = [PollFd::new(&self.fd, PollFlags::empty())];
        let polled: io::Result<usize> =
            poll(&mut state, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).map_err(io::Error::from);
        polled.is_ok() && state[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }
}
