//! Starting a worker: `clone3` with a pidfd, in a child that shares our memory until it is another program.
//!
//! The child (`CLONE_VM | CLONE_VFORK`, on a stack of its own) costs the same whatever the supervisor holds.
//! Everything that it needs is prepared before; it only makes system calls, and leaves the one that failed
//! and its errno in a [`Report`] that we read when the kernel lets us go on. It starts with our descriptor
//! table (`CLONE_FILES`), so the listener of its seccomp filter is ours without any passing, and then takes
//! a copy of the low end of that table for itself.

use std::ffi::{CString, c_char, c_int, c_long, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::process::{Pid, Rlimit};

use super::seccomp::Filter;

/// What every worker of a supervisor has in common.
#[derive(Debug)]
pub struct Template {
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
    /// What the soft limit of open files is set back to.
    pub nofile: Option<Rlimit>,
    /// Standard input, if not ours.
    pub stdin: Option<OwnedFd>,
    /// Handed over from descriptor 3 on; each has a number above all those.
    pub handed_over: Vec<OwnedFd>,
    /// The worker's seccomp filter.
    pub filter: Option<Filter>,
    /// Whether the filter needs `NO_NEW_PRIVS`.
    pub no_new_privs: bool,
    /// Whether the kernel kills a worker when we are gone.
    pub dies_with_us: bool,
}

/// A working directory, resolved at each start.
#[derive(Debug)]
pub struct Directory {
    /// Its path.
    pub path: CString,
    /// Whether a worker can do without: then it starts where we are.
    pub optional: bool,
}

/// What differs between two workers.
#[derive(Debug, Default)]
pub struct Particulars {
    /// `NAME=VALUE`, after the template's.
    pub environment: Vec<CString>,
    /// A descriptor of ours and the number that the worker finds it under.
    pub extra: Option<(OwnedFd, RawFd)>,
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
}

/// What the child was doing when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Step {
    /// `clone3`: there is no child.
    Clone,
    /// `prctl(PR_SET_NO_NEW_PRIVS)`.
    NoNewPrivs,
    /// `seccomp(SECCOMP_SET_MODE_FILTER)`.
    Seccomp,
    /// `close_range(CLOSE_RANGE_UNSHARE)`.
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
    /// `chdir`.
    Directory,
    /// `prctl(PR_SET_PDEATHSIG)`.
    DeathSignal,
    /// `execve`.
    Exec,
}

/// A start that failed.
#[derive(Debug)]
pub struct SpawnError {
    /// Where.
    pub step: Step,
    /// Why.
    pub errno: i32,
}

impl SpawnError {
    /// The failed call, as its manual page is named.
    pub fn call(&self) -> &'static str {
        match self.step {
            Step::Clone => "clone3",
            Step::NoNewPrivs => "prctl(PR_SET_NO_NEW_PRIVS)",
            Step::Seccomp => "seccomp",
            Step::Unshare => "close_range",
            Step::ProcessGroup => "setpgid",
            Step::Descriptor => "dup3",
            Step::Limit => "prlimit",
            Step::Groups => "setgroups",
            Step::Group => "setresgid",
            Step::User => "setresuid",
            Step::Directory => "chdir",
            Step::DeathSignal => "prctl(PR_SET_PDEATHSIG)",
            Step::Exec => "execve",
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

/// Enough for a chain of system calls; the program gets a stack of its own.
const STACK: usize = 64 * 1024;

/// Starts workers, one at a time.
#[derive(Debug)]
pub struct Spawner {
    stack: *mut c_void,
}

impl Spawner {
    /// Reserves the child's stack.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn new() -> io::Result<Spawner> {
        use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new private mapping at an address of the kernel's choice overlaps nothing.
        let stack = unsafe { mmap_anonymous(ptr::null_mut(), STACK, protection, MapFlags::PRIVATE) }?;
        Ok(Spawner { stack })
    }

    /// Starts a worker and returns when its program runs, or has failed to.
    ///
    /// # Errors
    /// The call that failed and its errno; no child is left then, not even a zombie.
    pub fn spawn(&mut self, template: &Template, particulars: &Particulars) -> Result<Spawned, SpawnError> {
        let mut prepared = Prepared::new(template, particulars);
        let mut report = Report { step: Step::Exec as i32, errno: 0, listener: -1 };
        let mut order = Order { prepared: &mut prepared, report: &mut report };
        let (pid, pidfd) = self.clone_child(&mut order)?;
        // The child wrote through a pointer that `order` held; it is another program, or gone, by now.
        let listener = (report.listener >= 0)
            // SAFETY: the kernel put this descriptor into our table for the child's filter; nobody else knows it.
            .then(|| unsafe { OwnedFd::from_raw_fd(report.listener) });
        if report.errno == 0 {
            return Ok(Spawned { pid, pidfd, listener });
        }
        // It is about to exit or has: there is nothing to wait for but the kernel's last steps.
        let _exit_127 = super::pidfd::reap(pidfd.as_fd());
        Err(SpawnError { step: Step::of(report.step), errno: report.errno })
    }

    fn clone_child(&mut self, order: &mut Order<'_, '_>) -> Result<(Pid, OwnedFd), SpawnError> {
        let mut pidfd: c_int = -1;
        let flags = libc::CLONE_PIDFD | libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_FILES;
        // SAFETY: all zero is "nothing asked for" in clone3(2).
        let mut args = unsafe { std::mem::zeroed::<libc::clone_args>() };
        args.flags = u64::from(flags.cast_unsigned()) | CLONE_CLEAR_SIGHAND;
        args.pidfd = ptr::from_mut(&mut pidfd).addr() as u64;
        // Not 0: a child that dies before `exec` would then be invisible to an ordinary wait.
        args.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
        args.stack = self.stack.addr() as u64;
        args.stack_size = STACK as u64;
        // SAFETY: the stack is a mapping of its own that only this child uses, one child at a time: CLONE_VFORK
        // holds us until the child has called `execve` or `_exit`, so `order`, and all it points to, outlives
        // the child's use of it. The signal handlers are the defaults, so nothing of ours runs in the child
        // but `child`, which never returns.
        let result = unsafe { clone3(&args, child, ptr::from_mut(order).cast()) };
        if result < 0 {
            let errno = c_int::try_from(-result).unwrap_or(libc::EINVAL);
            return Err(SpawnError { step: Step::Clone, errno });
        }
        let pid = c_int::try_from(result).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or(SpawnError { step: Step::Clone, errno: libc::EINVAL })?;
        // SAFETY: clone3 succeeded with CLONE_PIDFD, so it stored a new descriptor that is ours alone.
        Ok((pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))
    }
}

/// `CLONE_CLEAR_SIGHAND`, which does not fit the C library's int.
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;

/// clone3(2) with a function for the child, which the C library does not offer. Returns the pid or -errno.
///
/// # Safety
/// `args` must name a stack that nothing else uses while the child runs, and `entry` must never return.
unsafe fn clone3(
    args: &libc::clone_args,
    entry: unsafe extern "C" fn(*mut c_void) -> !,
    argument: *mut c_void,
) -> c_long {
    let result: c_long;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the kernel preserves r8 and r9 over the call, so the child, whose stack is empty and aligned to
    // 16 bytes, finds its function and argument there. It pushes to its own stack only. rcx and r11 are what
    // `syscall` itself destroys; memory is clobbered as far as the compiler knows.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test eax, eax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r8",
            "call r9",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") args,
            in("rsi") size_of::<libc::clone_args>(),
            in("r8") argument,
            in("r9") entry,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above; the kernel preserves every register but x0.
    unsafe {
        std::arch::asm!(
            "svc #0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, x2",
            "blr x3",
            "brk #1",
            "2:",
            inlateout("x0") std::ptr::from_ref(args) => result,
            in("x1") size_of::<libc::clone_args>(),
            in("x2") argument,
            in("x3") entry,
            in("x8") libc::SYS_clone3,
            lateout("x30") _,
        );
    }
    result
}

/// What the child leaves behind.
struct Report {
    step: c_int,
    errno: c_int,
    listener: RawFd,
}

impl Step {
    fn of(raw: c_int) -> Step {
        use Step::{
            Clone, DeathSignal, Descriptor, Directory, Exec, Group, Groups, Limit, NoNewPrivs, ProcessGroup,
            Seccomp, Unshare, User,
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
            Directory,
            DeathSignal,
            Exec,
        ];
        all.into_iter().find(|step| *step as c_int == raw).unwrap_or(Exec)
    }
}

/// What the child is to do, in the form that system calls take.
struct Prepared<'a> {
    template: &'a Template,
    argv: Vec<*const c_char>,
    envp: Vec<*const c_char>,
    /// `LISTEN_PID=` and room for the number, which only the child knows.
    listen_pid: [u8; 32],
    fprog: Option<libc::sock_fprog>,
    extra: Option<(RawFd, RawFd)>,
    /// The first descriptor that the child's own table need not have.
    cut: libc::c_uint,
    parent: c_int,
}

const LISTEN_PID: &[u8] = b"LISTEN_PID=";

impl<'a> Prepared<'a> {
    fn new(template: &'a Template, particulars: &'a Particulars) -> Prepared<'a> {
        let place = (!template.handed_over.is_empty()).then_some(c"LISTEN_PID=");
        let environment = template.environment.iter().chain(&particulars.environment);
        let environment = environment.map(|text| text.as_ptr()).chain(place.map(|text| text.as_ptr()));
        let mut prepared = Prepared {
            template,
            argv: template.argv.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect(),
            envp: environment.chain([ptr::null()]).collect(),
            listen_pid: [0; 32],
            fprog: template.filter.as_ref().map(Filter::as_fprog),
            extra: particulars.extra.as_ref().map(|(fd, at)| (fd.as_raw_fd(), *at)),
            cut: 0,
            parent: rustix::process::getpid().as_raw_pid(),
        };
        prepared.listen_pid[..LISTEN_PID.len()].copy_from_slice(LISTEN_PID);
        let given = template.handed_over.iter().chain(&template.stdin).map(AsRawFd::as_raw_fd);
        let highest = given.chain(prepared.extra.map(|(fd, _)| fd)).fold(2, RawFd::max);
        prepared.cut = (highest + 1).cast_unsigned();
        prepared
    }
}

struct Order<'a, 'b> {
    prepared: &'b mut Prepared<'a>,
    report: &'b mut Report,
}

/// The child: from here on only system calls, no allocation, no panic.
///
/// # Safety
/// `order` must point to an [`Order`] that outlives the call, and the parent must be held until the end.
unsafe extern "C" fn child(order: *mut c_void) -> ! {
    // SAFETY: the caller's promise; nobody else looks at it while the parent is held.
    let order = unsafe { &mut *order.cast::<Order<'_, '_>>() };
    let Err((step, errno)) = order.run();
    order.report.step = step as c_int;
    order.report.errno = errno;
    // SAFETY: ends this child without running anything of the memory that it shares.
    unsafe { libc::_exit(127) }
}

type Failure = (Step, c_int);

impl Order<'_, '_> {
    fn run(&mut self) -> Result<std::convert::Infallible, Failure> {
        let template = self.prepared.template;
        self.filter()?;
        // From here on the descriptor table is the child's own, and as short as it can be.
        call(
            Step::Unshare,
            libc::SYS_close_range,
            [word(self.prepared.cut), word(libc::c_uint::MAX), word(libc::CLOSE_RANGE_UNSHARE)],
        )?;
        call(Step::ProcessGroup, libc::SYS_setpgid, [0, 0, 0])?;
        self.descriptors()?;
        if let Some(nofile) = &template.nofile {
            let limit = libc::rlimit64 {
                rlim_cur: nofile.current.unwrap_or(libc::RLIM64_INFINITY),
                rlim_max: nofile.maximum.unwrap_or(libc::RLIM64_INFINITY),
            };
            call(Step::Limit, libc::SYS_prlimit64, [0, word(libc::RLIMIT_NOFILE), address(&limit)])?;
        }
        self.identity()?;
        if let Some(directory) = &template.directory {
            let changed = call(Step::Directory, libc::SYS_chdir, [address(directory.path.as_ptr()), 0, 0]);
            if !directory.optional {
                changed?;
            }
        }
        if let Some(mask) = template.umask {
            call(Step::Exec, libc::SYS_umask, [word(mask), 0, 0])?;
        }
        self.die_with_parent()?;
        self.own_pid();
        self.exec()
    }

    fn filter(&mut self) -> Result<(), Failure> {
        let Some(fprog) = &self.prepared.fprog else {
            return Ok(());
        };
        if self.prepared.template.no_new_privs {
            call(Step::NoNewPrivs, libc::SYS_prctl, [word(libc::PR_SET_NO_NEW_PRIVS.cast_unsigned()), 1, 0])?;
        }
        let install = |flags: libc::c_ulong| {
            let mode = word(libc::SECCOMP_SET_MODE_FILTER);
            call(
                Step::Seccomp,
                libc::SYS_seccomp,
                [mode, usize::try_from(flags).unwrap_or(0), address(fprog)],
            )
        };
        let listener = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
        let result = match install(listener | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV) {
            // Before Linux 5.19 a signal can break a call off while we answer it; it is then made again.
            Err((_, libc::EINVAL)) => install(listener),
            result => result,
        };
        self.report.listener = c_int::try_from(result?).unwrap_or(-1);
        Ok(())
    }

    fn descriptors(&self) -> Result<(), Failure> {
        let dup = |from: RawFd, to: RawFd| {
            call(Step::Descriptor, libc::SYS_dup3, [word(from.cast_unsigned()), word(to.cast_unsigned()), 0])
        };
        let template = self.prepared.template;
        if let Some(stdin) = &template.stdin {
            dup(stdin.as_raw_fd(), 0)?;
        }
        for (from, to) in template.handed_over.iter().zip(3..) {
            dup(from.as_raw_fd(), to)?;
        }
        if let Some((from, to)) = self.prepared.extra {
            dup(from, to)?;
        }
        Ok(())
    }

    /// By system call, for this thread: the C library's functions would change every thread of its process,
    /// which this child, sharing our memory, would take for ours.
    fn identity(&self) -> Result<(), Failure> {
        let Some(identity) = &self.prepared.template.identity else {
            return Ok(());
        };
        let groups = &identity.groups;
        call(Step::Groups, libc::SYS_setgroups, [groups.len(), address(groups.as_ptr()), 0])?;
        let gid = word(identity.gid);
        call(Step::Group, libc::SYS_setresgid, [gid, gid, gid])?;
        if let Some(uid) = identity.uid.map(word) {
            call(Step::User, libc::SYS_setresuid, [uid, uid, uid])?;
        }
        Ok(())
    }

    /// After the change of user, which would clear it.
    fn die_with_parent(&self) -> Result<(), Failure> {
        if !self.prepared.template.dies_with_us {
            return Ok(());
        }
        call(
            Step::DeathSignal,
            libc::SYS_prctl,
            [word(libc::PR_SET_PDEATHSIG.cast_unsigned()), word(libc::SIGKILL.cast_unsigned()), 0],
        )?;
        // The supervisor may have died just before: then nobody is left to send it.
        let parent = call(Step::DeathSignal, libc::SYS_getppid, [0, 0, 0])?;
        if parent == self.prepared.parent as usize { Ok(()) } else { Err((Step::DeathSignal, libc::ESRCH)) }
    }

    /// Puts our pid where [`Prepared::new`] left a place for it: the last entry before the null.
    fn own_pid(&mut self) {
        if self.prepared.template.handed_over.is_empty() {
            return;
        }
        let mut rest = call(Step::Exec, libc::SYS_getpid, [0, 0, 0]).unwrap_or(0);
        let (mut digits, mut count) = ([0u8; 20], 0);
        while rest > 0 || count == 0 {
            digits[count] = b"0123456789"[rest % 10];
            rest /= 10;
            count += 1;
        }
        for (to, digit) in
            self.prepared.listen_pid[LISTEN_PID.len()..].iter_mut().zip(digits[..count].iter().rev())
        {
            *to = *digit;
        }
        let place = self.prepared.envp.len() - 2;
        self.prepared.envp[place] = self.prepared.listen_pid.as_ptr().cast();
    }

    fn exec(&self) -> Result<std::convert::Infallible, Failure> {
        let none = 0u64;
        call(
            Step::Exec,
            libc::SYS_rt_sigprocmask,
            [word(libc::SIG_SETMASK.cast_unsigned()), address(&none), 0],
        )?;
        let mut worst = libc::ENOENT;
        for candidate in &self.prepared.template.candidates {
            let (argv, envp) = (self.prepared.argv.as_ptr(), self.prepared.envp.as_ptr());
            let result = call(
                Step::Exec,
                libc::SYS_execve,
                [address(candidate.as_ptr()), address(argv), address(envp)],
            );
            match result.map_err(|(_, errno)| errno) {
                Err(libc::ENOENT | libc::ENOTDIR) | Ok(_) => {}
                // As execvp(3): somewhere else on the path may be one that we may execute.
                Err(libc::EACCES) => worst = libc::EACCES,
                Err(errno) => return Err((Step::Exec, errno)),
            }
        }
        Err((Step::Exec, worst))
    }
}

fn word(value: u32) -> usize {
    value as usize
}

fn address<T>(pointer: *const T) -> usize {
    pointer.expose_provenance()
}

/// One system call; its result, or the step that it was and its errno.
fn call(step: Step, number: c_long, [a, b, c]: [usize; 3]) -> Result<usize, Failure> {
    // The size of a kernel signal set is rt_sigprocmask's fourth argument; every other call has none, and
    // prctl insists on zeros.
    let fourth = if number == libc::SYS_rt_sigprocmask { size_of::<u64>() } else { 0 };
    // SAFETY: every caller above passes what the call's manual page asks for, and pointers only to memory of
    // `Prepared` or of its own frame.
    let result = unsafe { libc::syscall(number, a, b, c, fourth, 0, 0) };
    if result >= 0 {
        return Ok(usize::try_from(result).unwrap_or(0));
    }
    // SAFETY: the thread's errno; the thread control block is the held parent's, which does not look at it.
    Err((step, unsafe { *libc::__errno_location() }))
}
