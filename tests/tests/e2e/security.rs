//! What a worker that means ill can make the supervisor do, which has more rights than the worker.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::{Duration, Instant};

use master_process_tests::script::{said, script};
use master_process_tests::{Supervisor, address, patient, process, skip};
use rustix::process::Signal;

#[test]
fn a_link_that_a_worker_races_over_its_path_leads_mode_and_owner_nowhere() {
    let name = "a_link_that_a_worker_races_over_its_path_leads_mode_and_owner_nowhere";
    if !process::is_root() {
        skip!(name, "to become another user takes root");
    }
    let outer = tempfile::tempdir().expect("a temporary folder");
    fs::set_permissions(outer.path(), fs::Permissions::from_mode(0o755)).expect("ours");
    let folder = outer.path().join("of-the-worker");
    fs::create_dir(&folder).expect("ours");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).expect("ours");
    let target = outer.path().join("secret");
    fs::write(&target, "root's own").expect("ours");
    fs::set_permissions(&target, fs::Permissions::from_mode(0o600)).expect("ours");
    // Another process puts a link over the socket's name the moment it appears, again and again, each time a new name.
    let text = "
folder, target, ROUNDS = sys.argv[2], sys.argv[3], 800
taken, put = os.pipe()
if os.fork() == 0:
    for round in range(ROUNDS):
        path, link = f'{folder}/{round}', f'{folder}/link'
        os.symlink(target, link)
        while True:
            try:
                os.lstat(path)
                break
            except FileNotFoundError:
                pass
        os.rename(link, path)
        os.write(put, b'x')
    os._exit(0)
for round in range(ROUNDS):
    made = socket.socket(socket.AF_UNIX)
    try:
        made.bind(f'{folder}/{round}')
    except OSError:
        # The other one waits for the name: it comes all the same.
        attempt(lambda: os.close(os.open(f'{folder}/{round}', os.O_CREAT | os.O_EXCL | os.O_WRONLY)))
    os.read(taken, 1)
    made.close()
say('done')
while True: signal.pause()";
    let mut command = script(text, address::tcp());
    command.extend([&folder, &target].map(|path| path.to_str().expect("UTF-8").to_owned()));
    let options = ["--user", "nobody", "--socket-mode", "666", "--socket-owner", "nobody", "--ready", "none"];
    let supervisor = Supervisor::start(&options, command);
    assert!(said(&supervisor, 1).contains("done"));
    let metadata = fs::symlink_metadata(&target).expect("it is there");
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o600, "the mode of root's file was changed");
    assert_eq!((metadata.uid(), metadata.gid()), (0, 0), "root's file was given away");
    assert_eq!(fs::read_to_string(&target).expect("there"), "root's own");
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn a_descriptor_whose_close_waits_does_not_hold_the_supervisor_up() {
    // A connection with unsent data and SO_LINGER: who closes it last waits for the peer, for a minute.
    let peer = address::tcp();
    let _never_accepts = TcpListener::bind(peer).expect("the address is this test's own");
    let text = format!(
        "
import array, struct
def sender(count):
    name = os.environ['NOTIFY_SOCKET']
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.connect('\\0' + name[1:] if name.startswith('@') else name)
    held = []
    for _ in range(count):
        out = socket.socket()
        out.connect(('{}', {}))
        out.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 60))
        out.setblocking(False)
        try:
            while True: out.send(bytes(65536))
        except BlockingIOError:
            pass
        held.append(out)
    notify.sendmsg([b'STATUS=x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [out.fileno() for out in held]))])
    [out.close() for out in held]
# The supervisor must not read before our own copies are closed: the last one is then its.
parent = os.getppid()
if INDEX == '0':
    os.kill(parent, signal.SIGSTOP)
    while open(f'/proc/{{parent}}/stat').read().rsplit(')', 1)[1].split()[0] != 'T': pass
    sender(1); sender(20)
    os.kill(parent, signal.SIGCONT)
say('sent')
while True: signal.pause()",
        peer.ip(),
        peer.port()
    );
    let supervisor = Supervisor::start(&["-w", "1", "--ready", "none"], script(&text, address::tcp()));
    said(&supervisor, 1);
    let start = Instant::now();
    supervisor.signal(Signal::TTIN);
    supervisor.await_workers(2);
    assert!(start.elapsed() < patient(Duration::from_secs(5)), "it was held up for {:?}", start.elapsed());
    assert_eq!(supervisor.stop(), 0);
}
