//! Workers that listen by ways that their filter does not see.

use std::time::Duration;

use master_process_tests::script::{said, script};
use master_process_tests::{Supervisor, address, always, load, process, skip};

/// `bind` and `listen` as entries of a ring: since Linux 6.11.
const BY_URING: &str = "
import ctypes, mmap, struct
IO_URING_SETUP, IO_URING_ENTER, GETEVENTS, SQES_AT, OP_BIND, OP_LISTEN = 425, 426, 1, 0x10000000, 56, 57
call = ctypes.CDLL(None, use_errno=True).syscall
params = ctypes.create_string_buffer(120)
ring = call(IO_URING_SETUP, 4, params)
if ring < 0:
    say('unable', errno.errorcode[ctypes.get_errno()])
    time.sleep(1000)
sq_entries, cq_entries = struct.unpack_from('2I', params)
sq_head, sq_tail, _, _, _, _, sq_array = struct.unpack_from('7I', params, 40)
cq_head, cq_tail, _, _, _, cqes = struct.unpack_from('6I', params, 80)
rings = mmap.mmap(ring, max(sq_array + 4 * sq_entries, cqes + 16 * cq_entries))
entries = mmap.mmap(ring, 64 * sq_entries, offset=SQES_AT)
def submit(op, fd, address=0, length=0, offset=0):
    tail, = struct.unpack_from('I', rings, sq_tail)
    struct.pack_into('=BBHiQQI', entries, 64 * tail, op, 0, 0, fd, offset, address, length)
    struct.pack_into('I', rings, sq_array + 4 * tail, tail)
    struct.pack_into('I', rings, sq_tail, tail + 1)
    call(IO_URING_ENTER, ring, 1, 1, GETEVENTS, None, 0)
    result, = struct.unpack_from('i', rings, cqes + 16 * tail + 8)
    struct.pack_into('I', rings, cq_head, tail + 1)
    return result
def bind(fd, address):
    place = ctypes.create_string_buffer(address)
    return submit(OP_BIND, fd, ctypes.addressof(place), 0, len(address))
def listen(fd):
    return submit(OP_LISTEN, fd, 0, 64)";

/// The same as a 32-bit program makes them, with the numbers of that architecture.
const BY_INT_0X80: &str = "
import ctypes, mmap, struct
MAP_32BIT, BIND, LISTEN, PLACE = 0x40, 361, 363, 64
page = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_32BIT,
                 mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
at = ctypes.addressof(ctypes.c_char.from_buffer(page))
# push rbx; mov eax, edi; mov ebx, esi; xchg ecx, edx; int 0x80; pop rbx; ret
code = bytes.fromhex('53' '89f8' '89f3' '87d1' 'cd80' '5b' 'c3')
page[:len(code)] = code
call = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_int] * 4)(at)
def bind(fd, address):
    page[PLACE:PLACE + len(address)] = address
    return call(BIND, fd, at + PLACE, len(address))
def listen(fd):
    return call(LISTEN, fd, 64, 0)";

/// Binds, listens and serves by what was defined before.
const SERVE: &str = "
made = socket.socket()
made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
place = struct.pack('=H', socket.AF_INET) + PORT.to_bytes(2, 'big') + socket.inet_aton(HOST) + bytes(8)
failed = bind(made.fileno(), place) or listen(made.fileno())
say('unable' if failed else 'listening', failed and errno.errorcode[-failed])
serve(made)";

/// One line names the listener that the filter does not see, once, and nothing is done to it; `None` where the kernel has no
/// such way.
fn is_named_once_and_serves_on(text: &str, around: &[&str], options: &[&str]) -> Option<()> {
    let address = address::tcp();
    let mut command: Vec<String> = around.iter().map(|word| (*word).to_owned()).collect();
    command.extend(script(&format!("{text}{SERVE}"), address));
    let supervisor = Supervisor::start(options, command);
    if said(&supervisor, 1).iter().any(|line| line.starts_with("unable")) {
        return None;
    }
    let named = || supervisor.logged(&["warn", "worker 0", "io_uring", &address.to_string()]).len();
    supervisor.eventually("it is named", || named() > 0);
    always(Duration::from_secs(3), "it is named once", || named() == 1);
    let worker = supervisor.await_workers(1);
    let served = load::who(address).and_then(process::stat).expect("it serves");
    assert!(worker.contains(&served.pid) || worker.contains(&served.ppid), "{served:?}");
    assert_eq!(supervisor.output().len(), 1, "and was started once");
    assert_eq!(supervisor.stop(), 0);
    Some(())
}

#[test]
fn io_uring_listener_is_logged_once_and_keeps_serving() {
    if is_named_once_and_serves_on(BY_URING, &[], &["--ready", "none"]).is_none() {
        skip!("this kernel's io_uring cannot bind");
    }
}

#[test]
fn listener_by_32_bit_calls_is_logged_once_and_keeps_serving() {
    if !cfg!(target_arch = "x86_64") {
        skip!("this architecture has one set of calls");
    }
    if is_named_once_and_serves_on(BY_INT_0X80, &[], &["--ready", "alive:100ms"]).is_none() {
        skip!("this kernel has no calls of 32 bits");
    }
}

#[test]
fn io_uring_listener_of_a_child_is_logged() {
    // What starts a program by a script looks like this.
    let around = ["sh", "-c", "\"$@\"; exit $?", "sh"];
    if is_named_once_and_serves_on(BY_URING, &around, &["--ready", "none"]).is_none() {
        skip!("this kernel's io_uring cannot bind");
    }
}
