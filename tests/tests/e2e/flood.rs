//! A worker that binds and listens without end costs the supervisor a bounded number of descriptors and its siblings a
//! bounded time.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use master_process_tests::gate::Gate;
use master_process_tests::script::{lines, said, script_with, started};
use master_process_tests::{Supervisor, TIMEOUT, address, eventually, load, process, scaled};
use rustix::process::Signal;

/// From the kill of a worker until its replacement serves, however busy the machine is: on an idle one it takes a tenth
/// of a second, most of it python's.
const REPLACED_WITHIN: Duration = Duration::from_secs(5);

/// Listeners of one worker that the supervisor keeps.
const KEPT: usize = 256;

/// Serves the address that all workers have, and prints it.
const SERVE: &str = "
import threading
made = bound(HOST, PORT); made.listen(64)
threading.Thread(target=serve, args=(made,), daemon=True).start()
say('serves', INDEX, PID)
";

/// Notifies the supervisor by the sd_notify protocol: a worker that is not ready is starting, and what it binds is shared.
const NOTIFY: &str = "
def notify(text):
    name = os.environ['NOTIFY_SOCKET']
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.sendto(text, '\\0' + name[1:] if name.startswith('@') else name)
";

/// The pids that have said that they serve as this slot, in order.
fn served(supervisor: &Supervisor, slot: u32) -> Vec<i32> {
    let prefix = format!("serves {slot} ");
    let lines = supervisor.output();
    lines.iter().filter_map(|line| line.strip_prefix(&prefix)?.parse().ok()).collect()
}

/// Kills the worker of a slot; how long it took until its replacement served.
fn replacement_takes(supervisor: &Supervisor, slot: u32) -> Duration {
    let before = served(supervisor, slot);
    let victim = *before.last().expect("it serves");
    let start = Instant::now();
    process::signal(victim, Signal::KILL);
    supervisor.eventually("its replacement serves", || served(supervisor, slot).len() > before.len());
    start.elapsed()
}

fn is_replaced_in_time(supervisor: &Supervisor, slot: u32) {
    let took = replacement_takes(supervisor, slot);
    println!("replaced after {took:?}");
    assert!(took < scaled(REPLACED_WITHIN), "replaced after {took:?}");
}

#[test]
fn closed_binds_and_listeners_leave_no_descriptor() {
    // Not ready until all is done: each of these addresses is one that would be shared.
    let text = format!(
        "{NOTIFY}{SERVE}
begin = time.monotonic()
wait()
for port in range(10000, 20000):
    one = socket.socket(); one.bind((HOST, port)); one.close()
binds = time.monotonic()
for port in range(20000, 22000):
    one = socket.socket(); one.bind((HOST, port)); one.listen(8); one.close()
say('done', time.monotonic() - binds, binds - begin)
notify(b'READY=1')
while True: signal.pause()"
    );
    let gate = Gate::new();
    let command = gate.script(&text, address::tcp());
    let supervisor = Supervisor::start(&["--ready", "notify"], command);
    supervisor.eventually("it serves", || !served(&supervisor, 0).is_empty());
    supervisor.await_measuring();
    supervisor.await_rest();
    let before = process::descriptors(supervisor.pid());
    gate.open();
    let mut most = 0;
    supervisor.eventually("it has bound and closed all", || {
        most = most.max(process::descriptors(supervisor.pid()).len());
        supervisor.output().iter().any(|line| line.starts_with("done"))
    });
    println!("{:?}, at most {most} descriptors", supervisor.output());
    assert!(most <= before.len() + KEPT + 64, "{most} descriptors at once");
    let start = Instant::now();
    // One more: of the thread that looks for closed listeners, which is started for the first of them.
    eventually(TIMEOUT, "as many descriptors as before", || {
        process::descriptors(supervisor.pid()).len() <= before.len() + 1
    });
    println!("as before after {:?}", start.elapsed());
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn at_most_256_listeners_of_a_worker_are_shared() {
    const OPENED: u16 = 400;
    let text = format!(
        "{SERVE}
import selectors
if INDEX == '0':
    poll = selectors.DefaultSelector()
    for port in range(10000, 10000 + {OPENED}):
        one = socket.socket(); one.bind((HOST, port)); one.listen(8)
        poll.register(one, selectors.EVENT_READ)
    say('all listen')
    while True:
        for key, _ in poll.select(): reply(key.fileobj.accept()[0])
while True: signal.pause()"
    );
    let address = address::tcp();
    let supervisor = started(&["-w", "2", "--throttle", "10ms"], &text, address);
    supervisor.eventually("both serve", || {
        (0..2).all(|slot| !served(&supervisor, slot).is_empty())
            && supervisor.output().contains(&"all listen".to_owned())
    });
    supervisor.await_rest();
    let sockets = process::descriptors(supervisor.pid());
    let sockets = sockets.iter().filter(|(_, file)| file.to_string_lossy().starts_with("socket:")).count();
    // Those of the other worker, of the notify socket, of the log.
    assert!(sockets <= KEPT + 16, "{sockets} sockets are kept");
    let told = || supervisor.logged(&["256 listeners", "not shared"]).len();
    supervisor.eventually("one line tells", || told() == 1);
    let owner = served(&supervisor, 0).first().copied();
    for port in (10000..10000 + OPENED).step_by(7).chain([10000 + OPENED - 1]) {
        assert_eq!(load::who(SocketAddr::new(address.ip(), port)), owner, "port {port}");
    }
    is_replaced_in_time(&supervisor, 1);
    let new = served(&supervisor, 1).last().copied();
    supervisor.eventually("the replacement gets its share", || load::who(address) == new);
    assert_eq!(told(), 1, "{:?}", supervisor.log());
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn bind_loop_in_eight_threads_does_not_delay_a_sibling() {
    // Each thread has addresses of its own, new ones at first and later the same again.
    let text = format!(
        "{NOTIFY}{SERVE}
def flood(base):
    while True:
        for port in range(base, base + 500):
            try:
                one = bound(HOST, port); one.listen(8); one.close()
            except OSError: pass
if INDEX == '0':
    for thread in range(8):
        threading.Thread(target=flood, args=(10000 + 500 * thread,), daemon=True).start()
    say('floods')
else:
    notify(b'READY=1')
while True: signal.pause()"
    );
    let address = address::tcp();
    // The one that floods is never ready, so that what it binds is shared.
    let supervisor = started(&["-w", "2", "--ready", "notify", "--throttle", "10ms"], &text, address);
    supervisor.eventually("both serve", || {
        (0..2).all(|slot| !served(&supervisor, slot).is_empty())
            && supervisor.output().contains(&"floods".to_owned())
    });
    supervisor.await_measuring();
    let before = process::descriptors(supervisor.pid()).len();
    for _ in 0..5 {
        is_replaced_in_time(&supervisor, 1);
        let count = process::descriptors(supervisor.pid()).len();
        assert!(count < before + KEPT + 64, "{count} descriptors");
    }
    assert!(TcpStream::connect(address).is_ok());
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn bind_loop_with_18_000_descriptors_does_not_delay_a_sibling() {
    let text = format!(
        "{NOTIFY}{SERVE}
import resource
if INDEX == '0':
    try:
        hard = max(20000, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        resource.setrlimit(resource.RLIMIT_NOFILE, (20000, hard))
    except (OSError, ValueError):
        pass
    opened = []
    try:
        while len(opened) < 18000: opened.append(os.open('/dev/null', os.O_RDONLY))
    except OSError:
        os.close(opened.pop())
    say('opened', len(opened))
    rounds, begin = 0, time.monotonic()
    while True:
        # Whether the last one is still open is looked for among all descriptors.
        try:
            one = bound(HOST, PORT + 100); one.listen(8); one.close()
            two = bound(HOST, PORT + 101); two.close()
        except OSError: pass
        rounds += 1
        if rounds % 1000 == 0: say('rounds', rounds, time.monotonic() - begin)
else:
    notify(b'READY=1')
while True: signal.pause()"
    );
    let supervisor = started(&["-w", "2", "--ready", "notify", "--throttle", "10ms"], &text, address::tcp());
    supervisor.eventually("both serve", || {
        let opened = supervisor.output().iter().any(|line| line.starts_with("opened"));
        opened && (0..2).all(|slot| !served(&supervisor, slot).is_empty())
    });
    for _ in 0..5 {
        is_replaced_in_time(&supervisor, 1);
    }
    println!("{:?}", supervisor.output().last());
    assert_eq!(supervisor.stop(), 0);
}

/// Binds a hundred ports, one worker after the other, and prints how many failed.
fn a_hundred_ports_are_shared(kind: &str) {
    let text = format!(
        "
while INDEX == '1' and not os.path.exists(sys.argv[2]): time.sleep(0.01)
made, lost = [], 0
for port in range(10000, 10100):
    made.append(socket.socket(socket.AF_INET, socket.{kind}))
    lost += attempt(lambda: made[-1].bind((HOST, port))) != 'ok'
if made[0].type == socket.SOCK_STREAM: [one.listen(8) for one in made]
open(sys.argv[2], 'w').close()
say('lost', INDEX, lost)
while True: signal.pause()"
    );
    let folder = tempfile::tempdir().expect("a temporary folder");
    let command = script_with(&text, address::tcp(), [&folder.path().join("gate")]);
    let supervisor = Supervisor::start(&["-w", "2", "--ready", "none"], command);
    assert_eq!(said(&supervisor, 2), lines(&["lost 0 0", "lost 1 0"]));
}

#[test]
fn hundred_udp_ports_are_shared() {
    a_hundred_ports_are_shared("SOCK_DGRAM");
}

#[test]
fn hundred_tcp_ports_bound_before_listen_are_shared() {
    a_hundred_ports_are_shared("SOCK_STREAM");
}

#[test]
fn at_most_256_udp_sockets_of_a_worker_are_kept() {
    // Both take one port after the other, so that each of them is shared.
    let text = "
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (20000, max(20000, resource.getrlimit(resource.RLIMIT_NOFILE)[1])))
made = []
for port in range(10000, 12000):
    made.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    attempt(lambda: made[-1].bind((HOST, port)))
say('bound', INDEX)
while True: signal.pause()";
    let supervisor = started(&["-w", "2", "--ready", "none"], text, address::tcp());
    said(&supervisor, 2);
    let count = process::descriptors(supervisor.pid()).len();
    assert!(count <= 2 * (KEPT + 64) + 64, "{count} descriptors");
}
