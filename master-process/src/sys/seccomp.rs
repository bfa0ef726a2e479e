//! Seccomp user notifications: a call of a worker waits until the supervisor has answered it.
//!
//! See seccomp_unotify(2). The filter is not a security boundary: a call that continues reads its arguments again. A
//! call that the supervisor carries out uses the supervisor's copy of them.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use rustix::process::Pid;
use serde::{Deserialize, Serialize};

/// The calls that a worker's filter reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Calls {
    /// `bind`.
    pub bind: bool,
    /// The two options before `bind` that decide what an address means. They are needed only if the supervisor cannot
    /// inspect a worker's socket.
    pub options: bool,
    /// `listen`.
    pub listen: bool,
    /// `shutdown`, except of the writing half alone.
    pub shutdown: bool,
    /// The calls that change the path of a Unix socket: `unlink` and `rename`.
    pub paths: bool,
    /// `connect` to an address with a length other than those of IPv4 and IPv6.
    pub connect: bool,
}

impl Calls {
    /// The lowest and the highest number of the calls that can be reported.
    fn range(self) -> (u32, u32) {
        let wanted = [
            (self.bind, libc::SYS_bind),
            (self.options, libc::SYS_setsockopt),
            (self.listen, libc::SYS_listen),
            (self.shutdown, libc::SYS_shutdown),
            (self.connect, libc::SYS_connect),
            #[cfg(target_arch = "x86_64")]
            (self.paths, libc::SYS_unlink),
            #[cfg(target_arch = "x86_64")]
            (self.paths, libc::SYS_rename),
            (self.paths, libc::SYS_unlinkat),
            (self.paths, libc::SYS_renameat),
            (self.paths, libc::SYS_renameat2),
        ];
        let numbers = wanted.into_iter().filter(|(wanted, _)| *wanted).map(|(_, call)| number(call));
        numbers.fold((u32::MAX - 1, 0), |(first, last), call| (first.min(call), last.max(call)))
    }
}

/// A filter program for a worker's `seccomp(2)`.
#[derive(Debug, Clone)]
pub struct Filter {
    program: Vec<libc::sock_filter>,
}

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e; // AUDIT_ARCH_X86_64
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7; // AUDIT_ARCH_AARCH64

// Offsets in struct seccomp_data. On a little-endian machine the low half of an argument comes first.
const NR_AT: u32 = 0;
const ARCH_AT: u32 = 4;
const fn low_half_at(argument: u32) -> u32 {
    16 + 8 * argument
}

impl Filter {
    /// A program that reports `calls` and allows everything else.
    pub fn new(calls: Calls) -> Filter {
        // The kernel runs a new filter for each call number of each architecture to find the calls that are always allowed,
        // which takes most of the time to install it. Most numbers are outside this range, as are those of the x32 ABI, which
        // has other structures.
        let (first, last) = calls.range();
        let mut program = vec![load(NR_AT), jump_if_at_least(last + 1, 0, 1), allow()];
        program.extend([jump_if_at_least(first, 1, 0), allow()]);
        program.extend([load(ARCH_AT), jump_if_equal(ARCH, 1, 0), allow(), load(NR_AT)]);
        if calls.bind {
            program.extend(notify_on(libc::SYS_bind));
        }
        if calls.options {
            program.extend(notify_on_option(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY));
            program.extend(notify_on_option(libc::SOL_SOCKET, libc::SO_REUSEPORT));
        }
        if calls.listen {
            program.extend(notify_on(libc::SYS_listen));
        }
        if calls.shutdown {
            program.extend(notify_on_shutdown());
        }
        if calls.connect {
            program.extend(notify_on_connect());
        }
        if calls.paths {
            #[cfg(target_arch = "x86_64")]
            for call in [libc::SYS_unlink, libc::SYS_rename] {
                program.extend(notify_on(call));
            }
            for call in [libc::SYS_renameat, libc::SYS_renameat2] {
                program.extend(notify_on(call));
            }
            program.extend(notify_on_unlinkat());
        }
        program.push(allow());
        Filter { program }
    }

    /// The program in the form of `seccomp(2)`. The pointer is valid as long as the filter.
    pub(in crate::sys) fn as_fprog(&self) -> libc::sock_fprog {
        let len = u16::try_from(self.program.len()).unwrap_or(0);
        libc::sock_fprog { len, filter: self.program.as_ptr().cast_mut() }
    }
}

fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: u16::try_from(code).unwrap_or(0), jt, jf, k }
}

fn load(at: u32) -> libc::sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, at)
}

fn jump_if_equal(value: u32, then: u8, otherwise: u8) -> libc::sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, then, otherwise, value)
}

fn jump_if_at_least(value: u32, then: u8, otherwise: u8) -> libc::sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, then, otherwise, value)
}

fn jump_if_any_bit(bits: u32, then: u8, otherwise: u8) -> libc::sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, then, otherwise, bits)
}

fn allow() -> libc::sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW)
}

fn notify() -> libc::sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_USER_NOTIF)
}

fn number(call: libc::c_long) -> u32 {
    u32::try_from(call).unwrap_or(u32::MAX)
}

fn bits(value: libc::c_int) -> u32 {
    value.cast_unsigned()
}

// Each of the following fragments starts with the number of the call in the accumulator, and ends with it unless it
// returns.

fn notify_on(call: libc::c_long) -> [libc::sock_filter; 2] {
    [jump_if_equal(number(call), 0, 1), notify()]
}

fn notify_on_option(level: libc::c_int, option: libc::c_int) -> [libc::sock_filter; 7] {
    [
        jump_if_equal(number(libc::SYS_setsockopt), 0, 6),
        load(low_half_at(1)),
        jump_if_equal(bits(level), 0, 3),
        load(low_half_at(2)),
        jump_if_equal(bits(option), 0, 1),
        notify(),
        load(NR_AT),
    ]
}

fn notify_on_shutdown() -> [libc::sock_filter; 5] {
    [
        jump_if_equal(number(libc::SYS_shutdown), 0, 4),
        load(low_half_at(1)),
        jump_if_equal(bits(libc::SHUT_WR), 1, 0),
        notify(),
        allow(),
    ]
}

/// The length of an address distinguishes the families: a length of `sockaddr_in` or `sockaddr_in6` counts as IP.
/// Programs usually pass a path in a whole `sockaddr_un`.
fn notify_on_connect() -> [libc::sock_filter; 6] {
    [
        jump_if_equal(number(libc::SYS_connect), 0, 5),
        load(low_half_at(2)),
        jump_if_equal(SOCKADDR_IN, 2, 0),
        jump_if_equal(SOCKADDR_IN6, 1, 0),
        notify(),
        allow(),
    ]
}

/// The size of `struct sockaddr_in`; ip(7).
const SOCKADDR_IN: u32 = 16;
/// The size of `struct sockaddr_in6`; ipv6(7).
const SOCKADDR_IN6: u32 = 28;

fn notify_on_unlinkat() -> [libc::sock_filter; 5] {
    [
        jump_if_equal(number(libc::SYS_unlinkat), 0, 4),
        load(low_half_at(2)),
        jump_if_any_bit(bits(libc::AT_REMOVEDIR), 1, 0),
        notify(),
        allow(),
    ]
}

/// Whether a filter may be installed without `NO_NEW_PRIVS`, which disables setuid programs.
pub fn may_filter_with_privileges() -> bool {
    rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::SYS_ADMIN))
}

/// Makes the kernel run the supervisor on the caller's CPU and then the caller again (Linux 6.6). Otherwise each call
/// and each answer waits until another CPU wakes up.
pub fn answer_on_callers_cpu(listener: BorrowedFd<'_>) {
    /// `SECCOMP_IOCTL_NOTIF_SET_FLAGS`, `SECCOMP_IOW(4, __u64)`, `<linux/seccomp.h>`.
    const SET_FLAGS: libc::Ioctl = 0x4008_2104;
    /// `SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP`.
    const SYNC_WAKE_UP: u64 = 1;
    // SAFETY: the argument of the request is the flags themselves, so it touches no memory.
    let _not_known_before_6_6 = unsafe { libc::ioctl(listener.as_raw_fd(), SET_FLAGS, SYNC_WAKE_UP) };
}

/// A call that waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notification {
    id: u64,
    /// The thread that made the call, in our PID namespace.
    #[serde(with = "crate::forms::pid")]
    pub thread: Pid,
    /// The call.
    pub call: Call,
}

/// A call and its arguments. Addresses are in the caller's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Call {
    /// `bind(fd, address, length)`.
    Bind {
        /// The socket.
        fd: RawFd,
        /// The address of the socket address.
        address: u64,
        /// Its length.
        length: u32,
    },
    /// `listen(fd, backlog)`.
    Listen {
        /// The socket.
        fd: RawFd,
        /// The length of the queue.
        backlog: i32,
    },
    /// `setsockopt` of `IPV6_V6ONLY` or `SO_REUSEPORT`.
    SetOption {
        /// The socket.
        fd: RawFd,
        /// The option.
        option: SocketOption,
        /// The address of the value, an int.
        value: u64,
    },
    /// `shutdown` of the reading half or both.
    Shutdown {
        /// The socket.
        fd: RawFd,
    },
    /// `connect(fd, address, length)`.
    Connect {
        /// The address of the socket address.
        address: u64,
        /// Its length.
        length: u32,
    },
    /// `rename`, `renameat` or `renameat2`.
    Rename {
        /// The directory of a relative old path, or `AT_FDCWD`.
        from_dir: RawFd,
        /// The address of the old path.
        from: u64,
        /// The directory of a relative new path, or `AT_FDCWD`.
        to_dir: RawFd,
        /// The address of the new path.
        to: u64,
        /// `RENAME_…`.
        flags: u32,
    },
    /// `unlink` or `unlinkat`.
    Unlink {
        /// The directory of a relative path, or `AT_FDCWD`.
        dir: RawFd,
        /// The address of the path.
        path: u64,
    },
    /// A call that the filter does not report.
    Other,
}

/// The options that decide what an address means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SocketOption {
    /// `IPV6_V6ONLY`.
    V6Only,
    /// `SO_REUSEPORT`.
    ReusePort,
}

/// The answer to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a call without an answer hangs its worker"]
pub enum Answer {
    /// The kernel carries the call out as without a filter.
    Continue,
    /// The call returns 0 and is not carried out.
    Done,
    /// The call fails with this errno and is not carried out.
    Fail(i32),
}

/// Receives the next waiting call. The caller must poll the descriptor first: this blocks even with `O_NONBLOCK`.
///
/// # Errors
/// ENOENT if the caller was killed meanwhile.
pub fn receive(listener: BorrowedFd<'_>) -> io::Result<Notification> {
    // SAFETY: all zero is a valid value of this structure, and the kernel demands it.
    let mut raw = unsafe { std::mem::zeroed::<libc::seccomp_notif>() };
    ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_RECV, &mut raw)?;
    let thread = Pid::from_raw(raw.pid.cast_signed())
        .ok_or_else(|| io::Error::other("the caller lives outside of our PID namespace"));
    match thread {
        Ok(thread) => Ok(Notification { id: raw.id, thread, call: Call::of(&raw.data) }),
        Err(error) => {
            let unknown = Notification { id: raw.id, thread: Pid::INIT, call: Call::Other };
            answer(listener, &unknown, Answer::Continue)?;
            Err(error)
        }
    }
}

impl Call {
    fn of(data: &libc::seccomp_data) -> Call {
        let fd = |argument: usize| low(data.args[argument]).cast_signed();
        match libc::c_long::from(data.nr) {
            libc::SYS_bind => Call::Bind { fd: fd(0), address: data.args[1], length: low(data.args[2]) },
            libc::SYS_listen => Call::Listen { fd: fd(0), backlog: fd(1) },
            libc::SYS_setsockopt => {
                let v6only = fd(1) == libc::IPPROTO_IPV6;
                let option = if v6only { SocketOption::V6Only } else { SocketOption::ReusePort };
                Call::SetOption { fd: fd(0), option, value: data.args[3] }
            }
            libc::SYS_shutdown => Call::Shutdown { fd: fd(0) },
            libc::SYS_connect => Call::Connect { address: data.args[1], length: low(data.args[2]) },
            #[cfg(target_arch = "x86_64")]
            libc::SYS_rename => Call::Rename {
                from_dir: libc::AT_FDCWD,
                from: data.args[0],
                to_dir: libc::AT_FDCWD,
                to: data.args[1],
                flags: 0,
            },
            libc::SYS_renameat | libc::SYS_renameat2 => Call::Rename {
                from_dir: fd(0),
                from: data.args[1],
                to_dir: fd(2),
                to: data.args[3],
                flags: if libc::c_long::from(data.nr) == libc::SYS_renameat2 { low(data.args[4]) } else { 0 },
            },
            #[cfg(target_arch = "x86_64")]
            libc::SYS_unlink => Call::Unlink { dir: libc::AT_FDCWD, path: data.args[0] },
            libc::SYS_unlinkat => Call::Unlink { dir: fd(0), path: data.args[1] },
            _unasked => Call::Other,
        }
    }
}

fn low(argument: u64) -> u32 {
    u32::try_from(argument & u64::from(u32::MAX)).unwrap_or(0)
}

/// Whether the call still waits. If so, everything that was read of its process since it was received was read of the
/// right process.
pub fn is_waiting(listener: BorrowedFd<'_>, notification: &Notification) -> bool {
    let mut id = notification.id;
    ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &mut id).is_ok()
}

/// Replaces the caller's descriptor `at` with a duplicate of `fd`.
///
/// # Errors
/// ENOENT if the caller was killed meanwhile, EBADF, EMFILE for the caller's limits.
pub fn put_descriptor(
    listener: BorrowedFd<'_>,
    notification: &Notification,
    fd: BorrowedFd<'_>,
    at: RawFd,
    close_on_exec: bool,
) -> io::Result<()> {
    let mut request = libc::seccomp_notif_addfd {
        id: notification.id,
        flags: u32::try_from(libc::SECCOMP_ADDFD_FLAG_SETFD).unwrap_or(1),
        srcfd: fd.as_raw_fd().cast_unsigned(),
        newfd: at.cast_unsigned(),
        newfd_flags: if close_on_exec { bits(libc::O_CLOEXEC) } else { 0 },
    };
    ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_ADDFD, &mut request)
}

/// Answers a call.
///
/// # Errors
/// ENOENT if the caller was killed meanwhile.
pub fn answer(listener: BorrowedFd<'_>, notification: &Notification, answer: Answer) -> io::Result<()> {
    let mut response = libc::seccomp_notif_resp { id: notification.id, val: 0, error: 0, flags: 0 };
    match answer {
        Answer::Continue => {
            response.flags = u32::try_from(libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE).unwrap_or(1);
        }
        Answer::Done => {}
        Answer::Fail(errno) => response.error = -errno,
    }
    ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_SEND, &mut response)
}

/// Makes a request, and repeats it after EINTR. Each request takes the filter's lock with `mutex_lock_interruptible`
/// (kernel/seccomp.c), and task work for this thread interrupts the wait before anything was done. An interrupted
/// request must not be taken for a caller that is gone.
fn ioctl<T>(listener: BorrowedFd<'_>, request: libc::Ioctl, argument: &mut T) -> io::Result<()> {
    loop {
        // SAFETY: each request above is passed with the structure that seccomp_unotify(2) names for it. The kernel
        // reads and writes no more than its size, which is part of the request's number.
        let result = unsafe { libc::ioctl(listener.as_raw_fd(), request, std::ptr::from_mut(argument)) };
        if result >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program as the kernel would. Returns true if it reports the call.
    fn notifies(filter: &Filter, arch: u32, nr: libc::c_long, args: [u32; 3]) -> bool {
        let (mut at, mut a) = (0, 0);
        loop {
            let op = filter.program[at];
            at += 1;
            let jump = |yes: bool| usize::from(if yes { op.jt } else { op.jf });
            match u32::from(op.code) & 0x07 {
                libc::BPF_LD => {
                    a = match op.k {
                        NR_AT => number(nr),
                        ARCH_AT => arch,
                        k => args[usize::try_from((k - 16) / 8).expect("small")],
                    }
                }
                libc::BPF_JMP => {
                    at += match u32::from(op.code) & 0xf0 {
                        libc::BPF_JEQ => jump(a == op.k),
                        libc::BPF_JGE => jump(a >= op.k),
                        libc::BPF_JSET => jump(a & op.k != 0),
                        other => panic!("unknown jump {other:#x}"),
                    }
                }
                libc::BPF_RET => return op.k == libc::SECCOMP_RET_USER_NOTIF,
                other => panic!("unknown class {other:#x}"),
            }
        }
    }

    const ALL: Calls =
        Calls { bind: true, options: true, listen: true, shutdown: true, paths: true, connect: true };
    const LISTEN: Calls =
        Calls { bind: false, options: false, listen: true, shutdown: false, paths: false, connect: false };

    #[test]
    fn what_was_asked_for_is_notified_and_nothing_else() {
        let filter = Filter::new(ALL);
        let check = |nr, args| notifies(&filter, ARCH, nr, args);
        assert!(check(libc::SYS_bind, [0; 3]));
        assert!(check(libc::SYS_listen, [0; 3]));
        assert!(check(libc::SYS_setsockopt, [3, bits(libc::IPPROTO_IPV6), bits(libc::IPV6_V6ONLY)]));
        assert!(check(libc::SYS_setsockopt, [3, bits(libc::SOL_SOCKET), bits(libc::SO_REUSEPORT)]));
        assert!(!check(libc::SYS_setsockopt, [3, bits(libc::SOL_SOCKET), bits(libc::SO_REUSEADDR)]));
        assert!(!check(libc::SYS_setsockopt, [3, bits(libc::IPPROTO_TCP), bits(libc::TCP_NODELAY)]));
        assert!(check(libc::SYS_connect, [3, 0, 110]));
        assert!(!check(libc::SYS_connect, [3, 0, SOCKADDR_IN]), "connections over IP stay cheap");
        assert!(!check(libc::SYS_connect, [3, 0, SOCKADDR_IN6]));
        assert!(check(libc::SYS_renameat2, [0; 3]));
        assert!(check(libc::SYS_shutdown, [3, bits(libc::SHUT_RDWR), 0]));
        assert!(!check(libc::SYS_shutdown, [3, bits(libc::SHUT_WR), 0]), "the usual half-close stays cheap");
        assert!(check(libc::SYS_unlinkat, [0, 0, 0]));
        assert!(!check(libc::SYS_unlinkat, [0, 0, bits(libc::AT_REMOVEDIR)]));
        assert!(!check(libc::SYS_read, [0; 3]));
        assert!(!check(libc::SYS_accept4, [0; 3]));
    }

    #[test]
    fn other_architectures_and_x32_are_let_alone() {
        let filter = Filter::new(ALL);
        assert!(!notifies(&filter, 0x4000_0003, libc::SYS_bind, [0; 3]));
        assert!(!notifies(&filter, ARCH, libc::SYS_bind | 0x4000_0000, [0; 3]));
    }

    #[test]
    fn a_filter_for_listen_alone_lets_bind_pass() {
        let filter = Filter::new(LISTEN);
        assert!(notifies(&filter, ARCH, libc::SYS_listen, [0; 3]));
        for nr in [libc::SYS_bind, libc::SYS_shutdown, libc::SYS_unlinkat] {
            assert!(!notifies(&filter, ARCH, nr, [0; 3]));
        }
    }
}
