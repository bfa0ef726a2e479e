//! The child of a start, from its first instruction to `execve`. It shares the parent's memory, so it only makes system
//! calls: it must not allocate or panic.

use std::ffi::{CStr, c_char, c_int, c_long, c_void};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use super::interpreter::{self, HEAD, HEADER, Kind, MAX_HEADERS};
use super::{SpawnArgs, SpawnStep, SpawnTemplate, raw_syscalls};
use crate::sys::capabilities::CapHeader;
use crate::sys::seccomp::Filter;

/// The memory of a start. Until the child has left it, it belongs to the child, except for the atomic fields.
pub(super) struct Shared {
    pub(super) prepared: Prepared,
    pub(super) report: Report,
    /// The current step of the child, for a parent that has waited for too long.
    pub(super) step: AtomicI32,
    /// Not 0 until the kernel reports that the child has left this memory: `CLONE_CHILD_CLEARTID`.
    pub(super) inside: AtomicU32,
}

/// The result of the child, which its parent reads.
pub(super) struct Report {
    pub(super) step: c_int,
    pub(super) errno: c_int,
    pub(super) listener: RawFd,
    pub(super) interpreter: MissingInterpreter,
}

impl Report {
    /// The report of a start without errors.
    pub(super) fn new() -> Report {
        Report { step: SpawnStep::Exec as i32, errno: 0, listener: -1, interpreter: MissingInterpreter::NONE }
    }
}

/// The interpreter that a program needs and that could not be executed.
pub(super) struct MissingInterpreter {
    name: [u8; HEAD],
    length: usize,
    /// The index of the candidate that names it.
    pub(super) candidate: usize,
    /// Whether the file does not exist. Otherwise it cannot be executed.
    pub(super) is_absent: bool,
}

impl MissingInterpreter {
    /// No interpreter is missing.
    pub(super) const NONE: MissingInterpreter =
        MissingInterpreter { name: [0; HEAD], length: 0, candidate: 0, is_absent: false };

    /// Its path; empty if no interpreter is missing.
    pub(super) fn name(&self) -> &[u8] {
        self.name.get(..self.length).unwrap_or_default()
    }
}

/// The work of the child, in the form of arguments of system calls.
pub(super) struct Prepared {
    pub(super) template: Arc<SpawnTemplate>,
    /// The owner of what the pointers below point to, and of descriptors that the child needs.
    _args: SpawnArgs,
    _passing: Option<OwnedFd>,
    argv: Vec<*const c_char>,
    /// The arguments for a script that names no interpreter: the shell, room for the script's path, the script's
    /// arguments.
    shell_argv: Vec<*const c_char>,
    envp: Vec<*const c_char>,
    /// The index of `PWD` in `envp`.
    pwd: Option<usize>,
    /// `LISTEN_PID=` and room for the pid, which only the child can add.
    listen_pid: [u8; 32],
    fprog: Option<libc::sock_fprog>,
    extra: Vec<(RawFd, RawFd)>,
    foreground: bool,
    table: Table,
    parent: c_int,
}

/// How the child gets its own descriptor table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Table {
    /// The child starts with the parent's table and copies the descriptors below this number.
    Shared(libc::c_uint),
    /// The child starts with a copy of the whole table and sends the listener of its filter through this socket.
    Copied(RawFd),
}

/// The program with which execvp(3) runs a script that names no interpreter.
const SHELL: &CStr = c"/bin/sh";

const LISTEN_PID: &[u8] = b"LISTEN_PID=";

impl Prepared {
    /// With `passing`, the child starts with a copy of the descriptor table and sends its listener through this socket.
    pub(super) fn new(template: &Arc<SpawnTemplate>, args: SpawnArgs, passing: Option<OwnedFd>) -> Prepared {
        let place = (!template.inherited.is_empty()).then_some(c"LISTEN_PID=");
        let directory = template.directory.as_ref().map(|directory| &directory.variable);
        let pwd = directory.map(|_| template.environment.len());
        let environment = template.environment.iter().chain(directory).chain(&args.environment);
        let environment = environment.map(|text| text.as_ptr()).chain(place.map(|text| text.as_ptr()));
        let filter = args.filter.as_deref();
        let mut prepared = Prepared {
            pwd,
            argv: template.argv.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect(),
            shell_argv: [SHELL.as_ptr(), ptr::null()]
                .into_iter()
                .chain(template.argv.iter().skip(1).map(|text| text.as_ptr()))
                .chain([ptr::null()])
                .collect(),
            envp: environment.chain([ptr::null()]).collect(),
            listen_pid: [0; 32],
            fprog: filter.map(Filter::as_fprog),
            extra: args.extra.iter().map(|(fd, at)| (fd.as_raw_fd(), *at)).collect(),
            foreground: args.foreground,
            table: Table::Shared(0),
            parent: rustix::process::getpid().as_raw_pid(),
            template: Arc::clone(template),
            _args: args,
            _passing: None,
        };
        prepared.listen_pid[..LISTEN_PID.len()].copy_from_slice(LISTEN_PID);
        let given = template.inherited.iter().chain(&template.stdin).map(AsRawFd::as_raw_fd);
        let highest = given.chain(prepared.extra.iter().map(|(fd, _)| *fd)).fold(2, RawFd::max);
        prepared.table = match &passing {
            None => Table::Shared((highest + 1).cast_unsigned()),
            Some(socket) => Table::Copied(socket.as_raw_fd()),
        };
        prepared._passing = passing;
        prepared
    }
}

/// The state of the child.
struct ChildContext<'a> {
    template: &'a SpawnTemplate,
    prepared: &'a mut Prepared,
    report: &'a mut Report,
    step: &'a AtomicI32,
}

/// The child. From here on it only makes system calls: no allocation, no panic.
///
/// # Safety
/// `shared` must point to a [`Shared`] that stays in place until `inside` is 0 or the child is gone. Until then the
/// parent may access only `step` and `inside`.
pub(super) unsafe extern "C" fn child(shared: *mut c_void) -> ! {
    let shared = shared.cast::<Shared>();
    // SAFETY: by the contract these parts belong to the child, except for the atomic one. The template has its own
    // allocation, which the reference in `prepared` keeps alive.
    let mut context = unsafe {
        let prepared = &mut (*shared).prepared;
        let template = &*Arc::as_ptr(&prepared.template);
        ChildContext { template, prepared, report: &mut (*shared).report, step: &(*shared).step }
    };
    let Err((step, errno)) = context.run();
    context.report.step = step as c_int;
    context.report.errno = errno;
    loop {
        // SAFETY: the call ends this child without running any code of the shared memory.
        unsafe { raw_syscalls::call(libc::SYS_exit_group, [127, 0, 0, 0, 0, 0]) };
    }
}

type Failure = (SpawnStep, c_int);

impl ChildContext<'_> {
    fn run(&mut self) -> Result<std::convert::Infallible, Failure> {
        let template = self.template;
        self.no_new_privs()?;
        self.filter()?;
        if let Table::Shared(cut) = self.prepared.table {
            // From here on the child has its own descriptor table, which is as short as possible.
            let range = [word(cut), word(libc::c_uint::MAX), word(libc::CLOSE_RANGE_UNSHARE)];
            call(SpawnStep::Unshare, libc::SYS_close_range, range)?;
        }
        call(SpawnStep::ProcessGroup, libc::SYS_setpgid, [0, 0, 0])?;
        self.descriptors()?;
        self.foreground();
        if let Some(nofile) = &template.nofile {
            let limit = libc::rlimit64 {
                rlim_cur: nofile.current.unwrap_or(libc::RLIM64_INFINITY),
                rlim_max: nofile.maximum.unwrap_or(libc::RLIM64_INFINITY),
            };
            // The constant has another type in each C library.
            let resource = libc::RLIMIT_NOFILE as usize;
            call(SpawnStep::Limit, libc::SYS_prlimit64, [0, resource, address(&limit)])?;
        }
        if let Some(size) = template.file_size {
            let limit = libc::rlimit64 { rlim_cur: size, rlim_max: size };
            let resource = libc::RLIMIT_FSIZE as usize;
            call(SpawnStep::Limit, libc::SYS_prlimit64, [0, resource, address(&limit)])?;
        }
        self.identity()?;
        self.capabilities()?;
        if let Some(directory) = &template.directory {
            self.enter_step(SpawnStep::Directory);
            let changed =
                call(SpawnStep::Directory, libc::SYS_chdir, [address(directory.path.as_ptr()), 0, 0]);
            match changed {
                Ok(_) => self.prepared.pwd = None,
                Err(failure) if !directory.optional => return Err(failure),
                Err(_stays) => {}
            }
        }
        if let Some(mask) = template.umask {
            call(SpawnStep::Exec, libc::SYS_umask, [word(mask), 0, 0])?;
        }
        self.die_with_parent()?;
        self.set_listen_pid();
        self.remove_pwd();
        self.enter_step(SpawnStep::Exec);
        self.exec()
    }

    /// Makes the worker's process group the foreground group before the program runs, as shells do, so the program
    /// never sees itself in the background. SIGTTOU is blocked here, so the call does not stop the child. If it fails,
    /// the worker starts in the background.
    fn foreground(&self) {
        if self.prepared.foreground
            && let Ok(group) = call(SpawnStep::ProcessGroup, libc::SYS_getpid, [0, 0, 0])
            && let Ok(group) = c_int::try_from(group)
        {
            let request = usize::try_from(libc::TIOCSPGRP).unwrap_or(0);
            let _in_background =
                call(SpawnStep::ProcessGroup, libc::SYS_ioctl, [0, request, address(&group)]);
        }
    }

    /// Records a step that can take as long as a file system does.
    fn enter_step(&self, step: SpawnStep) {
        self.step.store(step as c_int, Ordering::Relaxed);
    }

    fn no_new_privs(&self) -> Result<(), Failure> {
        let template = self.template;
        let for_filter = template.filter_needs_no_new_privs && self.prepared.fprog.is_some();
        if template.no_new_privs || for_filter {
            prctl(SpawnStep::NoNewPrivs, libc::PR_SET_NO_NEW_PRIVS, [1, 0])?;
        }
        Ok(())
    }

    fn filter(&mut self) -> Result<(), Failure> {
        let Some(fprog) = &self.prepared.fprog else {
            return Ok(());
        };
        let install = |flags: libc::c_ulong| {
            let mode = word(libc::SECCOMP_SET_MODE_FILTER);
            call(
                SpawnStep::Seccomp,
                libc::SYS_seccomp,
                [mode, usize::try_from(flags).unwrap_or(0), address(fprog)],
            )
        };
        let listener = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
        let result = match install(listener | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV) {
            // Before Linux 5.19 a signal can interrupt a call while the supervisor answers it. The caller then repeats
            // the call.
            Err((_, libc::EINVAL)) => install(listener),
            result => result,
        };
        let listener = c_int::try_from(result?).unwrap_or(-1);
        match self.prepared.table {
            Table::Shared(_) => self.report.listener = listener,
            Table::Copied(socket) => send(socket, listener)?,
        }
        Ok(())
    }

    fn descriptors(&self) -> Result<(), Failure> {
        let dup = |from: RawFd, to: RawFd| {
            call(
                SpawnStep::Descriptor,
                libc::SYS_dup3,
                [word(from.cast_unsigned()), word(to.cast_unsigned()), 0],
            )
        };
        let template = self.template;
        if let Some(stdin) = &template.stdin {
            dup(stdin.as_raw_fd(), 0)?;
        }
        for (from, to) in template.inherited.iter().zip(3..) {
            dup(from.as_raw_fd(), to)?;
        }
        for (from, to) in &self.prepared.extra {
            dup(*from, *to)?;
        }
        Ok(())
    }

    /// Changes user and groups of this thread. The C library's functions would change all threads of the process, and
    /// in the shared memory these are the parent's.
    fn identity(&self) -> Result<(), Failure> {
        let Some(identity) = &self.template.identity else {
            return Ok(());
        };
        let groups = &identity.groups;
        call(SpawnStep::Groups, libc::SYS_setgroups, [groups.len(), address(groups.as_ptr()), 0])?;
        let gid = word(identity.gid);
        call(SpawnStep::Group, libc::SYS_setresgid, [gid, gid, gid])?;
        if self.template.capabilities.is_some_and(|sets| sets.keep) {
            // The change of user would otherwise clear the permitted set. `execve` resets the flag.
            prctl(SpawnStep::KeepCapabilities, libc::PR_SET_KEEPCAPS, [1, 0])?;
        }
        if let Some(uid) = identity.uid.map(word) {
            call(SpawnStep::User, libc::SYS_setresuid, [uid, uid, uid])?;
        }
        Ok(())
    }

    /// Sets the capabilities of this thread. This follows the change of user, which changes the sets.
    fn capabilities(&self) -> Result<(), Failure> {
        let Some(sets) = &self.template.capabilities else {
            return Ok(());
        };
        // This also removes capabilities from the ambient set that are no longer inheritable.
        let (header, data) = (CapHeader::VERSION_3, sets.data());
        call(SpawnStep::Capabilities, libc::SYS_capset, [address(&header), address(&data), 0])?;
        for number in sets.ambient.numbers().map(word) {
            prctl(
                SpawnStep::Ambient,
                libc::PR_CAP_AMBIENT,
                [word(libc::PR_CAP_AMBIENT_RAISE.cast_unsigned()), number],
            )?;
        }
        Ok(())
    }

    /// Requests a signal for the parent's death. This follows the changes of user and capabilities, which clear the
    /// request.
    fn die_with_parent(&self) -> Result<(), Failure> {
        if !self.template.dies_with_us {
            return Ok(());
        }
        prctl(SpawnStep::DeathSignal, libc::PR_SET_PDEATHSIG, [word(libc::SIGKILL.cast_unsigned()), 0])?;
        // The supervisor may have died before the request, and then no signal comes.
        let parent = call(SpawnStep::DeathSignal, libc::SYS_getppid, [0, 0, 0])?;
        if parent == self.prepared.parent as usize {
            Ok(())
        } else {
            Err((SpawnStep::DeathSignal, libc::ESRCH))
        }
    }

    /// Writes the pid into the entry that [`Prepared::new`] reserved: the last one before the null pointer.
    fn set_listen_pid(&mut self) {
        if self.template.inherited.is_empty() {
            return;
        }
        let mut rest = call(SpawnStep::Exec, libc::SYS_getpid, [0, 0, 0]).unwrap_or(0);
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

    /// Removes `PWD` from the environment if the worker is in another directory: the last variable moves to its place.
    fn remove_pwd(&mut self) {
        let envp = &mut self.prepared.envp;
        let last = envp.len().wrapping_sub(2);
        if let (Some(at), Some(moved)) = (self.prepared.pwd, envp.get(last).copied())
            && let Some(entry) = envp.get_mut(at)
        {
            *entry = moved;
            envp[last] = ptr::null();
        }
    }

    fn exec(&mut self) -> Result<std::convert::Infallible, Failure> {
        let none = 0u64;
        call(
            SpawnStep::Exec,
            libc::SYS_rt_sigprocmask,
            [word(libc::SIG_SETMASK.cast_unsigned()), address(&none), 0, size_of::<u64>()],
        )?;
        let mut worst = libc::ENOENT;
        let template = self.template;
        for (index, candidate) in template.candidates.iter().enumerate() {
            match self.execve(candidate, &self.prepared.argv) {
                errno @ (libc::ENOENT | libc::ENOTDIR) => self.inspect(index, candidate, errno),
                // As in execvp(3): a later directory of the path can have a file that may be executed.
                libc::EACCES => {
                    worst = libc::EACCES;
                    self.inspect(index, candidate, libc::EACCES);
                }
                libc::ENOEXEC => return self.run_by_shell(index, candidate),
                errno => return Err((SpawnStep::Exec, errno)),
            }
        }
        Err((SpawnStep::Exec, worst))
    }

    /// Calls `execve` and returns its errno.
    fn execve(&self, path: &CStr, argv: &[*const c_char]) -> c_int {
        let arguments =
            [address(path.as_ptr()), address(argv.as_ptr()), address(self.prepared.envp.as_ptr())];
        call(SpawnStep::Exec, libc::SYS_execve, arguments).map_or_else(|(_, errno)| errno, |_| 0)
    }

    /// As in execvp(3): a text file without a known format is run by the shell.
    fn run_by_shell(&mut self, index: usize, script: &CStr) -> Result<std::convert::Infallible, Failure> {
        let mut head = [0; HEAD];
        let is_script = open(script).is_some_and(|file| {
            read(file, 0, &mut head)
                .is_some_and(|length| interpreter::is_text(head.get(..length).unwrap_or_default()))
        });
        if !is_script {
            return Err((SpawnStep::Exec, libc::ENOEXEC));
        }
        if let Some(place) = self.prepared.shell_argv.get_mut(1) {
            *place = script.as_ptr();
        }
        let errno = self.execve(SHELL, &self.prepared.shell_argv);
        self.report_interpreter(index, SHELL.to_bytes(), errno);
        Err((SpawnStep::Exec, errno))
    }

    /// Finds out whether a file that exists cannot be executed because of its interpreter, and which one that is.
    fn inspect(&mut self, index: usize, path: &CStr, errno: c_int) {
        let is_known = !self.report.interpreter.name().is_empty();
        if is_known || (errno == libc::EACCES && access(path) != 0) {
            return;
        }
        let mut head = [0; HEAD];
        let Some(file) = open(path) else { return };
        let Some(length) = read(file, 0, &mut head) else { return };
        let mut name = [0; HEAD];
        let found = match interpreter::kind(head.get(..length).unwrap_or_default()) {
            Kind::Script(start, end) => copy(head.get(start..end), &mut name),
            Kind::Elf(headers) => {
                let mut table = [0; HEADER * MAX_HEADERS];
                let Some(table) = table.get_mut(..headers.size()) else { return };
                let read_size = read(file, headers.offset, table).unwrap_or(0);
                let Some((at, size)) = headers.interpreter(table.get(..read_size).unwrap_or_default()) else {
                    return;
                };
                let size = name.len().min(size);
                read(file, at, name.get_mut(..size).unwrap_or_default()).unwrap_or(0)
            }
            Kind::Other => return,
        };
        let name = name.get(..found).unwrap_or_default();
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        self.report_interpreter(index, name, errno);
    }

    /// Reports an interpreter as the reason why a candidate was not executed, if it is the reason.
    fn report_interpreter(&mut self, candidate: usize, name: &[u8], errno: c_int) {
        let mut path = [0; HEAD + 1];
        let length = copy(Some(name), &mut path);
        // SAFETY: the name has no zero byte, and at least one zero byte follows it.
        let refused = access(unsafe { CStr::from_ptr(path.as_ptr().cast()) });
        if length == 0 || (errno == libc::EACCES && refused == 0) {
            return;
        }
        let interpreter = &mut self.report.interpreter;
        interpreter.length = copy(Some(name), &mut interpreter.name);
        interpreter.candidate = candidate;
        interpreter.is_absent = matches!(refused, libc::ENOENT | libc::ENOTDIR);
    }
}

/// Sends a descriptor: unix(7).
fn send(socket: RawFd, fd: RawFd) -> Result<(), Failure> {
    #[repr(C)]
    struct Control {
        header: libc::cmsghdr,
        fd: RawFd,
    }
    // SAFETY: all zero is a valid value of these plain C structures.
    let (mut control, mut message) = unsafe { std::mem::zeroed::<(Control, libc::msghdr)>() };
    // SAFETY: the function computes a length from a length.
    control.header.cmsg_len = unsafe { libc::CMSG_LEN(size_of::<RawFd>().try_into().unwrap_or(0)) } as _;
    control.header.cmsg_level = libc::SOL_SOCKET;
    control.header.cmsg_type = libc::SCM_RIGHTS;
    control.fd = fd;
    let mut byte = 0u8;
    let mut part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of::<Control>() as _;
    let message = address(&raw const message);
    call(SpawnStep::Seccomp, libc::SYS_sendmsg, [word(socket.cast_unsigned()), message, 0]).map(drop)
}

/// Opens a file read-only, without blocking on a pipe or a terminal.
fn open(path: &CStr) -> Option<usize> {
    let flags = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY;
    let here = libc::AT_FDCWD as usize;
    call(SpawnStep::Exec, libc::SYS_openat, [here, address(path.as_ptr()), word(flags.cast_unsigned())]).ok()
}

/// Reads the bytes of a file at `offset` that fit into the buffer.
fn read(file: usize, offset: u64, into: &mut [u8]) -> Option<usize> {
    let offset = usize::try_from(offset).ok()?;
    call(SpawnStep::Exec, libc::SYS_pread64, [file, address(into.as_mut_ptr()), into.len(), offset]).ok()
}

/// The errno of the check whether a file may be executed; 0 if it may. The real and the effective user are the worker's
/// by now.
fn access(path: &CStr) -> c_int {
    let here = libc::AT_FDCWD as usize;
    let refused = call(
        SpawnStep::Exec,
        libc::SYS_faccessat,
        [here, address(path.as_ptr()), word(libc::X_OK.cast_unsigned())],
    );
    refused.map_or_else(|(_, errno)| errno, |_| 0)
}

/// Copies as many bytes as there is room for and returns their number.
fn copy(from: Option<&[u8]>, to: &mut [u8]) -> usize {
    let from = from.unwrap_or_default();
    to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    from.len().min(to.len())
}

fn word(value: u32) -> usize {
    value as usize
}

fn address<T>(pointer: *const T) -> usize {
    pointer.expose_provenance()
}

/// prctl(2): the operation and its arguments.
fn prctl(step: SpawnStep, operation: c_int, [first, second]: [usize; 2]) -> Result<(), Failure> {
    call(step, libc::SYS_prctl, [word(operation.cast_unsigned()), first, second]).map(drop)
}

/// Makes a system call and returns its result, or the step and the errno.
fn call<const N: usize>(step: SpawnStep, number: c_long, arguments: [usize; N]) -> Result<usize, Failure> {
    // prctl(2) rejects unused arguments that are not 0.
    let mut registers = [0; 6];
    registers.iter_mut().zip(arguments).for_each(|(to, from)| *to = from);
    // SAFETY: all callers above pass what the call's manual page demands, and pointers only to memory of `Prepared` or
    // of their own frames.
    let result = unsafe { raw_syscalls::call(number, registers) };
    usize::try_from(result).map_err(|_negative| (step, c_int::try_from(-result).unwrap_or(libc::EINVAL)))
}
