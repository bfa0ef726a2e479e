//! Standard error, written to without ever waiting for its reader.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing_subscriber::fmt::MakeWriter;

/// Lines that found no room since the last one that did.
static LOST: AtomicU64 = AtomicU64::new(0);

/// Writes whole lines, or none: a reader that has stopped reading must not stop the supervisor.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stderr;

impl<'a> MakeWriter<'a> for Stderr {
    type Writer = Stderr;

    fn make_writer(&'a self) -> Stderr {
        Stderr
    }
}

impl Stderr {
    /// A pipe that is writable has room for PIPE_BUF bytes (pipe(7)), more than a line of ours takes. The
    /// descriptor cannot be made non-blocking instead: the workers share its open file description.
    fn has_room(&self) -> bool {
        let stderr = io::stderr();
        let mut wish = [PollFd::new(&stderr, PollFlags::OUT)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut wish, Some(&now)).is_ok_and(|ready| ready > 0)
    }
}

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if !self.has_room() {
            LOST.fetch_add(1, Ordering::Relaxed);
            return Ok(line.len());
        }
        let lost = LOST.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let remark = format!("master-process: {lost} log lines were lost: nobody read them\n");
            rustix::io::write(io::stderr(), remark.as_bytes())?;
        }
        rustix::io::write(io::stderr(), line)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
