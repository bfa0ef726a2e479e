//! The one handle of a child, and how it ended.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use rustix::process::{Pid, WaitId, WaitIdOptions, WaitIdStatus, waitid};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It called `exit` with this code.
    Code(i32),
    /// This signal ended it.
    Signal {
        /// The signal's number.
        number: i32,
        /// Whether it left a core dump.
        dumped: bool,
    },
}

impl Exit {
    fn of(status: &WaitIdStatus) -> Option<Exit> {
        if let Some(code) = status.exit_status() {
            return Some(Exit::Code(code));
        }
        let number = status.terminating_signal()?;
        Some(Exit::Signal { number, dumped: status.dumped() })
    }
}

/// A process's end, and what it had used; wait4(2), getrusage(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Death {
    /// How it ended.
    pub exit: Exit,
    /// CPU time of its own and of the children that it waited for.
    pub cpu: Duration,
    /// The most resident memory that it or one of those children had, in bytes. `None` where it was not more than
    /// ours: the kernel counts what a process had before `exec`, and there a child of ours has our memory.
    pub peak_memory: Option<u64>,
}

/// Sends a signal to the process behind `pidfd`: never to another one, whatever became of its pid.
///
/// # Errors
/// ESRCH where it is gone, EPERM where it runs as somebody whom we may not signal; see pidfd_send_signal(2).
pub fn signal(pidfd: BorrowedFd<'_>, number: i32) -> io::Result<()> {
    send(pidfd, number, 0)
}

/// Sends SIGKILL to the process group that the process behind `pidfd` leads. The process must not have been
/// reaped yet: until then the group's number is its own.
///
/// # Errors
/// ESRCH where nobody is left in the group.
pub fn kill_group(pidfd: BorrowedFd<'_>, pid: Pid) -> io::Result<()> {
    signal_group(pidfd, pid, rustix::process::Signal::KILL)
}

/// Sends a signal to the process group that the process behind `pidfd` leads, as [`kill_group`] does.
///
/// # Errors
/// ESRCH where nobody is left in the group.
pub fn signal_group(pidfd: BorrowedFd<'_>, pid: Pid, signal: rustix::process::Signal) -> io::Result<()> {
    match send(pidfd, signal.as_raw(), libc::PIDFD_SIGNAL_PROCESS_GROUP) {
        // Before Linux 6.9 there is no such flag. The unreaped process keeps the number from being reused, so
        // the group can be named by it without a window.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            Ok(rustix::process::kill_process_group(pid, signal)?)
        }
        result => result,
    }
}

/// Sends SIGKILL to the process group that the process behind `pidfd` led, whether it was reaped or not.
///
/// # Errors
/// ESRCH where nobody is left in the group; EINVAL before Linux 6.9, where a group cannot be named without its number.
pub fn kill_led_group(pidfd: BorrowedFd<'_>) -> io::Result<()> {
    send(pidfd, libc::SIGKILL, libc::PIDFD_SIGNAL_PROCESS_GROUP)
}

/// Whether anybody is left in the process group that the process behind `pidfd`, of number `pid`, led, zombies
/// included.
pub fn has_group(pidfd: BorrowedFd<'_>, pid: Pid) -> bool {
    match send(pidfd, 0, libc::PIDFD_SIGNAL_PROCESS_GROUP) {
        // Before Linux 6.9. Nobody else can get the number while anybody is in the group; who has it later is
        // asked in vain, and comes to no harm.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            rustix::process::test_kill_process_group(pid).is_ok()
        }
        result => result.is_ok(),
    }
}

fn send(pidfd: BorrowedFd<'_>, number: i32, flags: libc::c_uint) -> io::Result<()> {
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is borrowed for the call, and a null siginfo is allowed: the kernel makes one.
    let result =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), number, info, flags) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// How the child behind `pidfd` ended, leaving it a zombie; `None` while it lives.
///
/// # Errors
/// ECHILD where it was reaped already or is no child of ours.
pub fn try_wait(pidfd: BorrowedFd<'_>) -> io::Result<Option<Exit>> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    Ok(waitid(WaitId::PidFd(pidfd), options)?.and_then(|status| Exit::of(&status)))
}

/// Reaps the child behind `pidfd`, waiting for its end if need be.
///
/// # Errors
/// As [`try_wait`].
pub fn wait(pidfd: BorrowedFd<'_>) -> io::Result<Option<Death>> {
    let (info, usage) = wait_with_usage(pidfd)?;
    // SAFETY: waitid filled the structure for SIGCHLD.
    let status = unsafe { info.si_status() };
    let exit = match info.si_code {
        libc::CLD_EXITED => Exit::Code(status),
        libc::CLD_KILLED => Exit::Signal { number: status, dumped: false },
        libc::CLD_DUMPED => Exit::Signal { number: status, dumped: true },
        _alive => return Ok(None),
    };
    let peak = peak_memory(&usage);
    let ours = own_peak_memory();
    Ok(Some(Death {
        exit,
        cpu: duration(usage.ru_utime) + duration(usage.ru_stime),
        peak_memory: (peak > ours).then_some(peak),
    }))
}

/// waitid(2) as the kernel has it: with a fifth argument, which libc's has not.
fn wait_with_usage(pidfd: BorrowedFd<'_>) -> io::Result<(libc::siginfo_t, libc::rusage)> {
    // SAFETY: an all-zero siginfo_t is a valid value of that plain C structure.
    let mut info = unsafe { std::mem::zeroed::<libc::siginfo_t>() };
    // SAFETY: so is an all-zero rusage.
    let mut usage = unsafe { std::mem::zeroed::<libc::rusage>() };
    let (from, fd, options) = (libc::P_PIDFD, pidfd.as_raw_fd(), libc::WEXITED);
    // SAFETY: the descriptor is borrowed for the call, and both structures are our own and outlive it.
    let result = unsafe { libc::syscall(libc::SYS_waitid, from, fd, &raw mut info, options, &raw mut usage) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok((info, usage)) }
}

fn own_peak_memory() -> u64 {
    // SAFETY: an all-zero rusage is a valid value of that plain C structure.
    let mut usage = unsafe { std::mem::zeroed::<libc::rusage>() };
    // SAFETY: the structure is our own and outlives the call, which cannot fail with these arguments.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) };
    peak_memory(&usage)
}

/// In bytes; the kernel counts KiB.
fn peak_memory(usage: &libc::rusage) -> u64 {
    u64::try_from(usage.ru_maxrss).unwrap_or(0).saturating_mul(1024)
}

fn duration(time: libc::timeval) -> Duration {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_micros(u64::try_from(time.tv_usec).unwrap_or(0))
}

/// Any child of ours that has ended and was not reaped, left as it is.
///
/// # Errors
/// ECHILD where we have no child at all.
pub fn any_zombie() -> io::Result<Option<Pid>> {
    // SAFETY: an all-zero siginfo_t is a valid value of that plain C structure.
    let mut info = unsafe { std::mem::zeroed::<libc::siginfo_t>() };
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: `info` is a siginfo_t of our own that outlives the call.
    if unsafe { libc::waitid(libc::P_ALL, 0, &mut info, options) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: waitid filled the structure for SIGCHLD, or left it zeroed: si_pid is set in both cases.
    Ok(Pid::from_raw(unsafe { info.si_pid() }))
}

/// A child of ours that was stopped, or continued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paused {
    /// Which.
    pub pid: Pid,
    /// The signal that stopped it; `None`: it was continued.
    pub by: Option<i32>,
}

/// The next child of ours that was stopped and is still, or that was continued; each is told once.
///
/// # Errors
/// ECHILD where we have no child at all.
pub fn next_paused() -> io::Result<Option<Paused>> {
    // SAFETY: an all-zero siginfo_t is a valid value of that plain C structure.
    let mut info = unsafe { std::mem::zeroed::<libc::siginfo_t>() };
    let options = libc::WSTOPPED | libc::WCONTINUED | libc::WNOHANG;
    // SAFETY: `info` is a siginfo_t of our own that outlives the call.
    if unsafe { libc::waitid(libc::P_ALL, 0, &mut info, options) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: waitid filled the structure for SIGCHLD, or left it zeroed: both fields are set in both cases.
    let (pid, signal) = unsafe { (info.si_pid(), info.si_status()) };
    let by = (info.si_code == libc::CLD_STOPPED).then_some(signal);
    Ok(Pid::from_raw(pid).map(|pid| Paused { pid, by }))
}

/// Reaps a zombie that nobody holds a pidfd of: an orphan that was handed to us.
///
/// # Errors
/// ECHILD where there is none of that number.
pub fn reap_child(pid: Pid) -> io::Result<()> {
    waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG)?;
    Ok(())
}

/// Kills a child of ours that nobody holds a pidfd of. It stays ours, and its pid its own, until we reap it.
///
/// # Errors
/// ESRCH where it is gone, EPERM where it has become somebody whom we may not signal.
pub fn kill_child(pid: Pid) -> io::Result<()> {
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
    signal(std::os::fd::AsFd::as_fd(&pidfd), libc::SIGKILL)
}

/// Makes orphaned descendants ours, as they are pid 1's.
///
/// # Errors
/// None since Linux 3.4; see PR_SET_CHILD_SUBREAPER(2const).
pub fn become_subreaper() -> io::Result<()> {
    Ok(rustix::process::set_child_subreaper(rustix::process::Pid::from_raw(1))?)
}
