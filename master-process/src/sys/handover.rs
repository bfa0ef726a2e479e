//! What a process hands over to the program that it executes in its place: open descriptors, and a state in memory that
//! nobody can change any more.
//!
//! execve(2) keeps descriptors without close-on-exec. The old program names each of them with what it is; the new one
//! takes those that are still the same, and closes all others.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use rustix::fs::{SealFlags, fcntl_get_seals, fstat};
use rustix::io::{FdFlags, fcntl_setfd, pread, write};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::{fds, memfd, self_usage};

/// The number of a descriptor in both programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fd(RawFd);

/// A descriptor, and the file that it is: the device and inode number, and the type in the mode; fstat(2). It is written
/// as a list, because a state has thousands of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "(Fd, u64, u64, u32)", from = "(Fd, u64, u64, u32)")]
pub struct Described {
    fd: Fd,
    device: u64,
    inode: u64,
    kind: u32,
}

impl From<Described> for (Fd, u64, u64, u32) {
    fn from(Described { fd, device, inode, kind }: Described) -> (Fd, u64, u64, u32) {
        (fd, device, inode, kind)
    }
}

impl From<(Fd, u64, u64, u32)> for Described {
    fn from((fd, device, inode, kind): (Fd, u64, u64, u32)) -> Described {
        Described { fd, device, inode, kind }
    }
}

impl Described {
    fn of(fd: BorrowedFd<'_>) -> io::Result<Described> {
        let stat = fstat(fd)?;
        let kind = stat.st_mode & libc::S_IFMT;
        Ok(Described { fd: Fd(fd.as_raw_fd()), device: stat.st_dev, inode: stat.st_ino, kind })
    }
}

/// The descriptors that a state names.
#[derive(Debug, Default)]
pub struct Outgoing {
    kept: BTreeMap<Fd, Described>,
    /// The device of all sockets.
    socket_device: Option<u64>,
    failed: Option<io::Error>,
}

impl Outgoing {
    /// Names a descriptor, once. An error comes with [`described`](Self::described).
    pub fn keep(&mut self, fd: BorrowedFd<'_>) -> Fd {
        match Described::of(fd) {
            Ok(described) => {
                if described.kind == libc::S_IFSOCK {
                    self.socket_device = Some(described.device);
                }
                self.add(described);
            }
            Err(error) => self.failed = Some(error),
        }
        Fd(fd.as_raw_fd())
    }

    /// The same for a socket whose inode number is known, without a system call for each: there are thousands of them.
    pub fn keep_socket(&mut self, fd: BorrowedFd<'_>, inode: u64) -> Fd {
        let Some(device) = self.socket_device else { return self.keep(fd) };
        let described = Described { fd: Fd(fd.as_raw_fd()), device, inode, kind: libc::S_IFSOCK };
        debug_assert_eq!(Described::of(fd).ok(), Some(described), "it has another inode number");
        self.add(described);
        described.fd
    }

    fn add(&mut self, described: Described) {
        if self.kept.insert(described.fd, described).is_some() {
            self.failed.get_or_insert_with(|| io::Error::other("a descriptor is named twice"));
        }
    }

    /// All of them.
    ///
    /// # Errors
    /// That of a descriptor which cannot be named.
    pub fn described(&mut self) -> io::Result<Vec<Described>> {
        match self.failed.take() {
            Some(error) => Err(error),
            None => Ok(self.kept.values().copied().collect()),
        }
    }

    /// Sets whether the next program gets them.
    ///
    /// # Errors
    /// None, as long as they are open; fcntl(2).
    pub fn set_passed_on(&self, passed_on: bool) -> io::Result<()> {
        self.kept.keys().try_for_each(|fd| set_passed_on(fd.0, passed_on))
    }
}

fn set_passed_on(number: RawFd, passed_on: bool) -> io::Result<()> {
    let flags = if passed_on { FdFlags::empty() } else { FdFlags::CLOEXEC };
    // SAFETY: the number is that of an open descriptor of a value that lives; the call changes its flag only.
    fcntl_setfd(unsafe { BorrowedFd::borrow_raw(number) }, flags).map_err(io::Error::from)
}

/// Sets whether the next program gets a descriptor.
///
/// # Errors
/// None for an open descriptor; fcntl(2).
pub fn pass_on(fd: BorrowedFd<'_>, passed_on: bool) -> io::Result<()> {
    set_passed_on(fd.as_raw_fd(), passed_on)
}

/// The way back to the program before, for a program that cannot go on from the state.
pub trait WayBack: fmt::Debug {
    /// Executes that program, or ends this process if that fails, too. The reason is the error of what failed.
    ///
    /// Nothing is dropped: the program before finds each descriptor, file and lock as it was, and also what this one has
    /// taken already.
    fn go_back(&self, why: &dyn fmt::Display) -> !;
}

/// The descriptors that the program before has left open for this one.
///
/// Until [`decide`](Self::decide), this program can give way to the one before. So what goes on from the state has no
/// errors to return: an error on the way would drop what was taken, and with it close descriptors and remove files that the
/// program before needs. [`take`](Self::take) and [`need`](Self::need) go back where they fail.
#[derive(Debug)]
pub struct Incoming {
    /// Those that the state names and that are not taken yet. They are not owned: dropped, they stay open.
    left: Numbers,
    /// The others that are open.
    unnamed: Vec<RawFd>,
    way_back: Box<dyn WayBack>,
}

impl Incoming {
    /// Checks the descriptors that the state names. The others from 3 on are closed at the end, apart from those in
    /// `spared`. It must come before anything else opens a descriptor. It goes back if one of them is not what the state says.
    pub fn new(described: &[Described], spared: &[RawFd], way_back: Box<dyn WayBack>) -> Incoming {
        let mut incoming = Incoming { left: Numbers::default(), unnamed: Vec::new(), way_back };
        let mut known = Numbers::default();
        spared.iter().for_each(|number| _ = known.insert(*number));
        for of in described {
            let number = of.fd.0;
            // SAFETY: the number is not negative. One that is not open gives EBADF, and nothing closes one meanwhile: this
            // program has one thread at this time.
            let is_same =
                || Described::of(unsafe { BorrowedFd::borrow_raw(number) }).is_ok_and(|now| now == *of);
            if number < 3 || !is_same() || !known.insert(number) {
                let why = format!("descriptor {number} is not the one that was handed over");
                incoming.way_back.go_back(&why);
            }
            incoming.left.insert(number);
        }
        // To list thousands of descriptors takes some milliseconds, and mostly there are no others.
        let standard = (0..3).filter(|number| is_open(*number)).count();
        let open = self_usage::open_descriptors().and_then(|open| usize::try_from(open).ok());
        if open != Some(known.count + standard) {
            let numbers = incoming.need(open_numbers(), "/proc/self/fd");
            incoming.unnamed =
                numbers.into_iter().filter(|number| !known.contains(*number) && is_open(*number)).collect();
        }
        incoming
    }

    /// Takes one of them. It goes back if that was not named, or was taken before.
    pub fn take(&mut self, fd: Fd) -> OwnedFd {
        if !self.left.remove(fd.0) {
            self.way_back.go_back(&format_args!("descriptor {} is missing", fd.0));
        }
        // SAFETY: it was open when this value was made, and this program closes only what it has taken. It is taken once.
        unsafe { OwnedFd::from_raw_fd(fd.0) }
    }

    /// The value of a result; goes back at an error. `what` has failed then.
    pub fn need<T, E: fmt::Display>(&self, result: Result<T, E>, what: &str) -> T {
        match result {
            Ok(value) => value,
            Err(error) => self.way_back.go_back(&format_args!("{what}: {error}")),
        }
    }

    /// Goes back for this reason.
    pub fn go_back(&self, why: &dyn fmt::Display) -> ! {
        self.way_back.go_back(why)
    }

    /// This program goes on: there is no way back from here. It closes the descriptors that nobody has taken, and no program that
    /// is executed from now on gets the others. Returns the number of those that it has closed.
    pub fn decide(self) -> usize {
        self.need(fds::close_on_exec(), "close_range");
        let Incoming { left, unnamed, way_back } = self;
        let others = left.numbers().chain(unnamed);
        // SAFETY: each was open when this value was made, is in one of the lists once, and no other value owns it.
        let closed = others.map(|number| drop(unsafe { OwnedFd::from_raw_fd(number) })).count();
        drop(way_back);
        closed
    }
}

/// A set of descriptors, by their numbers: these are small.
#[derive(Debug, Default)]
struct Numbers {
    has: Vec<bool>,
    count: usize,
}

impl Numbers {
    /// Returns false if it was in the set, or is negative.
    fn insert(&mut self, number: RawFd) -> bool {
        let Ok(at) = usize::try_from(number) else { return false };
        if at >= self.has.len() {
            self.has.resize(at + 1, false);
        }
        let is_new = !std::mem::replace(&mut self.has[at], true);
        self.count += usize::from(is_new);
        is_new
    }

    /// Returns whether it was in the set.
    fn remove(&mut self, number: RawFd) -> bool {
        let at = usize::try_from(number).ok().and_then(|at| self.has.get_mut(at));
        let was_in = at.is_some_and(std::mem::take);
        self.count -= usize::from(was_in);
        was_in
    }

    fn contains(&self, number: RawFd) -> bool {
        usize::try_from(number).ok().and_then(|at| self.has.get(at)).is_some_and(|has| *has)
    }

    fn numbers(&self) -> impl Iterator<Item = RawFd> {
        (0..).zip(&self.has).filter(|(_, has)| **has).map(|(number, _)| number)
    }
}

/// The open descriptors from 3 on, as the kernel lists them, and the one that the list was read from.
fn open_numbers() -> io::Result<Vec<RawFd>> {
    let numbers = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|number| *number >= 3);
    Ok(numbers.collect())
}

fn is_open(number: RawFd) -> bool {
    // SAFETY: the call only asks whether the number is open.
    unsafe { libc::fcntl(number, libc::F_GETFD) >= 0 }
}

/// The start of a state: these bytes, the length, and the checksum.
const MAGIC: &[u8; 8] = b"mpstate1";
const HEADER: usize = 24;

/// The longest state that is read. One of a hundred thousand workers is shorter.
const LONGEST: u64 = 1 << 30;

/// Puts a state into memory, and seals it.
///
/// # Errors
/// Those of memfd_create(2) and write(2): ENOMEM, EMFILE.
pub fn seal(state: &[u8]) -> io::Result<OwnedFd> {
    let fd = memfd::create("master-process-state")?;
    let length = u64::try_from(state.len()).map_err(io::Error::other)?;
    let header = [*MAGIC, length.to_le_bytes(), checksum(state).to_le_bytes()].concat();
    for mut rest in [header.as_slice(), state] {
        while !rest.is_empty() {
            let count = write(&fd, rest)?;
            rest = &rest[count..];
        }
    }
    memfd::seal(fd.as_fd())?;
    Ok(fd)
}

/// Reads a state that [`seal`] wrote.
///
/// # Errors
/// `InvalidData` if it is none, is not sealed, or is damaged.
pub fn unseal(fd: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why);
    let seals = fcntl_get_seals(fd).map_err(|_no_memfd| invalid("it is not sealed"))?;
    if !seals.contains(SealFlags::WRITE | SealFlags::SHRINK) {
        return Err(invalid("it is not sealed"));
    }
    let mut header = [0u8; HEADER];
    if pread(fd, &mut header, 0)? != HEADER || !header.starts_with(MAGIC) {
        return Err(invalid("it does not begin as a state does"));
    }
    let word = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().unwrap_or_default());
    let (length, sum) = (word(8), word(16));
    let is_whole = length <= LONGEST && u64::try_from(fstat(fd)?.st_size) == Ok(length + HEADER as u64);
    if !is_whole {
        return Err(invalid("it is cut short"));
    }
    let mut state = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    let mut read = 0;
    while read < state.len() {
        match pread(fd, &mut state[read..], (HEADER + read) as u64)? {
            0 => return Err(invalid("it is cut short")),
            count => read += count,
        }
    }
    if checksum(&state) == sum { Ok(state) } else { Err(invalid("its checksum is wrong")) }
}

/// FNV-1a, by words of eight bytes: it finds damage, and protects against nobody.
fn checksum(bytes: &[u8]) -> u64 {
    let add = |sum: u64, word: u64| (sum ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
    let (words, rest) = bytes.as_chunks::<8>();
    let sum = words.iter().fold(0xcbf2_9ce4_8422_2325, |sum, word| add(sum, u64::from_le_bytes(*word)));
    if rest.is_empty() {
        return sum;
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    add(sum, u64::from_le_bytes(last))
}

/// A program to execute.
#[derive(Debug, Clone, Copy)]
pub enum Executable<'a> {
    /// At this path.
    Path(&'a CStr),
    /// The file of this descriptor, whatever path it has by now.
    Fd(BorrowedFd<'a>),
}

/// Executes a program in the place of this one. It returns only if that failed; nothing has changed then.
///
/// It must be called on the first thread: children that are killed when their parent dies count the thread that started
/// them as that parent. The kernel ends the other threads, and cancels what an io_uring of this process waits for.
pub fn execute(program: Executable<'_>, arguments: &[CString], environment: &[CString]) -> io::Error {
    let pointers = |texts: &[CString]| {
        let all = texts.iter().map(|text| text.as_ptr());
        all.chain(std::iter::once(std::ptr::null())).collect::<Vec<_>>()
    };
    let (argv, envp) = (pointers(arguments), pointers(environment));
    // SAFETY: the arrays end with a null pointer, and they and their strings live until the call returns, if it does.
    unsafe {
        match program {
            Executable::Path(path) => libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()),
            Executable::Fd(fd) => {
                let (at, none) = (fd.as_raw_fd(), c"".as_ptr());
                let flags = libc::AT_EMPTY_PATH;
                let result = libc::syscall(libc::SYS_execveat, at, none, argv.as_ptr(), envp.as_ptr(), flags);
                i32::try_from(result).unwrap_or(-1)
            }
        }
    };
    io::Error::last_os_error()
}

/// The descriptor with this number, which an earlier program has left open; `None` if it is not open.
pub fn left_open(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: it is open, and the caller is the first who takes it: this program has opened nothing yet.
    (number >= 3 && is_open(number)).then(|| unsafe { OwnedFd::from_raw_fd(number) })
}

/// The time of the monotonic clock, in nanoseconds: it goes on over the change of the program.
pub fn monotonic() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let (seconds, nanos) = (now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs());
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}

/// The moment at which the monotonic clock showed this time.
pub fn instant(at: u64) -> Instant {
    let ago = Duration::from_nanos(monotonic().saturating_sub(at));
    let now = Instant::now();
    now.checked_sub(ago).unwrap_or(now)
}

/// The time that the monotonic clock showed at this moment.
pub fn monotonic_at(instant: Instant) -> u64 {
    monotonic().saturating_sub(u64::try_from(instant.elapsed().as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {

    use rustix::fs::{MemfdFlags, fcntl_add_seals, memfd_create};

    use super::*;

    #[test]
    fn a_state_is_read_as_it_was_written_and_cannot_be_changed() {
        for state in [b"".as_slice(), b"a", &[7; 100_001]] {
            let fd = seal(state).expect("memory");
            assert_eq!(unseal(fd.as_fd()).expect("whole"), state);
            assert!(write(&fd, b"x").is_err(), "it is sealed");
        }
    }

    #[test]
    fn what_is_damaged_cut_short_or_not_sealed_is_no_state() {
        let damaged = |change: &dyn Fn(&mut Vec<u8>), seals| {
            let sealed = seal(b"a state of some length").expect("memory");
            let mut bytes = vec![0; HEADER + 22];
            pread(&sealed, &mut bytes, 0).expect("it is there");
            change(&mut bytes);
            let fd = memfd_create("other", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).expect("memory");
            write(&fd, &bytes).expect("memory");
            fcntl_add_seals(&fd, seals).expect("it can be sealed");
            unseal(fd.as_fd()).expect_err("not a state").to_string()
        };
        let all = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW;
        assert_eq!(damaged(&|bytes| bytes[30] ^= 1, all), "its checksum is wrong");
        assert_eq!(damaged(&|bytes| bytes.truncate(30), all), "it is cut short");
        assert_eq!(damaged(&|bytes| bytes[0] ^= 1, all), "it does not begin as a state does");
        assert_eq!(damaged(&|_| {}, SealFlags::SHRINK), "it is not sealed");
        let (reader, _writer) = std::io::pipe().expect("a pipe");
        assert_eq!(unseal(reader.as_fd()).expect_err("no file").to_string(), "it is not sealed");
    }

    #[test]
    fn a_descriptor_is_named_once() {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let mut outgoing = Outgoing::default();
        outgoing.keep(reader.as_fd());
        outgoing.keep(writer.as_fd());
        assert_eq!(outgoing.described().expect("two").len(), 2);
        outgoing.keep(reader.as_fd());
        assert!(outgoing.described().is_err());
    }

    /// There is no program to go back to in a test.
    #[derive(Debug)]
    struct Unwinds;

    impl WayBack for Unwinds {
        fn go_back(&self, why: &dyn fmt::Display) -> ! {
            std::panic::panic_any(why.to_string())
        }
    }

    /// Why it goes back.
    fn why<T>(goes_back: impl FnOnce() -> T) -> Option<String> {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(goes_back));
        result.err().and_then(|why| why.downcast().ok()).map(|why| *why)
    }

    #[test]
    fn a_program_that_goes_back_has_closed_nothing() {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let mut outgoing = Outgoing::default();
        let (one, other) = (outgoing.keep(reader.as_fd()), outgoing.keep(writer.as_fd()));
        let described = outgoing.described().expect("two");
        let wrong = [described[0], Described { inode: described[1].inode + 1, ..described[1] }];
        let reason = why(|| Incoming::new(&wrong, &[], Box::new(Unwinds)));
        assert_eq!(reason, Some(format!("descriptor {} is not the one that was handed over", wrong[1].fd.0)));
        let (reader, writer) = (OwnedFd::from(reader), OwnedFd::from(writer));
        let mut incoming = Incoming::new(&described, &[], Box::new(Unwinds));
        std::mem::forget(reader);
        let reader = incoming.take(one);
        assert_eq!(why(|| incoming.take(one)), Some(format!("descriptor {} is missing", one.0)));
        assert_eq!(incoming.need(Ok::<_, io::Error>(7), "a value"), 7);
        assert_eq!(
            why(|| incoming.need(Err::<(), _>("no room"), "eventfd")),
            Some("eventfd: no room".to_owned())
        );
        drop(incoming);
        assert!(is_open(reader.as_raw_fd()) && is_open(other.0), "{writer:?}");
    }

    #[test]
    fn a_moment_survives_as_a_time_of_the_monotonic_clock() {
        let before = Instant::now();
        let after = instant(monotonic_at(before));
        let off = after.max(before) - after.min(before);
        assert!(off < Duration::from_millis(50), "{off:?}");
    }
}
