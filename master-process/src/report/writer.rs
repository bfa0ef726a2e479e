//! Standard error, written to without ever waiting for its reader.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::net::SendFlags;
use tracing_subscriber::fmt::MakeWriter;

use super::shorten::fit;
use crate::config::LogFormat;

/// The longest line. A pipe takes this much whole or not at all (PIPE_BUF in pipe(7)): of a longer one it may take the
/// beginning, and put what a worker writes behind that.
const LONGEST: usize = 4096;

/// Writes whole lines, or none: a reader that has stopped reading must not stop the supervisor.
///
/// Standard error itself cannot be made non-blocking: the workers share its open file description.
#[derive(Debug, Clone)]
pub(super) struct Stderr {
    way: Arc<Way>,
    form: LogFormat,
    /// Lines that found no room since the last one that did.
    lost: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Way {
    /// A pipe or a terminal, opened once more for us alone.
    Reopened(OwnedFd),
    /// A socket: each message may say for itself that it does not wait.
    Socket,
    /// A file, which never waits; or what could not be opened, which is asked for room first.
    Itself,
}

impl Stderr {
    /// For lines of this form.
    pub(super) fn new(form: LogFormat) -> Stderr {
        let kind = rustix::fs::fstat(io::stderr()).map(|stat| FileType::from_raw_mode(stat.st_mode));
        let way = match kind {
            Ok(FileType::Socket) => Way::Socket,
            Ok(FileType::Fifo | FileType::CharacterDevice) => {
                let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
                rustix::fs::open("/proc/self/fd/2", flags, Mode::empty()).map_or(Way::Itself, Way::Reopened)
            }
            Ok(_) | Err(_) => Way::Itself,
        };
        Stderr { way: Arc::new(way), form, lost: Arc::default() }
    }

    fn put(&self, line: &[u8]) -> rustix::io::Result<usize> {
        match &*self.way {
            Way::Reopened(fd) => rustix::io::write(fd, line),
            Way::Socket => rustix::net::send(io::stderr(), line, SendFlags::DONTWAIT | SendFlags::NOSIGNAL),
            Way::Itself if has_room(io::stderr().as_fd()) => rustix::io::write(io::stderr(), line),
            Way::Itself => Err(rustix::io::Errno::AGAIN),
        }
    }
}

/// Says how many lines are missing, in the form of the others.
fn dropped(lost: u64, form: LogFormat) -> String {
    let message = format!("dropped {lost} log lines: standard error was not writable");
    let now = humantime::format_rfc3339_millis(SystemTime::now());
    match form {
        LogFormat::Json => {
            let head = format!("\"timestamp\":\"{now}\",\"level\":\"WARN\"");
            format!("{{{head},\"message\":\"{message}\",\"dropped\":{lost}}}\n")
        }
        LogFormat::Journald => format!("<4>{message}\n"),
        LogFormat::Pretty | LogFormat::Auto => format!("{now}  WARN {message}\n"),
    }
}

fn has_room(fd: BorrowedFd<'_>) -> bool {
    let mut wish = [PollFd::new(&fd, PollFlags::OUT)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut wish, Some(&now)).is_ok_and(|ready| ready > 0)
}

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let lost = self.lost.swap(0, Ordering::Relaxed);
        let caught_up = lost == 0 || self.put(dropped(lost, self.form).as_bytes()).is_ok();
        let short = fit(line, LONGEST, self.form == LogFormat::Json);
        if !caught_up || self.put(&short).is_err() {
            self.lost.fetch_add(lost + 1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Stderr {
    type Writer = Stderr;

    fn make_writer(&'a self) -> Stderr {
        self.clone()
    }
}
