//! `/proc/PID/stat`: proc_pid_stat(5).

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::process::Pid;

/// Longer than any such file: 52 numbers of at most 20 digits, and a name of 15 bytes.
const MAX_LENGTH: usize = 2048;

/// The fields that the supervisor uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// The parent; `None` if it is not in our PID namespace.
    pub parent: Option<Pid>,
    /// The process group; `None` as for the parent.
    pub group: Option<Pid>,
    /// The session; `None` as for the parent.
    pub session: Option<Pid>,
    /// Whether the process has ended and waits to be reaped.
    pub is_zombie: bool,
    /// Whether it has a controlling terminal.
    pub has_terminal: bool,
    /// CPU time of all its threads, including those that have ended, in nanoseconds. The kernel counts in ticks, which
    /// usually have 10 ms.
    pub cpu_ns: u64,
    /// Resident memory, in bytes; 0 for a zombie.
    pub memory: u64,
    /// The start time in ticks since boot. Pid and start time together identify a process.
    pub started: u64,
}

/// An open `stat` file. It stays with its process and costs one system call for each read. After the process was
/// reaped, a read fails with ESRCH, even if another process has the pid.
#[derive(Debug)]
pub struct StatFile(OwnedFd);

impl StatFile {
    /// Opens the file.
    ///
    /// # Errors
    /// ENOENT if there is no such process; EMFILE and ENFILE if too many files are open.
    pub fn open(pid: Pid) -> io::Result<StatFile> {
        let path = format!("/proc/{}/stat", pid.as_raw_pid());
        Ok(StatFile(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?))
    }

    /// Opens the file of one thread of a process, which has the CPU time of that thread only.
    ///
    /// # Errors
    /// Those of [`Self::open`].
    pub fn open_thread(pid: Pid, tid: Pid) -> io::Result<StatFile> {
        let path = format!("/proc/{}/task/{}/stat", pid.as_raw_pid(), tid.as_raw_pid());
        Ok(StatFile(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?))
    }

    /// Reads the file.
    ///
    /// # Errors
    /// ESRCH if the process is gone.
    pub fn read(&self) -> io::Result<Stat> {
        let mut text = [0u8; MAX_LENGTH];
        let length = rustix::io::pread(self.0.as_fd(), &mut text, 0)?;
        parse(&text[..length]).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

/// The threads of a process; none if the process is gone.
pub fn threads(pid: Pid) -> impl Iterator<Item = Pid> {
    let entries = std::fs::read_dir(format!("/proc/{}/task", pid.as_raw_pid()));
    entries.into_iter().flatten().flatten().filter_map(|entry| number(&entry.file_name()))
}

/// The pid or thread id that a name in `/proc` stands for.
fn number(name: &std::ffi::OsStr) -> Option<Pid> {
    Pid::from_raw(name.to_str()?.parse().ok()?)
}

/// Parses the file. The name is in parentheses and can hold any bytes, including parentheses, spaces and newlines. So
/// the fields start after the last closing parenthesis.
fn parse(text: &[u8]) -> Option<Stat> {
    let after_name = text.iter().rposition(|byte| *byte == b')')? + 1;
    let rest = std::str::from_utf8(text.get(after_name..)?).ok()?;
    // The first field after the name is the third field of the manual page.
    let mut fields = rest.split_ascii_whitespace();
    let mut skip_to = |n: usize| fields.nth(n);
    let is_zombie = matches!(skip_to(0)?, "Z" | "X" | "x");
    let parent = skip_to(0)?.parse().ok()?;
    let group = skip_to(0)?.parse().ok()?;
    let session = skip_to(0)?.parse().ok()?;
    let terminal: i32 = skip_to(0)?.parse().ok()?;
    let user: u64 = skip_to(6)?.parse().ok()?;
    let system: u64 = skip_to(0)?.parse().ok()?;
    let started = skip_to(6)?.parse().ok()?;
    let pages: u64 = skip_to(1)?.parse().ok()?;
    let tick_ns = 1_000_000_000 / rustix::param::clock_ticks_per_second().max(1);
    let page = u64::try_from(rustix::param::page_size()).ok()?;
    Some(Stat {
        parent: known(parent),
        group: known(group),
        session: known(session),
        is_zombie,
        has_terminal: terminal != 0,
        cpu_ns: user.saturating_add(system).saturating_mul(tick_ns),
        memory: pages.saturating_mul(page),
        started,
    })
}

/// A process that is being reaped has the parent 0 and the group -1.
fn known(number: i32) -> Option<Pid> {
    if number > 0 { Pid::from_raw(number) } else { None }
}

/// Opens and reads the file of a process.
///
/// # Errors
/// Those of [`StatFile::open`] and [`StatFile::read`].
pub fn of(pid: Pid) -> io::Result<Stat> {
    StatFile::open(pid)?.read()
}

/// Whether `pid` is still the process that has the start time `started`.
#[must_use]
pub fn is_still(pid: Pid, started: u64) -> bool {
    of(pid).is_ok_and(|stat| stat.started == started)
}

/// The name of a process as `ps` shows it: proc_pid_comm(5).
#[must_use]
pub fn name(pid: Pid) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_pid())).ok()?;
    Some(text.trim_end_matches('\n').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str) -> String {
        format!(
            "812 ({name}) S 1 800 812 0 -1 4194560 1 2 3 4 150 50 7 8 20 0 4 0 99 12345678 300 18446744073709551615 1 1 0"
        )
    }

    #[test]
    fn a_name_may_hold_anything() {
        for name in ["node", "a b", ") S 9 9", "((", "a\nb", "tmux: server", ")", ""] {
            let stat = parse(line(name).as_bytes()).expect(name);
            assert_eq!(stat.parent, Pid::from_raw(1), "{name}");
            assert_eq!((stat.group, stat.session), (Pid::from_raw(800), Pid::from_raw(812)), "{name}");
            assert_eq!(stat.memory, 300 * 4096, "{name}");
            assert!(!stat.has_terminal, "{name}");
            assert_eq!(stat.cpu_ns, 2_000_000_000, "{name}: 200 ticks of 10 ms");
            assert_eq!(stat.started, 99, "{name}");
        }
    }

    #[test]
    fn the_number_of_a_terminal_tells_that_there_is_one() {
        let line = line("node").replace(" 812 0 -1 ", " 812 34816 812 ");
        assert!(parse(line.as_bytes()).expect("a line").has_terminal);
    }

    #[test]
    fn a_process_that_is_being_reaped_has_neither_parent_nor_group() {
        let line = line("node").replace(" S 1 800 ", " X 0 -1 ");
        let stat = parse(line.as_bytes()).expect("a line");
        assert_eq!((stat.parent, stat.group, stat.is_zombie), (None, None, true));
    }

    #[test]
    fn what_is_cut_short_says_nothing() {
        let whole = line("node");
        for end in 0..whole.find(" 300").expect("the memory") {
            assert_eq!(parse(&whole.as_bytes()[..end]), None, "{end}");
        }
    }

    #[test]
    fn this_process_has_a_parent_and_memory() {
        let stat = of(rustix::process::getpid()).expect("procfs");
        assert_eq!(stat.parent, rustix::process::getppid());
        assert!(stat.memory > 0);
    }
}
