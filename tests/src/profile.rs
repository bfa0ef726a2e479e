//! Surroundings that allow less: an ordinary user, and what a container engine's default profile denies.

use crate::fixtures;

/// Becomes a user, where one is named, gives up gaining privileges, denies calls, and turns into the command.
const LAUNCHER: &str = "
import ctypes, os, platform, struct, sys
user, denied, command = sys.argv[1], sys.argv[2], sys.argv[3:]
if user != '-':
    os.setgroups([])
    os.setresgid(int(user), int(user), int(user))
    os.setresuid(int(user), int(user), int(user))
X86 = platform.machine() == 'x86_64'
ARCH = 0xC000003E if X86 else 0xC00000B7
NUMBERS = {
    'bpf': (321, 280), 'close_range': (436, 436), 'clone3': (435, 435), 'io_uring_enter': (426, 426), 'io_uring_register': (427, 427),
    'io_uring_setup': (425, 425), 'kcmp': (312, 272), 'mount': (165, 40), 'perf_event_open': (298, 241),
    'pidfd_getfd': (438, 438), 'process_vm_readv': (310, 270), 'process_vm_writev': (311, 271),
    'seccomp': (317, 277), 'setns': (308, 268), 'unshare': (272, 97),
}
LOAD, EQUAL, RETURN, ERRNO, ALLOW = 0x20, 0x15, 0x06, 0x00050000, 0x7FFF0000
program = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, ARCH), (RETURN, 0, 0, ALLOW), (LOAD, 0, 0, 0)]
for rule in filter(None, denied.split(',')):
    name, errno = rule.split('=')
    program += [(EQUAL, 0, 1, NUMBERS[name][0 if X86 else 1]), (RETURN, 0, 0, ERRNO | int(errno))]
program.append((RETURN, 0, 0, ALLOW))
code = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *line) for line in program))
class Program(ctypes.Structure):
    _fields_ = [('length', ctypes.c_ushort), ('code', ctypes.c_void_p)]
libc = ctypes.CDLL(None, use_errno=True)
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
    sys.exit('PR_SET_NO_NEW_PRIVS: ' + os.strerror(ctypes.get_errno()))
filter = Program(len(program), ctypes.cast(code, ctypes.c_void_p))
if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(filter)) != 0:
    sys.exit('PR_SET_SECCOMP: ' + os.strerror(ctypes.get_errno()))
os.execv(command[0], command)
";

/// What the engines' default profile answers with EPERM where there is no capability for it, and with ENOSYS for
/// clone3(2), whose arguments a filter cannot see.
pub const CONTAINER: [&str; 13] = [
    "clone3=38",
    "pidfd_getfd=1",
    "process_vm_readv=1",
    "process_vm_writev=1",
    "kcmp=1",
    "io_uring_setup=1",
    "io_uring_enter=1",
    "io_uring_register=1",
    "bpf=1",
    "perf_event_open=1",
    "mount=1",
    "setns=1",
    "unshare=1",
];

/// Words to put in front of a command line, so that it runs as `user` (by number; `None`: as the user of the tests) with
/// `NO_NEW_PRIVS`, and each `NAME=ERRNO` of `denied` fails so.
#[must_use]
pub fn launcher(user: Option<u32>, denied: &[&str]) -> Vec<String> {
    let user = user.map_or_else(|| "-".to_owned(), |user| user.to_string());
    let mut words = vec![fixtures::python(), "-S".into(), "-E".into(), "-c".into(), LAUNCHER.into()];
    words.extend([user, denied.join(",")]);
    words
}

/// A user that no other test uses.
#[must_use]
pub fn ordinary_user() -> u32 {
    50_000 + std::process::id() % 10_000
}
