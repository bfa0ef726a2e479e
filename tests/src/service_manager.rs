//! A service manager of a test: the socket that `NOTIFY_SOCKET` names, what came to it, and the descriptors that it
//! keeps.

use std::ffi::OsString;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tempfile::TempDir;

use crate::fixtures;
use crate::supervisor::{Builder, Supervisor};
use crate::wait::{TIMEOUT, await_some};

/// How soon the reader sees that the test is over.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Plays the part of systemd that starts a service: the kept descriptors come from 3 on.
const PASS_ON: &str = "
import os, sys
names, numbers, command = sys.argv[1], sys.argv[2], sys.argv[3:]
numbers = [int(number) for number in numbers.split(',') if number]
for number, fd in enumerate(numbers, 3):
    os.dup2(fd, number, True)
    os.close(fd)
if numbers:
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(numbers)), LISTEN_FDNAMES=names)
os.execv(command[0], command)
";

/// The first number for descriptors on their way to the supervisor, above all that it is given.
const HIGH: i32 = 300;

#[derive(Debug, Default)]
struct State {
    messages: Vec<String>,
    kept: Vec<(String, OwnedFd)>,
}

/// A service manager.
#[derive(Debug)]
pub struct ServiceManager {
    folder: TempDir,
    socket: Arc<UnixDatagram>,
    state: Arc<Mutex<State>>,
    over: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

impl Default for ServiceManager {
    fn default() -> Self {
        ServiceManager::new()
    }
}

impl ServiceManager {
    /// One that reads.
    #[must_use]
    pub fn new() -> ServiceManager {
        let mut manager = ServiceManager::deaf();
        manager.read();
        manager
    }

    /// One that does not read, until [`read`](Self::read).
    ///
    /// # Panics
    /// When there is no temporary folder.
    #[must_use]
    pub fn deaf() -> ServiceManager {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let socket = UnixDatagram::bind(folder.path().join("notify")).expect("bound");
        socket.set_read_timeout(Some(LOOK_EVERY)).expect("a time-out");
        let (state, over) = (Arc::default(), Arc::default());
        ServiceManager { folder, socket: Arc::new(socket), state, over, reader: None }
    }

    /// Fills its queue, so that no message finds room.
    ///
    /// # Panics
    /// When the queue has no limit.
    pub fn fill(&self) {
        let sender = UnixDatagram::unbound().expect("a socket");
        sender.set_nonblocking(true).expect("set");
        let full = (0..100_000).any(|_| sender.send_to(b"STATUS=filled", self.address()).is_err());
        assert!(full, "the queue has a limit");
    }

    /// Begins to read.
    pub fn read(&mut self) {
        let (socket, state, over) =
            (Arc::clone(&self.socket), Arc::clone(&self.state), Arc::clone(&self.over));
        self.reader = Some(std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                if let Some((text, fds)) = receive(&socket) {
                    note(&mut state.lock().unwrap_or_else(PoisonError::into_inner), text, fds);
                }
            }
        }));
    }

    fn address(&self) -> PathBuf {
        self.folder.path().join("notify")
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a supervisor notify it.
    pub fn notified_by(&self, builder: Builder) -> Builder {
        builder.env("NOTIFY_SOCKET", self.address())
    }

    /// Starts a supervisor that notifies it, with the descriptors that it keeps. It keeps up to 64.
    ///
    /// # Panics
    /// When a descriptor cannot be copied.
    #[must_use]
    pub fn spawn(&self, builder: Builder) -> Supervisor {
        let (mut names, mut copies) = (Vec::new(), Vec::new());
        for (name, fd) in &self.state().kept {
            let copy = rustix::io::fcntl_dupfd_cloexec(fd, HIGH).expect("a number is free");
            fcntl_setfd(&copy, FdFlags::empty()).expect("open");
            names.push(name.clone());
            copies.push(copy);
        }
        let numbers: Vec<String> = copies.iter().map(|copy| copy.as_raw_fd().to_string()).collect();
        let words: [OsString; 5] = [
            fixtures::python().into(),
            "-c".into(),
            PASS_ON.into(),
            names.join(":").into(),
            numbers.join(",").into(),
        ];
        self.notified_by(builder.env_first("FDSTORE", "64")).wrap(words).spawn()
    }

    /// All messages so far, in their order.
    #[must_use]
    pub fn messages(&self) -> Vec<String> {
        self.state().messages.clone()
    }

    /// The lines of all messages that begin with one of these words, in their order.
    #[must_use]
    pub fn lines(&self, words: &[&str]) -> Vec<String> {
        let messages = self.messages();
        let lines = messages.iter().flat_map(|message| message.lines());
        lines.filter(|line| words.iter().any(|word| line.starts_with(word))).map(str::to_owned).collect()
    }

    /// Waits until a line has come as often.
    ///
    /// # Panics
    /// When it does not come.
    pub fn await_line(&self, line: &str, times: usize) {
        await_some(TIMEOUT, &format!("{line}, {times} times: {:?}", self.messages()), || {
            let came = self.lines(&[line]).iter().filter(|other| *other == line).count();
            (came >= times).then_some(())
        });
    }

    /// The names of the descriptors that it keeps, sorted.
    #[must_use]
    pub fn kept(&self) -> Vec<String> {
        let mut names: Vec<String> = self.state().kept.iter().map(|(name, _)| name.clone()).collect();
        names.sort();
        names
    }

    /// Waits until it keeps this many.
    ///
    /// # Panics
    /// When that does not come.
    pub fn await_kept(&self, count: usize) -> Vec<String> {
        await_some(TIMEOUT, &format!("it keeps {count} descriptors: {:?}", self.kept()), || {
            Some(self.kept()).filter(|kept| kept.len() == count)
        })
    }

    /// Renames what it keeps.
    pub fn rename(&self, to: impl Fn(&str) -> String) {
        for (name, _) in &mut self.state().kept {
            *name = to(name);
        }
    }
}

impl Drop for ServiceManager {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            let _panicked = reader.join();
        }
    }
}

fn receive(socket: &UnixDatagram) -> Option<(String, Vec<OwnedFd>)> {
    let mut text = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received =
        recvmsg(socket, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC).ok()?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    Some((String::from_utf8_lossy(&text[..received.bytes]).into_owned(), fds))
}

/// As systemd does: a descriptor that it keeps already is not kept a second time, whatever the name.
fn note(state: &mut State, text: String, fds: Vec<OwnedFd>) {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    let name = field("FDNAME").unwrap_or("stored").to_owned();
    if field("FDSTOREREMOVE") == Some("1") {
        state.kept.retain(|(kept, _)| *kept != name);
    }
    if field("FDSTORE") == Some("1") {
        let inode = |fd: &OwnedFd| rustix::fs::fstat(fd).map(|stat| stat.st_ino).ok();
        for fd in fds {
            if !state.kept.iter().any(|(_, kept)| inode(kept) == inode(&fd)) {
                state.kept.push((name.clone(), fd));
            }
        }
    }
    state.messages.push(text);
}
