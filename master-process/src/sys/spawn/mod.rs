//! Starts workers: `clone3` with a pidfd, and a child that shares the supervisor's memory until `execve`.
//!
//! The child (`CLONE_VM`, with its own stack) costs the same however much memory the supervisor has. The parent
//! prepares everything before. The child only makes system calls, and writes a failed call and its errno into a report.
//! It starts with the parent's descriptor table (`CLONE_FILES`), so the listener of its seccomp filter appears in that
//! table. Then it copies the low end of the table for itself.
//!
//! `CLONE_VFORK` would block the supervisor until the file system of the program has answered. Instead the kernel
//! clears a word (`CLONE_CHILD_CLEARTID`) when the child has left the shared memory, by `execve` or by its end, and
//! wakes a waiting parent. A start usually takes a fraction of a millisecond, and the parent waits for it. For a longer
//! start it checks the word later.

mod child;
mod interpreter;
mod launch;
mod memory;
mod raw_syscalls;

use std::ffi::{CString, c_int, c_long};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32};
use std::time::Duration;
use std::{fmt, io};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, recvmsg,
    socketpair,
};
use rustix::process::{Pid, Rlimit};

use super::capabilities::WorkerCapabilities;
use super::fds;
use super::seccomp::Filter;
use child::{MissingInterpreter, Prepared, Report, Shared, child};
pub use launch::{FinishedLaunch, Launch};
use memory::{Memory, STACK, Stack};
use raw_syscalls::{CLONE_CLEAR_SIGHAND, CLONE_INTO_CGROUP, clone, clone3};

/// What all workers of a supervisor have in common.
#[derive(Debug)]
pub struct SpawnTemplate {
    /// The paths to try in this order, as `execvp(3)` does.
    pub candidates: Vec<CString>,
    /// The arguments; the first is the name of the command.
    pub argv: Vec<CString>,
    /// `NAME=VALUE` entries.
    pub environment: Vec<CString>,
    /// The directory of `--chdir`, or the supervisor's own.
    pub directory: Option<Directory>,
    /// File mode creation mask.
    pub umask: Option<u32>,
    /// User, group and supplementary groups.
    pub identity: Option<crate::config::Identity>,
    /// The worker's capability sets; `None` to leave them unchanged.
    pub capabilities: Option<WorkerCapabilities>,
    /// The limits of open files that the worker gets back.
    pub nofile: Option<Rlimit>,
    /// The largest size of a file that the worker can write, in bytes; `None` to leave that limit unchanged.
    pub file_size: Option<u64>,
    /// Standard input, if it is not the supervisor's.
    pub stdin: Option<OwnedFd>,
    /// The descriptors that become 3 and following. Each has a number above all of those.
    pub inherited: Vec<OwnedFd>,
    /// Whether a filter needs `NO_NEW_PRIVS`.
    pub filter_needs_no_new_privs: bool,
    /// Whether the worker gets `NO_NEW_PRIVS` also without a filter.
    pub no_new_privs: bool,
    /// Whether the kernel kills a worker when the supervisor dies.
    pub dies_with_us: bool,
}

/// A working directory, which each start resolves anew.
#[derive(Debug, Clone)]
pub struct Directory {
    /// Its path.
    pub path: CString,
    /// `PWD=` and the path. A worker in another directory does not get it.
    pub variable: CString,
    /// Whether a worker may start in the supervisor's directory if this one cannot be entered.
    pub optional: bool,
}

/// The arguments of one start.
#[derive(Debug, Default)]
pub struct SpawnArgs {
    /// The worker's seccomp filter.
    pub filter: Option<Arc<Filter>>,
    /// `NAME=VALUE` entries that follow the template's.
    pub environment: Vec<CString>,
    /// Descriptors of the supervisor, and their numbers in the worker. None of the former is one of the latter.
    pub extra: Vec<(OwnedFd, RawFd)>,
    /// The cgroup that the worker starts in, if it is not the supervisor's.
    pub cgroup: Option<OwnedFd>,
    /// Whether the worker's process group becomes the foreground group of the terminal on its standard input.
    pub foreground: bool,
}

/// A worker that has executed its program.
#[derive(Debug)]
pub struct Spawned {
    /// Its pid.
    pub pid: Pid,
    /// The handle for waiting and signals.
    pub pidfd: OwnedFd,
    /// The listener for the notifications of its filter.
    pub listener: Option<OwnedFd>,
    /// Whether it was started in the requested cgroup: `CLONE_INTO_CGROUP`.
    pub in_cgroup: bool,
    /// Whether clone3(2) started it. Otherwise clone(2) did.
    pub by_clone3: bool,
}

/// A child that was cloned.
#[derive(Debug)]
struct Cloned {
    pid: Pid,
    pidfd: OwnedFd,
    in_cgroup: bool,
    by_clone3: bool,
}

/// The steps of a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum SpawnStep {
    /// `clone3`. If it fails, there is no child.
    Clone,
    /// The limits of the cgroup. The supervisor sets them.
    Cgroup,
    /// `prctl(PR_SET_NO_NEW_PRIVS)`.
    NoNewPrivs,
    /// `seccomp(SECCOMP_SET_MODE_FILTER)`.
    Seccomp,
    /// `close_range(CLOSE_RANGE_UNSHARE)`, and what else comes before the steps that can take long.
    Unshare,
    /// `setpgid`.
    ProcessGroup,
    /// `dup3` or `fcntl` of a descriptor for the worker.
    Descriptor,
    /// `prlimit64(RLIMIT_NOFILE)`.
    Limit,
    /// `setgroups`.
    Groups,
    /// `setresgid`.
    Group,
    /// `setresuid`.
    User,
    /// `prctl(PR_SET_KEEPCAPS)`.
    KeepCapabilities,
    /// `capset`.
    Capabilities,
    /// `prctl(PR_CAP_AMBIENT)`.
    Ambient,
    /// `chdir`.
    Directory,
    /// `prctl(PR_SET_PDEATHSIG)`.
    DeathSignal,
    /// `execve`.
    Exec,
}

/// The number of stacks that are kept for the next starts, while there are some.
const SPARE_STACKS: usize = 8;

/// A start that failed.
#[derive(Debug)]
pub struct SpawnError {
    /// The step that failed.
    pub step: SpawnStep,
    /// The errno.
    pub errno: i32,
    /// The interpreter that the program needs and that could not be executed.
    pub interpreter: Option<Interpreter>,
    /// The time that passed without a result, if no call has failed.
    pub within: Option<Duration>,
}

/// An interpreter that cannot be executed: of a script's first line, of an ELF file (its dynamic loader), or the shell.
#[derive(Debug, PartialEq, Eq)]
pub struct Interpreter {
    /// Its path as the file has it, which need not be UTF-8.
    pub path: Vec<u8>,
    /// The file that names it.
    pub of: CString,
    /// Whether it does not exist.
    pub is_absent: bool,
}

impl Interpreter {
    fn of(report: &MissingInterpreter, candidates: &[CString]) -> Option<Interpreter> {
        let path = report.name().to_vec();
        let of = candidates.get(report.candidate)?.clone();
        (!path.is_empty()).then_some(Interpreter { path, of, is_absent: report.is_absent })
    }
}

/// Formats as `interpreter /bin/sh\r of ./app`, with invisible characters escaped.
impl fmt::Display for Interpreter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [path, of] = [self.path.as_slice(), self.of.to_bytes()].map(String::from_utf8_lossy);
        write!(f, "interpreter {} of {of}", path.escape_debug())
    }
}

impl SpawnStep {
    fn of(raw: c_int) -> SpawnStep {
        use SpawnStep::{
            Ambient, Capabilities, Cgroup, Clone, DeathSignal, Descriptor, Directory, Exec, Group, Groups,
            KeepCapabilities, Limit, NoNewPrivs, ProcessGroup, Seccomp, Unshare, User,
        };
        let all = [
            Clone,
            Cgroup,
            NoNewPrivs,
            Seccomp,
            Unshare,
            ProcessGroup,
            Descriptor,
            Limit,
            Groups,
            Group,
            User,
            KeepCapabilities,
            Capabilities,
            Ambient,
            Directory,
            DeathSignal,
            Exec,
        ];
        all.into_iter().find(|step| *step as c_int == raw).unwrap_or(Exec)
    }
}

impl SpawnError {
    /// A start that failed at this step with this errno.
    pub fn new(step: SpawnStep, errno: i32) -> SpawnError {
        SpawnError { step, errno, interpreter: None, within: None }
    }

    /// A start that was at this step after this time.
    pub fn no_answer(step: SpawnStep, within: Duration) -> SpawnError {
        SpawnError { step, errno: libc::ETIME, interpreter: None, within: Some(within) }
    }

    /// The failed call by the name of its manual page.
    pub fn call(&self) -> &'static str {
        match self.step {
            SpawnStep::Clone => "clone3",
            SpawnStep::Cgroup => "cgroup",
            SpawnStep::NoNewPrivs => "prctl(PR_SET_NO_NEW_PRIVS)",
            SpawnStep::Seccomp => "seccomp",
            SpawnStep::Unshare => "close_range",
            SpawnStep::ProcessGroup => "setpgid",
            SpawnStep::Descriptor => "dup3",
            SpawnStep::Limit => "prlimit",
            SpawnStep::Groups => "setgroups",
            SpawnStep::Group => "setresgid",
            SpawnStep::User => "setresuid",
            SpawnStep::KeepCapabilities => "prctl(PR_SET_KEEPCAPS)",
            SpawnStep::Capabilities => "capset",
            SpawnStep::Ambient => "prctl(PR_CAP_AMBIENT)",
            SpawnStep::Directory => "chdir",
            SpawnStep::DeathSignal => "prctl(PR_SET_PDEATHSIG)",
            SpawnStep::Exec => "execve",
        }
    }

    /// Whether a later attempt can succeed without any change to the configuration, because a resource is short.
    pub fn is_passing(&self) -> bool {
        matches!(
            self.errno,
            libc::EAGAIN
                | libc::ENOMEM
                | libc::EMFILE
                | libc::ENFILE
                | libc::ENOBUFS
                | libc::EINTR
                | libc::ETXTBSY
        )
    }
}

/// Starts workers.
#[derive(Debug)]
pub struct Spawner {
    /// Stacks that no child uses.
    stacks: Vec<Stack>,
    /// Whether a child can start with the parent's descriptor table and copy a part of it with close_range(2).
    /// Otherwise it starts with a copy of the whole table, which takes longer with more workers. unshare(2) is no
    /// alternative: seccomp profiles that lack close_range deny it.
    shares_table: bool,
}

impl Spawner {
    /// Reserves a stack.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn new() -> io::Result<Spawner> {
        Ok(Spawner { stacks: vec![Stack::new()?], shares_table: fds::has_close_range() })
    }

    /// Begins to start a worker. [`Launch::wait`] reports when its program runs or the start has failed.
    ///
    /// # Errors
    /// Those of clone3(2); there is no child then.
    pub fn start(&mut self, template: &Arc<SpawnTemplate>, args: SpawnArgs) -> Result<Launch, SpawnError> {
        let (receiver, sender) = self.listener_channel()?.unzip();
        // `args` keeps the descriptor open.
        let cgroup = args.cgroup.as_ref().map(AsRawFd::as_raw_fd);
        let stack = match self.stacks.pop() {
            Some(stack) => stack,
            None => Stack::new().map_err(|error| {
                SpawnError::new(SpawnStep::Clone, error.raw_os_error().unwrap_or(libc::ENOMEM))
            })?,
        };
        let shared = Shared {
            prepared: Prepared::new(template, args, sender),
            report: Report::new(),
            step: AtomicI32::new(SpawnStep::Unshare as i32),
            inside: AtomicU32::new(1),
        };
        let memory = Memory::new(shared, stack);
        let started = match self.clone_child(&memory, cgroup) {
            // The worker must run even if the cgroup cannot be used.
            Err(error) if cgroup.is_some() && !error.is_passing() => self.clone_child(&memory, None),
            result => result,
        };
        match started {
            Ok(Cloned { pid, pidfd, in_cgroup, by_clone3 }) => {
                Ok(Launch { memory, pid, pidfd, receiver, in_cgroup, by_clone3 })
            }
            Err(error) => {
                memory.mark_free();
                self.keep(memory);
                Err(error)
            }
        }
    }

    /// The result of a start.
    ///
    /// # Errors
    /// The call that failed, and its errno. The child has been reaped then.
    pub fn result(&mut self, over: FinishedLaunch) -> Result<Spawned, SpawnError> {
        let Launch { memory, pid, pidfd, receiver, in_cgroup, by_clone3 } = over.0;
        let report = memory.report();
        let number = report.map_or(-1, |report| report.listener);
        let listener = match receiver {
            Some(receiver) => receive(receiver.as_fd()),
            None => (number >= 0)
                // SAFETY: the kernel has put this descriptor into our table for the child's filter. No other code has it, and the report is read once.
                .then(|| unsafe { OwnedFd::from_raw_fd(number) }),
        };
        let failure = report.filter(|report| report.errno != 0).map(|report| {
            let candidates = memory.template().map_or(&[][..], |template| &template.candidates);
            let interpreter = Interpreter::of(&report.interpreter, candidates);
            SpawnError { step: SpawnStep::of(report.step), errno: report.errno, interpreter, within: None }
        });
        self.keep(memory);
        let Some(failure) = failure else {
            return Ok(Spawned { pid, pidfd, listener, in_cgroup, by_clone3 });
        };
        // The child is about to exit or has exited, so this waits only for the kernel's last steps.
        let _exit_127 = super::pidfd::wait(pidfd.as_fd());
        Err(failure)
    }

    /// A socket pair for the listener of a child that starts with a copy of the descriptor table.
    fn listener_channel(&self) -> Result<Option<(OwnedFd, OwnedFd)>, SpawnError> {
        if self.shares_table {
            return Ok(None);
        }
        let (family, kind) = (AddressFamily::UNIX, SocketType::DGRAM);
        let pair = socketpair(family, kind, SocketFlags::CLOEXEC, None);
        pair.map(Some).map_err(|error| SpawnError::new(SpawnStep::Descriptor, error.raw_os_error()))
    }

    /// No start follows soon: the stacks are released, each of which keeps some pages.
    pub fn release_stacks(&mut self) {
        self.stacks.clear();
    }

    fn keep(&mut self, mut memory: Memory) {
        self.stacks.extend(memory.take_stack());
        self.stacks.truncate(SPARE_STACKS);
    }

    /// clone(2), where clone3(2) is denied, cannot put the child into the cgroup.
    fn clone_child(&self, memory: &Memory, cgroup: Option<RawFd>) -> Result<Cloned, SpawnError> {
        let mut pidfd: c_int = -1;
        let table = if self.shares_table { libc::CLONE_FILES } else { 0 };
        let flags = libc::CLONE_PIDFD | libc::CLONE_VM | libc::CLONE_CHILD_CLEARTID | table;
        // SAFETY: all zero is valid for clone3(2) and requests nothing.
        let mut args = unsafe { std::mem::zeroed::<libc::clone_args>() };
        args.flags = u64::from(flags.cast_unsigned()) | CLONE_CLEAR_SIGHAND;
        args.pidfd = ptr::from_mut(&mut pidfd).addr() as u64;
        args.child_tid = memory.inside().as_ptr().expose_provenance() as u64;
        // With 0, an ordinary wait would not see a child that dies before `execve`.
        args.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
        args.stack = memory.stack_start() as u64;
        args.stack_size = STACK as u64;
        if let Some(cgroup) = cgroup {
            args.flags |= CLONE_INTO_CGROUP;
            args.cgroup = u64::try_from(cgroup).unwrap_or(0);
        }
        let (mut in_cgroup, mut by_clone3) = (cgroup.is_some(), true);
        // SAFETY: the stack is a separate mapping that only this child uses. `Memory` frees neither the stack nor what
        // `shared` points to before the kernel has reported that the child has left our memory. The child writes to
        // nothing else: it makes its system calls without the C library and its errno. The signal handlers are the
        // defaults, so no code of ours runs in it except `child`, which never returns.
        let result = unsafe {
            let shared = memory.shared.as_ptr().cast();
            match clone3(&args, child, shared) {
                refused if refused == -c_long::from(libc::ENOSYS) => {
                    (in_cgroup, by_clone3) = (false, false);
                    clone(&args, child, shared)
                }
                result => result,
            }
        };
        if result < 0 {
            let errno = c_int::try_from(-result).unwrap_or(libc::EINVAL);
            return Err(SpawnError::new(SpawnStep::Clone, errno));
        }
        let pid = c_int::try_from(result).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or(SpawnError::new(SpawnStep::Clone, libc::EINVAL))?;
        // SAFETY: clone3 succeeded with CLONE_PIDFD, so it stored a new descriptor that nothing else owns.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        Ok(Cloned { pid, pidfd, in_cgroup, by_clone3 })
    }
}

/// Receives the descriptor that a child has sent, if it has.
fn receive(socket: BorrowedFd<'_>) -> Option<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    recvmsg(socket, &mut [io::IoSliceMut::new(&mut [0])], &mut control, flags).ok()?;
    control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        RecvAncillaryMessage::ScmCredentials(_) | _ => None,
    })
}
