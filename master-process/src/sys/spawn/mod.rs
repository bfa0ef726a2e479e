//! Starting a worker: `clone3` with a pidfd, in a child that shares our memory until it is another program.
//!
//! The child (`CLONE_VM`, on a stack of its own) costs the same whatever the supervisor holds. Everything that it needs
//! is prepared before; it only makes system calls, and leaves the one that failed and its errno in a report. It starts
//! with our descriptor table (`CLONE_FILES`), so the listener of its seccomp filter is ours without any passing, and
//! then takes a copy of the low end of that table for itself.
//!
//! Not `CLONE_VFORK`, which would hold us for as long as the file system takes that the program is on. The kernel clears
//! a word of ours when the child has left our memory (`CLONE_CHILD_CLEARTID`), by `execve` or by its end, and wakes who
//! waits for that; so does a start that takes its usual fraction of a millisecond. One that takes longer is looked after
//! later, by that word.

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

/// What every worker of a supervisor has in common.
#[derive(Debug)]
pub struct SpawnTemplate {
    /// The paths to try, in this order, as `execvp(3)` would.
    pub candidates: Vec<CString>,
    /// Arguments, the command's name first.
    pub argv: Vec<CString>,
    /// `NAME=VALUE`.
    pub environment: Vec<CString>,
    /// What `--chdir` names, or the supervisor's own directory by its path.
    pub directory: Option<Directory>,
    /// File mode creation mask.
    pub umask: Option<u32>,
    /// User, group and supplementary groups.
    pub identity: Option<crate::config::Identity>,
    /// The worker's capability sets; `None`: they are as they should be.
    pub capabilities: Option<WorkerCapabilities>,
    /// What the soft limit of open files is set back to.
    pub nofile: Option<Rlimit>,
    /// Standard input, if not ours.
    pub stdin: Option<OwnedFd>,
    /// Handed over from descriptor 3 on; each has a number above all those.
    pub handed_over: Vec<OwnedFd>,
    /// Whether a filter needs `NO_NEW_PRIVS`.
    pub filter_needs_no_new_privs: bool,
    /// Whether the worker gets `NO_NEW_PRIVS`, with a filter or without.
    pub no_new_privs: bool,
    /// Whether the kernel kills a worker when we are gone.
    pub dies_with_us: bool,
}

/// A working directory, resolved at each start.
#[derive(Debug)]
pub struct Directory {
    /// Its path.
    pub path: CString,
    /// `PWD=` and the path: only a worker that is there finds it.
    pub variable: CString,
    /// Whether a worker can do without: then it starts where we are.
    pub optional: bool,
}

/// What differs between two workers.
#[derive(Debug, Default)]
pub struct SpawnArgs {
    /// The worker's seccomp filter.
    pub filter: Option<Arc<Filter>>,
    /// `NAME=VALUE`, after the template's.
    pub environment: Vec<CString>,
    /// A descriptor of ours and the number that the worker finds it under.
    pub extra: Option<(OwnedFd, RawFd)>,
    /// The cgroup that it is started in, if not ours.
    pub cgroup: Option<OwnedFd>,
    /// Whether the worker's process group becomes the foreground of the terminal that is its standard input.
    pub foreground: bool,
}

/// A worker that runs.
#[derive(Debug)]
pub struct Spawned {
    /// Its process id.
    pub pid: Pid,
    /// The handle that all waiting and signalling goes through.
    pub pidfd: OwnedFd,
    /// Where its filter's notifications arrive.
    pub listener: Option<OwnedFd>,
    /// Whether it was started in the cgroup that was wanted: `CLONE_INTO_CGROUP`.
    pub in_cgroup: bool,
}

/// What the child was doing when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum SpawnStep {
    /// `clone3`: there is no child.
    Clone,
    /// `prctl(PR_SET_NO_NEW_PRIVS)`.
    NoNewPrivs,
    /// `seccomp(SECCOMP_SET_MODE_FILTER)`.
    Seccomp,
    /// `close_range(CLOSE_RANGE_UNSHARE)`, or what else comes before the steps that can take long.
    Unshare,
    /// `setpgid`.
    ProcessGroup,
    /// `dup3` or `fcntl` of a descriptor that is handed over.
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

/// Kept for the next starts: more than one is used at a time only where a file system is slow.
const SPARE_STACKS: usize = 8;

/// A start that failed.
#[derive(Debug)]
pub struct SpawnError {
    /// Where.
    pub step: SpawnStep,
    /// Why.
    pub errno: i32,
    /// What the program needs and `execve` did not get.
    pub interpreter: Option<Interpreter>,
    /// Nothing has failed, and nothing has come to an end in this time either.
    pub within: Option<Duration>,
}

/// An interpreter that cannot be executed: of a script's first line, of an ELF file (its dynamic loader), or the shell.
#[derive(Debug, PartialEq, Eq)]
pub struct Interpreter {
    /// Its path as the file has it, of which no part need be text.
    pub path: Vec<u8>,
    /// The file that needs it.
    pub of: CString,
    /// Whether it is not there.
    pub is_absent: bool,
}

impl Interpreter {
    fn of(report: &MissingInterpreter, candidates: &[CString]) -> Option<Interpreter> {
        let path = report.name().to_vec();
        let of = candidates.get(report.candidate)?.clone();
        (!path.is_empty()).then_some(Interpreter { path, of, is_absent: report.is_absent })
    }
}

/// As `interpreter /bin/sh\r of ./app`: what cannot be seen is escaped.
impl fmt::Display for Interpreter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [path, of] = [self.path.as_slice(), self.of.to_bytes()].map(String::from_utf8_lossy);
        write!(f, "interpreter {} of {of}", path.escape_debug())
    }
}

impl SpawnStep {
    fn of(raw: c_int) -> SpawnStep {
        use SpawnStep::{
            Ambient, Capabilities, Clone, DeathSignal, Descriptor, Directory, Exec, Group, Groups,
            KeepCapabilities, Limit, NoNewPrivs, ProcessGroup, Seccomp, Unshare, User,
        };
        let all = [
            Clone,
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
    /// A start that failed at this step for this reason.
    pub fn new(step: SpawnStep, errno: i32) -> SpawnError {
        SpawnError { step, errno, interpreter: None, within: None }
    }

    /// A start that has not come further than this step in this time.
    pub fn no_answer(step: SpawnStep, within: Duration) -> SpawnError {
        SpawnError { step, errno: libc::ETIME, interpreter: None, within: Some(within) }
    }

    /// The failed call, as its manual page is named.
    pub fn call(&self) -> &'static str {
        match self.step {
            SpawnStep::Clone => "clone3",
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

    /// Whether trying again later may help without anybody doing anything: a resource is short.
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
    /// Those that no child uses.
    stacks: Vec<Stack>,
    /// Whether a child can start with our descriptor table and take what it needs of it: close_range(2). Else it starts
    /// with a copy of all of it, which takes the longer the more workers there are. unshare(2) is no way out: whose profile
    /// lacks the one denies the other.
    shares_table: bool,
}

impl Spawner {
    /// Reserves a child's stack.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn new() -> io::Result<Spawner> {
        Ok(Spawner { stacks: vec![Stack::new()?], shares_table: fds::has_close_range() })
    }

    /// Begins to start a worker. Its program runs, or has failed to, when [`Launch::wait`] says so.
    ///
    /// # Errors
    /// There is no child.
    pub fn start(&mut self, template: &Arc<SpawnTemplate>, args: SpawnArgs) -> Result<Launch, SpawnError> {
        let (receiver, sender) = self.passing()?.unzip();
        // It is open for as long as the args are there.
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
            // Whatever is wrong with the cgroup: the worker is to run.
            Err(error) if cgroup.is_some() && !error.is_passing() => self.clone_child(&memory, None),
            result => result,
        };
        match started {
            Ok((pid, pidfd, in_cgroup)) => Ok(Launch { memory, pid, pidfd, receiver, in_cgroup }),
            Err(error) => {
                memory.is_left();
                self.keep(memory);
                Err(error)
            }
        }
    }

    /// What became of a start.
    ///
    /// # Errors
    /// The call that failed and its errno; no child is left then, not even a zombie.
    pub fn result(&mut self, over: FinishedLaunch) -> Result<Spawned, SpawnError> {
        let Launch { memory, pid, pidfd, receiver, in_cgroup } = over.0;
        let report = memory.report();
        let number = report.map_or(-1, |report| report.listener);
        let listener = match receiver {
            Some(receiver) => receive(receiver.as_fd()),
            None => (number >= 0)
                // SAFETY: the kernel put this descriptor into our table for the child's filter; nobody else knows it,
                // and the report is read once.
                .then(|| unsafe { OwnedFd::from_raw_fd(number) }),
        };
        let failure = report.filter(|report| report.errno != 0).map(|report| {
            let candidates = memory.template().map_or(&[][..], |template| &template.candidates);
            let interpreter = Interpreter::of(&report.interpreter, candidates);
            SpawnError { step: SpawnStep::of(report.step), errno: report.errno, interpreter, within: None }
        });
        self.keep(memory);
        let Some(failure) = failure else {
            return Ok(Spawned { pid, pidfd, listener, in_cgroup });
        };
        // It is about to exit or has: there is nothing to wait for but the kernel's last steps.
        let _exit_127 = super::pidfd::wait(pidfd.as_fd());
        Err(failure)
    }

    /// Where a child sends its listener that has a descriptor table of its own from the beginning.
    fn passing(&self) -> Result<Option<(OwnedFd, OwnedFd)>, SpawnError> {
        if self.shares_table {
            return Ok(None);
        }
        let (family, kind) = (AddressFamily::UNIX, SocketType::DGRAM);
        let pair = socketpair(family, kind, SocketFlags::CLOEXEC, None);
        pair.map(Some).map_err(|error| SpawnError::new(SpawnStep::Descriptor, error.raw_os_error()))
    }

    fn keep(&mut self, mut memory: Memory) {
        self.stacks.extend(memory.take_stack());
        self.stacks.truncate(SPARE_STACKS);
    }

    /// Whether the child is in the cgroup comes with it: clone(2) knows none.
    fn clone_child(
        &self,
        memory: &Memory,
        cgroup: Option<RawFd>,
    ) -> Result<(Pid, OwnedFd, bool), SpawnError> {
        let mut pidfd: c_int = -1;
        let table = if self.shares_table { libc::CLONE_FILES } else { 0 };
        let flags = libc::CLONE_PIDFD | libc::CLONE_VM | libc::CLONE_CHILD_CLEARTID | table;
        // SAFETY: all zero is "nothing asked for" in clone3(2).
        let mut args = unsafe { std::mem::zeroed::<libc::clone_args>() };
        args.flags = u64::from(flags.cast_unsigned()) | CLONE_CLEAR_SIGHAND;
        args.pidfd = ptr::from_mut(&mut pidfd).addr() as u64;
        args.child_tid = memory.inside().as_ptr().expose_provenance() as u64;
        // Not 0: a child that dies before `exec` would then be invisible to an ordinary wait.
        args.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
        args.stack = memory.stack_start() as u64;
        args.stack_size = STACK as u64;
        if let Some(cgroup) = cgroup {
            args.flags |= CLONE_INTO_CGROUP;
            args.cgroup = u64::try_from(cgroup).unwrap_or(0);
        }
        let mut in_cgroup = cgroup.is_some();
        // SAFETY: the stack is a mapping of its own that only this child uses, and it stays, with all that `shared`
        // points to, until the kernel has said that the child is out of our memory: `Memory` does not free them before.
        // The child writes to nothing else: it makes its system calls itself, without the C library's errno. The signal
        // handlers are the defaults, so nothing of ours runs in it but `child`, which never returns.
        let result = unsafe {
            let shared = memory.shared.as_ptr().cast();
            match clone3(&args, child, shared) {
                refused if refused == -c_long::from(libc::ENOSYS) => {
                    in_cgroup = false;
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
        // SAFETY: clone3 succeeded with CLONE_PIDFD, so it stored a new descriptor that is ours alone.
        Ok((pid, unsafe { OwnedFd::from_raw_fd(pidfd) }, in_cgroup))
    }
}

/// The descriptor that a child has sent, if it has.
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
