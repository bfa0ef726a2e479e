//! The handle of a child process, and its exit status.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use rustix::process::{Pid, WaitId, WaitIdOptions, WaitIdStatus, waitid};
use serde::{Deserialize, Serialize};

/// The exit status of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// It called `exit` with this code.
    Code(i32),
    /// A signal ended it.
    Signal {
        /// The signal's number.
        number: i32,
        /// Whether the kernel wrote a core dump.
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

/// The exit status of a process and its resource usage: wait4(2), getrusage(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Death {
    /// The exit status.
    pub exit: Exit,
    /// CPU time of the process and of the children that it waited for.
    pub cpu: Duration,
    /// The largest resident set, in bytes, of the process or one of those children. `None` if it is not larger than
    /// ours: the kernel also counts the time before `exec`, when a child of ours shares our memory.
    pub peak_memory: Option<u64>,
}

/// Sends a signal to the process of `pidfd`, and never to another process that has the same pid later.
///
/// # Errors
/// ESRCH if the process is gone, EPERM if we may not signal its user; pidfd_send_signal(2).
pub fn signal(pidfd: BorrowedFd<'_>, number: i32) -> io::Result<()> {
    send(pidfd, number, 0)
}

/// Sends SIGKILL to the process group that the process of `pidfd` leads. The process must not have been reaped: until
/// then no other group can have its number.
///
/// # Errors
/// ESRCH if the group is empty.
pub fn kill_group(pidfd: BorrowedFd<'_>, pid: Pid) -> io::Result<()> {
    signal_group(pidfd, pid, rustix::process::Signal::KILL)
}

/// Sends a signal to the process group that the process of `pidfd` leads, under the conditions of [`kill_group`].
///
/// # Errors
/// ESRCH if the group is empty.
pub fn signal_group(pidfd: BorrowedFd<'_>, pid: Pid, signal: rustix::process::Signal) -> io::Result<()> {
    match send(pidfd, signal.as_raw(), libc::PIDFD_SIGNAL_PROCESS_GROUP) {
        // Linux before 6.9 does not have this flag. The unreaped process keeps the kernel from reusing the number, so
        // naming the group by number is free of races.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            Ok(rustix::process::kill_process_group(pid, signal)?)
        }
        result => result,
    }
}

/// Sends SIGKILL to the process group that the process of `pidfd` led, even if the process was reaped.
///
/// # Errors
/// ESRCH if the group is empty; EINVAL before Linux 6.9, where a group can only be named by its number.
pub fn kill_led_group(pidfd: BorrowedFd<'_>) -> io::Result<()> {
    send(pidfd, libc::SIGKILL, libc::PIDFD_SIGNAL_PROCESS_GROUP)
}

/// Whether the process group that the process of `pidfd`, with number `pid`, led has members, zombies included.
pub fn has_group(pidfd: BorrowedFd<'_>, pid: Pid) -> bool {
    match send(pidfd, 0, libc::PIDFD_SIGNAL_PROCESS_GROUP) {
        // Before Linux 6.9. The number cannot be reused while the group has members. If it was reused later, this
        // signal 0 goes to an unrelated group and does no harm.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            rustix::process::test_kill_process_group(pid).is_ok()
        }
        result => result.is_ok(),
    }
}

fn send(pidfd: BorrowedFd<'_>, number: i32, flags: libc::c_uint) -> io::Result<()> {
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is borrowed for the call, and a null siginfo is allowed: the kernel fills one in.
    let result =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), number, info, flags) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The exit status of the child of `pidfd`, which stays a zombie; `None` while it runs.
///
/// # Errors
/// ECHILD if it was reaped already or is not a child of this process.
pub fn try_wait(pidfd: BorrowedFd<'_>) -> io::Result<Option<Exit>> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    Ok(waitid(WaitId::PidFd(pidfd), options)?.and_then(|status| Exit::of(&status)))
}

/// Waits for the end of the child of `pidfd` and reaps it.
///
/// # Errors
/// Those of [`try_wait`].
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

/// The system call waitid(2), which has a fifth argument that the C library's function lacks.
fn wait_with_usage(pidfd: BorrowedFd<'_>) -> io::Result<(libc::siginfo_t, libc::rusage)> {
    // SAFETY: an all-zero siginfo_t is a valid value of that plain C structure.
    let mut info = unsafe { std::mem::zeroed::<libc::siginfo_t>() };
    // SAFETY: an all-zero rusage is valid, too.
    let mut usage = unsafe { std::mem::zeroed::<libc::rusage>() };
    let (from, fd, options) = (libc::P_PIDFD, pidfd.as_raw_fd(), libc::WEXITED);
    // SAFETY: the descriptor is borrowed for the call, and both structures belong to this frame and outlive it.
    let result = unsafe { libc::syscall(libc::SYS_waitid, from, fd, &raw mut info, options, &raw mut usage) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok((info, usage)) }
}

fn own_peak_memory() -> u64 {
    // SAFETY: an all-zero rusage is a valid value of that plain C structure.
    let mut usage = unsafe { std::mem::zeroed::<libc::rusage>() };
    // SAFETY: the structure belongs to this frame and outlives the call, which cannot fail with these arguments.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) };
    peak_memory(&usage)
}

/// The peak resident set in bytes; the kernel counts KiB.
fn peak_memory(usage: &libc::rusage) -> u64 {
    u64::try_from(usage.ru_maxrss).unwrap_or(0).saturating_mul(1024)
}

fn duration(time: libc::timeval) -> Duration {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_micros(u64::try_from(time.tv_usec).unwrap_or(0))
}

/// A child that has ended and was not reaped. This does not reap it.
///
/// # Errors
/// ECHILD if this process has no children.
pub fn any_zombie() -> io::Result<Option<Pid>> {
    // SAFETY: an all-zero siginfo_t is a valid value of that plain C structure.
    let mut info = unsafe { std::mem::zeroed::<libc::siginfo_t>() };
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: `info` belongs to this frame and outlives the call.
    if unsafe { libc::waitid(libc::P_ALL, 0, &mut info, options) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: waitid filled the structure for SIGCHLD, or left it zeroed: si_pid is set in both cases.
    Ok(Pid::from_raw(unsafe { info.si_pid() }))
}

/// A child that was stopped or continued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paused {
    /// Its pid.
    pub pid: Pid,
    /// The signal that stopped it; `None` if it was continued.
    pub by: Option<i32>,
}

/// The next child that was stopped and still is, or that was continued. Each event is returned once.
///
/// # Errors
/// ECHILD if this process has no children.
pub fn next_paused() -> io::Result<Option<Paused>> {
    // SAFETY: an all-zero siginfo_t is a valid value of that plain C structure.
    let mut info = unsafe { std::mem::zeroed::<libc::siginfo_t>() };
    let options = libc::WSTOPPED | libc::WCONTINUED | libc::WNOHANG;
    // SAFETY: `info` belongs to this frame and outlives the call.
    if unsafe { libc::waitid(libc::P_ALL, 0, &mut info, options) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: waitid filled the structure for SIGCHLD, or left it zeroed: both fields are set in both cases.
    let (pid, signal) = unsafe { (info.si_pid(), info.si_status()) };
    let by = (info.si_code == libc::CLD_STOPPED).then_some(signal);
    Ok(Pid::from_raw(pid).map(|pid| Paused { pid, by }))
}

/// Reaps a zombie child that has no pidfd here: a process that was reparented to the supervisor.
///
/// # Errors
/// ECHILD if there is no such child.
pub fn reap_child(pid: Pid) -> io::Result<()> {
    waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG)?;
    Ok(())
}

/// Kills a child that has no pidfd here. The pid stays its own until this process reaps it.
///
/// # Errors
/// ESRCH if it is gone, EPERM if it runs as a user that we may not signal.
pub fn kill_child(pid: Pid) -> io::Result<()> {
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
    signal(std::os::fd::AsFd::as_fd(&pidfd), libc::SIGKILL)
}

/// Makes this process the subreaper of its descendants: orphaned descendants become its children instead of pid 1's.
///
/// # Errors
/// None since Linux 3.4; PR_SET_CHILD_SUBREAPER(2const).
pub fn become_subreaper() -> io::Result<()> {
    Ok(rustix::process::set_child_subreaper(rustix::process::Pid::from_raw(1))?)
}
