//! HTTP clients that account for every single outcome.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::wait::scaled;

/// How long a client waits for anything. Longer than every delay that a test causes on purpose: a time-out is a fault.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(15);

/// Where to connect.
#[derive(Debug, Clone)]
pub enum Target {
    /// TCP.
    Tcp(SocketAddr),
    /// A Unix stream socket.
    Unix(PathBuf),
}

impl From<SocketAddr> for Target {
    fn from(address: SocketAddr) -> Self {
        Target::Tcp(address)
    }
}

impl From<&Path> for Target {
    fn from(path: &Path) -> Self {
        Target::Unix(path.to_owned())
    }
}

/// What became of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Answered in full, with this body.
    Ok(String),
    /// No process listens: the connection was refused, or the socket's path is not there.
    Refused,
    /// The connection was reset.
    Reset,
    /// No progress for as long as a client waits.
    Timeout,
    /// The connection was closed before the answer was complete.
    Truncated,
    /// A keep-alive connection was closed before anything of an answer came: what no server can avoid that leaves.
    IdleClosed,
    /// Anything else: what.
    Other(String),
}

impl Outcome {
    /// What a failed call on a connection means.
    #[must_use]
    pub fn of(error: &io::Error) -> Outcome {
        let kind = error.kind();
        if kind == ErrorKind::ConnectionRefused || kind == ErrorKind::NotFound {
            Outcome::Refused
        } else if kind == ErrorKind::ConnectionReset || kind == ErrorKind::BrokenPipe {
            Outcome::Reset
        } else if kind == ErrorKind::WouldBlock || kind == ErrorKind::TimedOut {
            Outcome::Timeout
        } else {
            Outcome::Other(error.to_string())
        }
    }
}

/// A connected stream of either kind.
trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

fn connect(target: &Target) -> io::Result<Box<dyn Stream>> {
    match target {
        Target::Tcp(address) => {
            let stream = TcpStream::connect_timeout(address, scaled(CLIENT_TIMEOUT))?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(scaled(CLIENT_TIMEOUT)))?;
            stream.set_write_timeout(Some(scaled(CLIENT_TIMEOUT)))?;
            Ok(Box::new(stream))
        }
        Target::Unix(path) => {
            // By hand: connect(2) blocks while the queue is full, and only a time-out set before ends that.
            let socket = rustix::net::socket_with(
                AddressFamily::UNIX,
                SocketType::STREAM,
                SocketFlags::CLOEXEC,
                None,
            )?;
            set_socket_timeout(&socket, Timeout::Send, Some(scaled(CLIENT_TIMEOUT)))?;
            set_socket_timeout(&socket, Timeout::Recv, Some(scaled(CLIENT_TIMEOUT)))?;
            rustix::net::connect(&socket, &SocketAddrUnix::new(path.as_path())?)?;
            Ok(Box::new(UnixStream::from(socket)))
        }
    }
}

/// An answer as far as it has come.
struct Answer {
    bytes: Vec<u8>,
}

impl Answer {
    fn head(&self) -> Option<&str> {
        let end = self.bytes.windows(4).position(|part| part == b"\r\n\r\n")?;
        std::str::from_utf8(&self.bytes[..end]).ok()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head()?.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }

    fn body(&self) -> Option<&[u8]> {
        let end = self.head()?.len() + 4;
        let length: usize = self.header("content-length")?.parse().ok()?;
        self.bytes.get(end..end + length)
    }

    /// The body of a chunked answer, once its last chunk is there.
    fn chunked(&self) -> Option<String> {
        self.header("transfer-encoding").filter(|coding| coding.eq_ignore_ascii_case("chunked"))?;
        let mut rest = std::str::from_utf8(&self.bytes).ok()?.get(self.head()?.len() + 4..)?;
        let mut body = String::new();
        loop {
            let (size, after) = rest.split_once("\r\n")?;
            let size = usize::from_str_radix(size.trim(), 16).ok()?;
            if size == 0 {
                return Some(body);
            }
            body.push_str(after.get(..size)?);
            rest = after.get(size + 2..)?;
        }
    }

    fn complete(&self) -> Option<String> {
        let body = self.body().map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        body.or_else(|| self.chunked())
    }

    fn judge(&self, body: String) -> Outcome {
        let status = self.head().and_then(|head| head.split(' ').nth(1)).unwrap_or("none");
        if status == "200" { Outcome::Ok(body) } else { Outcome::Other(format!("status {status}")) }
    }
}

fn request(path: &str, keep: bool) -> String {
    let connection = if keep { "keep-alive" } else { "close" };
    format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: {connection}\r\n\r\n")
}

/// One request and its answer. The second value says whether the connection can be used again.
fn exchange(stream: &mut dyn Stream, path: &str, keep: bool, reused: bool) -> (Outcome, bool) {
    if let Err(error) = stream.write_all(request(path, keep).as_bytes()) {
        let outcome = Outcome::of(&error);
        // A reused connection may have been closed by the server before our request reached it.
        let idle = reused && outcome == Outcome::Reset;
        return (if idle { Outcome::IdleClosed } else { outcome }, false);
    }
    receive(stream, keep, reused)
}

fn receive(stream: &mut dyn Stream, keep: bool, reused: bool) -> (Outcome, bool) {
    let mut answer = Answer { bytes: Vec::new() };
    // A reused connection may have been closed by the server before our request reached it.
    let failed = |outcome: Outcome, answer: &Answer| {
        let idle =
            reused && answer.bytes.is_empty() && matches!(outcome, Outcome::Reset | Outcome::Truncated);
        (if idle { Outcome::IdleClosed } else { outcome }, false)
    };
    let mut part = [0; 8192];
    loop {
        if let Some(body) = answer.complete() {
            let close = answer.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
            return (answer.judge(body), keep && !close);
        }
        match stream.read(&mut part) {
            Ok(0) => {
                // Without a length the end of the connection is the end of the body.
                let unbounded = answer.head().is_some()
                    && answer.header("content-length").is_none()
                    && answer.header("transfer-encoding").is_none();
                if unbounded {
                    let start = answer.head().map_or(0, |head| head.len() + 4);
                    let body = String::from_utf8_lossy(&answer.bytes[start..]).into_owned();
                    return (answer.judge(body), false);
                }
                return failed(Outcome::Truncated, &answer);
            }
            Ok(length) => answer.bytes.extend_from_slice(&part[..length]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return failed(Outcome::of(&error), &answer),
        }
    }
}

/// One request on a connection of its own.
#[must_use]
pub fn get(target: impl Into<Target>, path: &str) -> Outcome {
    match connect(&target.into()) {
        Ok(mut stream) => exchange(stream.as_mut(), path, false, false).0,
        Err(error) => Outcome::of(&error),
    }
}

/// A connection that stays open, for one request at a time.
pub struct Kept {
    stream: Box<dyn Stream>,
}

impl Kept {
    /// Connects: from then on it is in a queue.
    ///
    /// # Errors
    /// Those of connect(2).
    pub fn open(target: impl Into<Target>) -> io::Result<Kept> {
        Ok(Kept { stream: connect(&target.into())? })
    }

    /// Sends a request, and does not wait for the answer.
    ///
    /// # Errors
    /// Those of write(2).
    pub fn ask(&mut self) -> io::Result<()> {
        self.stream.write_all(request("/", true).as_bytes())
    }

    /// The answer to what was asked.
    pub fn answer(&mut self) -> Outcome {
        receive(self.stream.as_mut(), true, false).0
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kept")
    }
}

/// The pid that answers, if one does.
#[must_use]
pub fn who(target: impl Into<Target>) -> Option<i32> {
    match get(target, "/") {
        Outcome::Ok(body) => body.trim().parse().ok(),
        Outcome::Refused
        | Outcome::Reset
        | Outcome::Timeout
        | Outcome::Truncated
        | Outcome::IdleClosed
        | Outcome::Other(_) => None,
    }
}

/// How many requests came to which end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Answered, by the body: the pid of the process that answered.
    pub ok: BTreeMap<String, u64>,
    /// [`Outcome::Refused`].
    pub refused: u64,
    /// [`Outcome::Reset`].
    pub reset: u64,
    /// [`Outcome::Timeout`].
    pub timeout: u64,
    /// [`Outcome::Truncated`].
    pub truncated: u64,
    /// [`Outcome::IdleClosed`].
    pub idle_closed: u64,
    /// [`Outcome::Other`], by what it was.
    pub other: BTreeMap<String, u64>,
}

impl Tally {
    /// One more.
    pub fn count(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Ok(body) => *self.ok.entry(body).or_default() += 1,
            Outcome::Refused => self.refused += 1,
            Outcome::Reset => self.reset += 1,
            Outcome::Timeout => self.timeout += 1,
            Outcome::Truncated => self.truncated += 1,
            Outcome::IdleClosed => self.idle_closed += 1,
            Outcome::Other(what) => *self.other.entry(what).or_default() += 1,
        }
    }

    /// Requests answered.
    #[must_use]
    pub fn served(&self) -> u64 {
        self.ok.values().sum()
    }

    /// Requests lost in a worker that went away: reset or cut off. Not those on an idle keep-alive connection.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.reset + self.truncated
    }

    /// Requests that failed in a way that no worker's end explains.
    #[must_use]
    pub fn inexcusable(&self) -> u64 {
        self.refused + self.timeout + self.other.values().sum::<u64>()
    }

    /// The pids that answered.
    #[must_use]
    pub fn pids(&self) -> Vec<i32> {
        self.ok.keys().filter_map(|body| body.trim().parse().ok()).collect()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} served by {} workers, {} refused, {} reset, {} timed out, {} truncated, {} closed while idle, other: {:?}",
            self.served(),
            self.ok.len(),
            self.refused,
            self.reset,
            self.timeout,
            self.truncated,
            self.idle_closed,
            self.other
        )
    }
}

/// How clients use connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connections {
    /// One for each request.
    Fresh,
    /// Kept for as long as the server keeps them.
    KeepAlive,
}

/// Clients that send requests again and again, each in a thread, until they are stopped.
#[derive(Debug)]
#[must_use]
pub struct Load {
    stop: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
    /// In microseconds.
    longest: Arc<AtomicU64>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts this many HTTP clients.
    pub fn start(target: impl Into<Target>, clients: usize, connections: Connections) -> Load {
        let target = target.into();
        Load::repeat(clients, || {
            let (target, mut kept) = (target.clone(), None);
            move || ask(&target, connections, &mut kept)
        })
    }

    /// Starts this many clients of any protocol. Each is made by `client`, and then called again and again.
    pub fn repeat<C>(clients: usize, client: impl Fn() -> C) -> Load
    where
        C: FnMut() -> Outcome + Send + 'static,
    {
        let stop = Arc::new(AtomicBool::new(false));
        let tally = Arc::new(Mutex::new(Tally::default()));
        let longest = Arc::new(AtomicU64::new(0));
        let start = || {
            let (client, stop, tally) = (client(), Arc::clone(&stop), Arc::clone(&tally));
            let longest = Arc::clone(&longest);
            std::thread::spawn(move || run(client, &stop, &tally, &longest))
        };
        let clients = (0..clients).map(|_| start()).collect();
        Load { stop, tally, longest, clients }
    }

    /// How long the longest request took that was served since this was asked last.
    #[must_use]
    pub fn take_longest(&self) -> Duration {
        Duration::from_micros(self.longest.swap(0, Ordering::Relaxed))
    }

    /// The outcomes so far.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends the clients after the request that each is at, and gives all outcomes.
    ///
    /// # Panics
    /// When a client has panicked.
    #[must_use]
    pub fn stop(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.join().expect("clients count failures, they do not fail");
        }
        self.tally.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One request, on the connection that is kept if there is one.
fn ask(target: &Target, connections: Connections, kept: &mut Option<Box<dyn Stream>>) -> Outcome {
    let keep = connections == Connections::KeepAlive;
    let reused = kept.is_some();
    match kept.take().map_or_else(|| connect(target), Ok) {
        Ok(mut stream) => {
            let (outcome, usable) = exchange(stream.as_mut(), "/", keep, reused);
            if usable {
                *kept = Some(stream);
            }
            outcome
        }
        Err(error) => Outcome::of(&error),
    }
}

fn run(mut client: impl FnMut() -> Outcome, stop: &AtomicBool, tally: &Mutex<Tally>, longest: &AtomicU64) {
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let outcome = client();
        // A failure is instant, an answer is not: without a pause one dead second would outnumber all answers, and on a
        // slow machine leave no time for a server to start.
        if matches!(outcome, Outcome::Ok(_)) {
            let took = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
            longest.fetch_max(took, Ordering::Relaxed);
        } else {
            std::thread::sleep(scaled(Duration::from_millis(2)));
        }
        tally.lock().unwrap_or_else(PoisonError::into_inner).count(outcome);
    }
}
