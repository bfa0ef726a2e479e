//! A connection to a supervisor.

use std::io::{self, BufRead, BufReader, Write};
#[cfg(feature = "top")]
use std::os::fd::BorrowedFd;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

#[cfg(feature = "top")]
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::exit::codes;
use crate::control::{Line, Reply, Request, name_of};
use crate::sys::control_socket::{connect_to, peer};

/// How long the supervisor may take for an answer. It needs milliseconds, unless it is stopped or the host is at its end.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Why there is no answer: the exit code, and a line for the user.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) code: u8,
    pub(super) why: String,
    /// Whether it is that this user may not use the socket.
    pub(super) is_denied: bool,
}

impl Failure {
    pub(super) fn new(code: u8, why: impl Into<String>) -> Failure {
        Failure { code, why: why.into(), is_denied: false }
    }
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) path: PathBuf,
    reader: BufReader<UnixStream>,
    /// The line that is being read: a time-out can come in the middle of one.
    line: Vec<u8>,
}

/// What came.
#[derive(Debug)]
pub(super) enum Received {
    /// A line, and its text.
    Line(Line, String),
    /// Nothing in time.
    Nothing,
    /// The supervisor has closed the connection.
    End,
}

impl Connection {
    /// Connects to a socket.
    pub(super) fn open(path: &Path) -> Result<Connection, Failure> {
        let stream = connect_to(path, PATIENCE).map_err(|error| failure(path, &error))?;
        let reader = BufReader::new(UnixStream::from(stream));
        Ok(Connection { path: path.to_owned(), reader, line: Vec::new() })
    }

    /// The name of the instance, as its socket has it.
    pub(super) fn name(&self) -> String {
        name_of(&self.path)
    }

    /// The process of the supervisor; `None` if it is outside this PID namespace or has ended.
    pub(super) fn process(&self) -> Option<OwnedFd> {
        let pid = peer(self.reader.get_ref().as_fd()).ok()?.pid;
        pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()
    }

    /// Sends a request.
    pub(super) fn send(&mut self, request: Request) -> Result<(), Failure> {
        let sent = self.reader.get_mut().write_all(&request.line());
        sent.map_err(|error| failure(&self.path, &error))
    }

    /// The next line, until this time; `None`: whenever it comes.
    pub(super) fn receive(&mut self, until: Option<Instant>) -> Result<Received, Failure> {
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            // A time-out of zero means none.
            let left = left.map(|left| left.max(Duration::from_millis(1)));
            let set = self.reader.get_ref().set_read_timeout(left);
            set.map_err(|error| failure(&self.path, &error))?;
            match self.reader.read_until(b'\n', &mut self.line) {
                Ok(0) => return Ok(Received::End),
                Ok(_) if self.line.ends_with(b"\n") => return self.parse(),
                Ok(_) => return Ok(Received::End),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if until.is_some_and(|until| until <= Instant::now()) {
                        return Ok(Received::Nothing);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(Received::End),
                Err(error) => return Err(failure(&self.path, &error)),
            }
        }
    }

    fn parse(&mut self) -> Result<Received, Failure> {
        let line = std::mem::take(&mut self.line);
        let parsed = Line::parse(&line).map_err(|error| {
            let why = format!("{}: not a master-process of this version: {error}", self.path.display());
            Failure::new(codes::UNKNOWN, why)
        })?;
        Ok(Received::Line(parsed, String::from_utf8_lossy(&line).trim_end().to_owned()))
    }

    /// Whether there is something to receive now.
    #[cfg(feature = "top")]
    pub(super) fn has_more(&self) -> bool {
        let mut polled = [PollFd::new(self.reader.get_ref(), PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        !self.reader.buffer().is_empty() || poll(&mut polled, Some(&now)).is_ok_and(|ready| ready > 0)
    }

    /// The answer to a request that was sent, and its text. A refusal is a failure.
    pub(super) fn answer(&mut self) -> Result<(Reply, String), Failure> {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.receive(Some(until))? {
                Received::Line(Line::Reply(reply), text) => match reply.error {
                    None => return Ok((*reply, text)),
                    Some(error) => {
                        let is_denied = error.code == "not_permitted";
                        let (code, why) = (code_of(&error.code), error.message);
                        return Err(Failure { code, why, is_denied });
                    }
                },
                Received::Line(Line::Event(_), _) => {}
                Received::Nothing => {
                    let why = format!("{} does not answer", self.name());
                    return Err(Failure::new(codes::UNKNOWN, why));
                }
                Received::End => {
                    let why = format!("{} has closed the connection", self.name());
                    return Err(Failure::new(codes::UNKNOWN, why));
                }
            }
        }
    }

    /// Sends a request and waits for its answer.
    pub(super) fn ask(&mut self, request: Request) -> Result<(Reply, String), Failure> {
        self.send(request)?;
        self.answer()
    }
}

#[cfg(feature = "top")]
impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.get_ref().as_fd()
    }
}

/// The exit code of a refusal.
fn code_of(error: &str) -> u8 {
    match error {
        "no_such_slot" | "not_possible" | "bad_request" | "unknown_command" => codes::USAGE,
        "stopping" => codes::GIVEN_UP,
        _other => codes::UNKNOWN,
    }
}

fn failure(path: &Path, error: &io::Error) -> Failure {
    let shown = path.display();
    let is_denied = is(error, &[Errno::ACCESS, Errno::PERM]);
    let (code, why) = if is(error, &[Errno::NOENT, Errno::CONNREFUSED, Errno::NOTDIR]) {
        (codes::NOT_RUNNING, format!("no master-process runs at {shown}"))
    } else if is_denied {
        (
            codes::UNKNOWN,
            format!("no permission for {shown}: only root, its user and --control-group may use it"),
        )
    } else if is(error, &[Errno::AGAIN, Errno::TIMEDOUT]) {
        (codes::UNKNOWN, format!("the supervisor at {shown} does not answer"))
    } else {
        (codes::UNKNOWN, format!("{shown}: {error}"))
    };
    Failure { code, why, is_denied }
}

fn is(error: &io::Error, any: &[Errno]) -> bool {
    any.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}
