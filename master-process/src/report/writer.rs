//! Writing to stderr without waiting for its reader.

use std::borrow::Cow;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::time::SystemTime;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::SendFlags;
use tracing_subscriber::fmt::MakeWriter;

use super::shorten::fit;
use crate::config::LogFormat;

/// The longest line. A pipe takes up to this much atomically (PIPE_BUF in pipe(7)). Of a longer line it may take the
/// beginning, and then the output of a worker.
const LONGEST: usize = 4096;

/// Writes whole lines, or none, so that a reader that does not read cannot block the supervisor.
///
/// Stderr itself cannot be made non-blocking: the workers share its open file description.
#[derive(Debug, Clone)]
pub(super) struct Stderr {
    way: Arc<Way>,
    form: LogFormat,
    lost: Arc<Lost>,
}

/// The lines dropped since the last one that was written.
#[derive(Debug, Default)]
struct Lost {
    count: AtomicU64,
    /// The errno of the latest drop.
    errno: AtomicI32,
    /// Whether the beginning of the latest one was written, as on a full disk.
    torn: AtomicBool,
}

#[derive(Debug)]
enum Way {
    /// A pipe or a terminal, opened once more for this process alone.
    Reopened(OwnedFd),
    /// A socket: MSG_DONTWAIT applies to each message.
    Socket,
    /// A file, which never blocks; or something that could not be opened, which is polled before each write.
    Itself,
}

impl Stderr {
    /// A writer for lines in this format.
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

    /// Writes a line at the beginning of a line.
    fn put(&self, line: &[u8]) -> Result<(), Errno> {
        if self.lost.torn.load(Ordering::Relaxed) {
            self.put_some(b"\n")?;
            self.lost.torn.store(false, Ordering::Relaxed);
        }
        let written = self.put_some(line)?;
        let rest = line.get(written..).unwrap_or_default();
        if rest.is_empty() {
            return Ok(());
        }
        // Only a second write returns the reason why the first one was short.
        match self.put_some(rest) {
            Ok(more) if more == rest.len() => Ok(()),
            result => {
                self.lost.torn.store(true, Ordering::Relaxed);
                result.and(Err(Errno::AGAIN))
            }
        }
    }

    fn put_some(&self, line: &[u8]) -> Result<usize, Errno> {
        match &*self.way {
            Way::Reopened(fd) => rustix::io::write(fd, line),
            Way::Socket => rustix::net::send(io::stderr(), line, SendFlags::DONTWAIT | SendFlags::NOSIGNAL),
            Way::Itself if has_room(io::stderr().as_fd()) => rustix::io::write(io::stderr(), line),
            Way::Itself => Err(Errno::AGAIN),
        }
    }
}

/// The line about dropped lines, in the format of the others.
fn dropped(lost: u64, errno: i32, form: LogFormat) -> String {
    let lines = if lost == 1 { "line" } else { "lines" };
    let message = format!("dropped {lost} log {lines}: {}", reason(errno));
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

/// Why stderr could not be written. The message names what to correct, rather than the text of the C library.
fn reason(errno: i32) -> Cow<'static, str> {
    match errno {
        libc::EAGAIN => "stderr was not writable".into(),
        libc::EPIPE | libc::ECONNRESET | libc::ENOTCONN => "stderr was closed by its reader".into(),
        libc::ENOSPC | libc::EDQUOT => "the disk of stderr was full".into(),
        other => {
            let why = io::Error::from_raw_os_error(other);
            format!("writing to stderr failed: {why}").into()
        }
    }
}

fn has_room(fd: BorrowedFd<'_>) -> bool {
    let mut wish = [PollFd::new(&fd, PollFlags::OUT)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut wish, Some(&now)).is_ok_and(|ready| ready > 0)
}

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let lost = self.lost.count.swap(0, Ordering::Relaxed);
        let errno = self.lost.errno.load(Ordering::Relaxed);
        let caught_up = match lost {
            0 => Ok(()),
            lost => self.put(dropped(lost, errno, self.form).as_bytes()),
        };
        // If the line about dropped lines was written and this one was not, only this one is dropped.
        let before = if caught_up.is_err() { lost } else { 0 };
        let short = fit(line, LONGEST, self.form == LogFormat::Json);
        if let Err(errno) = caught_up.and_then(|()| self.put(&short)) {
            self.lost.errno.store(errno.raw_os_error(), Ordering::Relaxed);
            self.lost.count.fetch_add(before + 1, Ordering::Relaxed);
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

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    fn to(fd: OwnedFd) -> Stderr {
        Stderr { way: Arc::new(Way::Reopened(fd)), form: LogFormat::Journald, lost: Arc::default() }
    }

    fn write(log: &mut Stderr, line: &str) {
        log.write_all(line.as_bytes()).expect("a line that is lost is no failure");
    }

    /// The same log, to another descriptor.
    fn moved(log: &Stderr, fd: OwnedFd) -> Stderr {
        Stderr { way: Arc::new(Way::Reopened(fd)), ..log.clone() }
    }

    /// What is written once there is a reader again.
    fn told_afterwards(log: &Stderr) -> String {
        let (mut reader, writer) = UnixStream::pair().expect("descriptors");
        write(&mut moved(log, writer.into()), "<6>next\n");
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("UTF-8");
        text
    }

    #[test]
    fn a_full_disk_is_named() {
        let full = rustix::fs::open("/dev/full", OFlags::WRONLY, Mode::empty()).expect("every host has it");
        let mut log = to(full);
        write(&mut log, "<6>first\n");
        write(&mut log, "<6>second\n");
        assert_eq!(told_afterwards(&log), "<4>dropped 2 log lines: the disk of stderr was full\n<6>next\n");
        assert_eq!(told_afterwards(&log), "<6>next\n", "it is logged once");
    }

    #[test]
    fn a_reader_that_is_gone_is_named() {
        let (reader, writer) = UnixStream::pair().expect("descriptors");
        drop(reader);
        let mut log = to(writer.into());
        // The runtime ignores SIGPIPE in tests; the supervisor blocks it.
        write(&mut log, "<6>first\n");
        assert_eq!(
            told_afterwards(&log),
            "<4>dropped 1 log line: stderr was closed by its reader\n<6>next\n"
        );
    }

    #[test]
    fn a_reader_that_does_not_read_is_named() {
        let (_reader, writer) = pipe_with(PipeFlags::NONBLOCK).expect("descriptors");
        let mut log = to(writer);
        let line = format!("<6>{}\n", "x".repeat(4000));
        while log.lost.count.load(Ordering::Relaxed) < 2 {
            write(&mut log, &line);
        }
        let text = told_afterwards(&log);
        assert_eq!(text, "<4>dropped 2 log lines: stderr was not writable\n<6>next\n");
    }

    #[test]
    fn other_reasons_are_told_by_their_text() {
        assert!(reason(libc::EFBIG).starts_with("writing to stderr failed: File too large"));
    }
}
