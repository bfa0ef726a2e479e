//! Surroundings that allow less: an ordinary user, and what a container engine's default profile denies.

use crate::fixtures;

/// Changes its root, where one is named, becomes a user, where one is named, gives up gaining privileges, denies calls, and
/// turns into the command. A root is named by a process that is the first one of its PID and mount namespace: the root
/// becomes read-only, and so do the directories that a container has no room for, but for a volume at `/run/app` and, with the root of the host, the
/// folder of temporary files, and no capability is left.
const LAUNCHER: &str = "
import ctypes, os, platform, struct, sys
root, user, denied, command = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]
libc = ctypes.CDLL(None, use_errno=True)
def check(what, result):
    if result != 0:
        sys.exit(what + ': ' + os.strerror(ctypes.get_errno()))
def mount(source, target, kind, flags, data=''):
    check('mount ' + target, libc.mount(source.encode(), target.encode(), kind.encode(), flags, data.encode()))
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, PR_CAPBSET_DROP = 1, 32, 4096, 16384, 24
if root != '-':
    volume = os.environ.get('TMPDIR', '/tmp')
    if root == '/':
        mount(volume, volume, '', MS_BIND | MS_REC)
    else:
        mount(root, root, '', MS_BIND | MS_REC)
        mount('/dev', root + '/dev', '', MS_BIND | MS_REC)
        os.chroot(root)
        os.chdir('/')
    mount('none', '/', '', MS_REMOUNT | MS_BIND | MS_RDONLY)
    mount('proc', '/proc', 'proc', 0)
    for closed in ['/run', '/var', '/dev/shm']:
        if os.path.isdir(closed): mount('none', closed, 'tmpfs', 0)
        # A volume of the user.
        if closed == '/run':
            os.mkdir('/run/app')
            mount('none', '/run/app', 'tmpfs', 0, 'mode=2775,gid=' + user)
        if os.path.isdir(closed): mount('none', closed, '', MS_REMOUNT | MS_BIND | MS_RDONLY)
    last = int(open('/proc/sys/kernel/cap_last_cap').read())
    for number in range(last + 1):
        check('PR_CAPBSET_DROP', libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0))
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

/// Words to put in front of a command line, so that it is pid 1 of a container: with this root, which is read-only, as
/// an ordinary user without any capability, and with what an engine's default profile denies.
#[must_use]
pub fn container(root: &str) -> Vec<String> {
    let namespaces = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"];
    let user = ordinary_user().to_string();
    let launcher = [root.to_owned(), user, CONTAINER.join(",")];
    namespaces.map(str::to_owned).into_iter().chain(python()).chain(launcher).collect()
}

/// Whether such a container can be made here.
#[must_use]
pub fn can_contain() -> bool {
    let words = container("/");
    let tried = std::process::Command::new(&words[0]).args(&words[1..]).arg("/bin/true").output();
    tried.is_ok_and(|output| output.status.success())
}

fn python() -> [String; 5] {
    [fixtures::python(), "-S".into(), "-E".into(), "-c".into(), LAUNCHER.into()]
}

/// Words to put in front of a command line, so that it runs as `user` (by number; `None`: as the user of the tests) with
/// `NO_NEW_PRIVS`, and each `NAME=ERRNO` of `denied` fails so.
#[must_use]
pub fn launcher(user: Option<u32>, denied: &[&str]) -> Vec<String> {
    let user = user.map_or_else(|| "-".to_owned(), |user| user.to_string());
    python().into_iter().chain(["-".to_owned(), user, denied.join(",")]).collect()
}

/// A user that no other test uses.
#[must_use]
pub fn ordinary_user() -> u32 {
    50_000 + std::process::id() % 10_000
}
