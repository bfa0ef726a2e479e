//! The basics where less is allowed: as an ordinary user with what a container engine's default profile denies, with
//! epoll in the place of io_uring, and without seccomp.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use master_process_tests::gate::Gate;
use master_process_tests::load::{self, Connections, Kept, Load, Outcome, Target};
use master_process_tests::profile::{self, CONTAINER};
use master_process_tests::script::{TWO_FAMILIES, said, script, script_with};
use master_process_tests::supervisor::Builder;
use master_process_tests::traffic::{all_answer, reload_under_load};
use master_process_tests::{Supervisor, address, needs_root, process, scaled, skip};
use rustix::process::Signal;

const TCP: &str = "
made = bound(HOST, PORT); made.listen(64)
say('ready', RELOAD)
serve(made)";

const UNIX: &str = "
made = socket.socket(socket.AF_UNIX)
made.bind(sys.argv[2]); made.listen(64)
say('ready', RELOAD)
serve(made)";

/// Where a supervisor is to run.
#[derive(Clone, Copy)]
enum Place {
    /// As an ordinary user in a container.
    Container,
    /// As pid 1 of a container with a read-only root and without any capability.
    PidOne,
    /// As whoever runs the tests, with epoll.
    Epoll,
}

impl Place {
    fn builder(self) -> Builder {
        match self {
            Place::Container => {
                let user = process::is_root().then(profile::ordinary_user);
                Supervisor::builder().wrap(profile::launcher(user, &CONTAINER))
            }
            Place::PidOne => Supervisor::builder().wrap(profile::container("/")),
            Place::Epoll => Supervisor::builder().env("MASTER_PROCESS_LOOP", "epoll"),
        }
    }
}

/// Reloads under load; nothing is lost, and each new worker answers.
fn reloads_lose_nothing(supervisor: &Supervisor, target: impl Into<Target>, workers: usize) {
    let target = target.into();
    let new = reload_under_load(supervisor, target.clone(), workers, 2);
    all_answer(supervisor, target, &new);
}

fn four_share(place: Place) -> (Supervisor, SocketAddr) {
    let address = address::tcp();
    // A test that checks whether the supervisor runs must not see it measure.
    let options = ["-w", "4", "--throttle", "100ms", "--monitor-interval", "1h"];
    let builder = place.builder().args(options).command(script(TCP, address));
    let supervisor = builder.spawn();
    said(&supervisor, 4);
    let workers = supervisor.await_workers(4);
    all_answer(&supervisor, address, &workers);
    (supervisor, address)
}

fn a_crash_is_replaced_and_loses_nothing_that_waits(place: Place) {
    let (supervisor, address) = four_share(place);
    let victims = supervisor.workers();
    // Stopped first: what comes now waits in a queue, and no worker has accepted it.
    victims.iter().for_each(|pid| process::freeze(*pid));
    supervisor.eventually("they are stopped", || {
        victims.iter().all(|pid| process::stat(*pid).is_some_and(|found| found.state == 'T'))
    });
    let ask = || {
        let mut client = Kept::open(address).expect("a queue takes it");
        client.ask().expect("it is connected");
        client
    };
    let mut clients: Vec<Kept> = (0..20).map(|_| ask()).collect();
    victims.iter().for_each(|pid| process::signal(*pid, Signal::KILL));
    clients.extend((0..20).map(|_| ask()));
    for mut client in clients {
        let outcome = client.answer();
        assert!(matches!(outcome, Outcome::Ok(_)), "a queued client was not served: {outcome:?}");
    }
    supervisor.eventually("all are replaced", || {
        let workers = supervisor.workers();
        workers.len() == 4 && workers.is_disjoint(&victims)
    });
    assert_eq!(supervisor.stop(), 0);
}

fn a_unix_path_is_shared_and_reloaded(place: Place) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).expect("ours");
    let path = folder.path().join("app.sock");
    let command = script_with(UNIX, address::tcp(), [&path]);
    let options = ["-w", "3", "--throttle", "100ms", "--socket-mode", "664"];
    let supervisor = place.builder().args(options).command(command).spawn();
    said(&supervisor, 3);
    reloads_lose_nothing(&supervisor, path.as_path(), 3);
    assert_eq!(mode(&path), 0o664);
    assert_eq!(supervisor.stop(), 0);
    let entries = fs::read_dir(folder.path()).expect("there").flatten();
    let left: Vec<_> = entries.map(|entry| entry.file_name()).collect();
    assert!(left.is_empty(), "nothing is left in the folder: {left:?}");
}

fn mode(path: &Path) -> u32 {
    path.metadata().expect("it is there").permissions().mode() & 0o7777
}

fn a_worker_that_notifies_is_ready_then_and_not_before(place: Place) {
    let text = "
gate = sys.argv[2]
say('started', RELOAD)
while RELOAD and not os.path.exists(gate): time.sleep(0.01)
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
    address = os.environ['NOTIFY_SOCKET']
    notify.sendto(b'READY=1', '\\0' + address[1:] if address.startswith('@') else address)
while True: signal.pause()";
    let gate = Gate::new();
    let command = gate.script(text, address::tcp());
    let options = ["-w", "2", "--ready", "notify", "--throttle", "10ms"];
    let supervisor = place.builder().args(options).command(command).spawn();
    supervisor.eventually("both are ready", || supervisor.logged(&[": notified"]).len() == 2);
    let old = supervisor.await_workers(2);
    supervisor.signal(Signal::HUP);
    said(&supervisor, 4);
    assert!(old.is_subset(&supervisor.workers()), "the old ones serve until the new ones are ready");
    gate.open();
    supervisor.eventually("the old ones are gone", || {
        let workers = supervisor.workers();
        workers.len() == 2 && workers.is_disjoint(&old)
    });
    assert_eq!(supervisor.stop(), 0);
}

fn a_hundred_workers_come_and_go(place: Place) {
    let address = address::tcp();
    // A hundred interpreters that start at once take their time on a slow machine.
    let ready_timeout = format!("{}s", scaled(std::time::Duration::from_secs(60)).as_secs());
    let options = ["-w", "100", "--throttle", "100ms", "--ready-timeout", &ready_timeout];
    let text = "made = bound(HOST, PORT); made.listen(64); serve(made)";
    let supervisor = place.builder().args(options).command(script(text, address)).spawn();
    supervisor.eventually("they listen", || supervisor.logged(&[": listening"]).len() == 100);
    supervisor.reload(100);
    assert!(load::who(address).is_some());
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn in_a_container_reloads_lose_no_request() {
    let (supervisor, address) = four_share(Place::Container);
    reloads_lose_nothing(&supervisor, address, 4);
    let privileges = supervisor.workers().into_iter().map(|pid| process::status(pid, "NoNewPrivs"));
    assert!(privileges.into_iter().all(|value| value.as_deref() == Some("1")));
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn in_a_container_a_crash_loses_no_queued_connection() {
    a_crash_is_replaced_and_loses_nothing_that_waits(Place::Container);
}

#[test]
fn in_a_container_a_unix_path_is_shared_and_reloaded() {
    a_unix_path_is_shared_and_reloaded(Place::Container);
}

#[test]
fn in_a_container_a_worker_is_ready_when_it_notifies() {
    a_worker_that_notifies_is_ready_then_and_not_before(Place::Container);
}

#[test]
fn in_a_container_only_the_epoll_fallback_is_logged() {
    let (supervisor, _) = four_share(Place::Container);
    assert_eq!(supervisor.logged(&["epoll"]).len(), 1, "{:?}", supervisor.log());
    assert_eq!(supervisor.logged(&[" warn "]), Vec::<String>::new());
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn in_a_container_ipv4_and_ipv6_listeners_of_a_port_are_separate() {
    // Options that were set before bind are seen only because the filter reports them.
    let port = address::wildcard_port();
    let four = SocketAddr::from(([127, 0, 0, 1], port));
    let six = SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, port));
    let options = ["-w", "2", "--throttle", "10ms"];
    let supervisor = Place::Container.builder().args(options).command(script(TWO_FAMILIES, four)).spawn();
    said(&supervisor, 2);
    for target in [four, six] {
        all_answer(&supervisor, target, &supervisor.await_workers(2));
    }
    let new = supervisor.reload(2);
    for target in [four, six] {
        all_answer(&supervisor, target, &new);
    }
}

/// Skips where no container can be made, which takes root.
macro_rules! needs_container {
    () => {
        if !profile::can_contain() {
            skip!("no container can be made");
        }
    };
}

#[test]
fn as_pid_1_without_capabilities_reloads_lose_no_request() {
    needs_container!();
    let (supervisor, address) = four_share(Place::PidOne);
    let of = |name: &str| process::status(supervisor.pid(), name).unwrap_or_default();
    assert!(of("NSpid").ends_with("\t1"), "{}", of("NSpid"));
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        assert_eq!(of(set), "0000000000000000", "{set}");
    }
    reloads_lose_nothing(&supervisor, address, 4);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn as_pid_1_without_capabilities_a_crash_loses_no_queued_connection() {
    needs_container!();
    a_crash_is_replaced_and_loses_nothing_that_waits(Place::PidOne);
}

#[test]
fn as_pid_1_without_capabilities_a_unix_path_is_shared_and_reloaded() {
    needs_container!();
    a_unix_path_is_shared_and_reloaded(Place::PidOne);
}

#[test]
fn as_pid_1_without_capabilities_a_worker_is_ready_when_it_notifies() {
    needs_container!();
    a_worker_that_notifies_is_ready_then_and_not_before(Place::PidOne);
}

#[test]
fn as_pid_1_without_capabilities_a_hundred_workers_start_and_stop() {
    needs_container!();
    a_hundred_workers_come_and_go(Place::PidOne);
}

/// Each feature that a container takes away is one line, and costs nothing else.
#[test]
fn as_pid_1_without_capabilities_each_lost_feature_is_logged_once() {
    needs_container!();
    let address = address::tcp();
    // As an engine sets it up: where the start gate and the control socket would be, nothing can be written.
    let options = ["-w", "2", "--throttle", "100ms", "--start-gate", "2", "--preload", "printf shared"];
    let text = "
made = bound(HOST, PORT); made.listen(64)
say('ready', open(os.environ['PRELOAD_FILE']).read())
serve(made)";
    let supervisor = Place::PidOne.builder().args(options).command(script(text, address)).spawn();
    assert_eq!(said(&supervisor, 2), BTreeSet::from(["ready shared".to_owned()]));
    all_answer(&supervisor, address, &supervisor.await_workers(2));
    let lost = ["io_uring unavailable", "ebpf unavailable", "start gate unavailable", "no control socket"];
    for feature in lost {
        supervisor.eventually(feature, || !supervisor.logged(&[feature]).is_empty());
        assert_eq!(supervisor.logged(&[feature]).len(), 1, "{:?}", supervisor.log());
    }
    assert_eq!(supervisor.logged(&[" warn "]), Vec::<String>::new(), "{:?}", supervisor.log());
    reloads_lose_nothing(&supervisor, address, 2);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn with_epoll_reloads_lose_no_request() {
    let (supervisor, address) = four_share(Place::Epoll);
    reloads_lose_nothing(&supervisor, address, 4);
    let ring = |path: &Path| path.to_string_lossy().contains("io_uring");
    assert!(!process::descriptors(supervisor.pid()).iter().any(|(_, path)| ring(path)), "no ring is open");
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn with_epoll_a_crash_loses_no_queued_connection() {
    a_crash_is_replaced_and_loses_nothing_that_waits(Place::Epoll);
}

#[test]
fn with_epoll_a_unix_path_is_shared_and_reloaded() {
    a_unix_path_is_shared_and_reloaded(Place::Epoll);
}

#[test]
fn with_epoll_a_worker_is_ready_when_it_notifies() {
    a_worker_that_notifies_is_ready_then_and_not_before(Place::Epoll);
}

#[test]
fn with_epoll_a_hundred_workers_start_and_stop() {
    a_hundred_workers_come_and_go(Place::Epoll);
}

#[test]
fn with_epoll_an_idle_supervisor_does_not_wake() {
    let (supervisor, _) = four_share(Place::Epoll);
    let switches = || {
        let of = |name: &str| process::status(supervisor.pid(), name).expect("it runs");
        (of("voluntary_ctxt_switches"), of("nonvoluntary_ctxt_switches"))
    };
    // A queue that got a connection is checked a second later, and then not any more.
    let mut last = (Instant::now(), switches());
    supervisor.eventually("three seconds pass without a context switch", || {
        let now = switches();
        if now != last.1 {
            last = (Instant::now(), now);
        }
        last.0.elapsed() > Duration::from_secs(3)
    });
}

/// No filter can be had: what the workers bind is theirs, what `--listen` opens is everybody's.
fn without_seccomp(errno: &str, user: Option<u32>) {
    let address = address::tcp();
    let text = "
made = socket.socket(fileno=3)
say('ready', os.environ['LISTEN_FDS'], attempt(lambda: bound(HOST, PORT + 100).listen()) if INDEX == '0' else 'nothing')
serve(made)";
    let denied = format!("seccomp={errno}");
    let listen = address.to_string();
    // No listen of a worker is reported without a filter: the wait for ten seconds of life is not what is tested.
    let options = ["-w", "3", "--listen", listen.as_str(), "--throttle", "10ms", "--ready", "alive:300ms"];
    let builder = Supervisor::builder().wrap(profile::launcher(user, &[denied.as_str()])).args(options);
    let supervisor = builder.command(script(text, address)).spawn();
    let all = said(&supervisor, 3);
    assert_eq!(all, BTreeSet::from(["ready 1 ok".to_owned(), "ready 1 nothing".to_owned()]));
    let clients = Load::start(address, 6, Connections::Fresh);
    supervisor.eventually("all three answer", || clients.tally().ok.len() == 3);
    supervisor.reload(3);
    let tally = clients.stop();
    assert_eq!(tally.inexcusable(), 0, "{tally}");
    assert_eq!(supervisor.logged(&["seccomp"]).len(), 1, "{:?}", supervisor.log());
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn denied_seccomp_is_logged_and_listen_sockets_work() {
    let user = process::is_root().then(profile::ordinary_user);
    for errno in ["1", "38"] {
        without_seccomp(errno, user);
    }
}

#[test]
fn denied_seccomp_of_root_is_logged_and_listen_sockets_work() {
    needs_root!();
    without_seccomp("1", None);
}

#[test]
fn denied_io_uring_changes_nothing_else() {
    for errno in ["1", "38"] {
        let address = address::tcp();
        let denied = format!("io_uring_setup={errno}");
        let builder = Supervisor::builder().wrap(profile::launcher(None, &[denied.as_str()]));
        let options = ["-w", "2", "--throttle", "100ms"];
        let supervisor = builder.args(options).command(script(TCP, address)).spawn();
        said(&supervisor, 2);
        reloads_lose_nothing(&supervisor, address, 2);
        assert_eq!(supervisor.logged(&["epoll"]).len(), 1, "{:?}", supervisor.log());
        assert_eq!(supervisor.stop(), 0);
    }
}

#[test]
fn workers_start_without_clone3() {
    // What the engines' profile answers, so that C libraries fall back to clone(2), whose flags a filter can see.
    let address = address::tcp();
    let builder = Supervisor::builder().wrap(profile::launcher(None, &["clone3=38"]));
    let supervisor = builder.args(["-w", "2"]).command(script(TCP, address)).spawn();
    said(&supervisor, 2);
    all_answer(&supervisor, address, &supervisor.await_workers(2));
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn workers_start_without_close_range() {
    let user = process::is_root().then(profile::ordinary_user);
    // Older engines deny what their profile does not know, by one error or the other, and deny unshare(2) as well.
    for denial in ["close_range=38", "close_range=1"] {
        let denied = [CONTAINER.as_slice(), &[denial]].concat();
        let address = address::tcp();
        let builder = Supervisor::builder().wrap(profile::launcher(user, &denied));
        let options = ["-w", "2", "--throttle", "100ms", "--listen", "127.0.0.1:0"];
        let supervisor = builder.args(options).command(script(TCP, address)).spawn();
        said(&supervisor, 1);
        let workers = supervisor.await_workers(2);
        all_answer(&supervisor, address, &workers);
        for worker in &workers {
            // What it was given, and its own socket: nothing of the supervisor's.
            let open: Vec<i32> =
                process::descriptors(*worker).into_iter().map(|(number, _)| number).collect();
            assert_eq!(open[..4], [0, 1, 2, 3], "{denial}: {open:?}");
            assert!(open.len() <= 6, "{denial}: {:?}", process::descriptors(*worker));
        }
        reloads_lose_nothing(&supervisor, address, 2);
        assert!(supervisor.logged(&["seccomp"]).is_empty(), "{denial}: {:?}", supervisor.log());
        assert_eq!(supervisor.stop(), 0);
    }
}
