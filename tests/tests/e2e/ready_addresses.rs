//! The addresses on which a worker must listen before it counts as ready.

use std::time::{Duration, Instant};

use master_process_tests::load::{Connections, Kept, Load, Outcome};
use master_process_tests::messages::{await_failed_reload, await_reload_complete, late, ready};
use master_process_tests::script::{script, script_with, started};
use master_process_tests::traffic::{nothing_is_lost, pass, reload_under_load};
use master_process_tests::{Supervisor, address, always, fixtures, load, process, scaled};
use rustix::process::Signal;

/// Opens a port beside its own at once, and its own after `sleep`. What it does from its first reload on is `new`.
fn side_port_first(sleep: &str, new: &str) -> String {
    format!(
        "
import threading
side = bound(HOST, PORT + 50); side.listen(64)
threading.Thread(target=serve, args=(side,), daemon=True).start()
say('side', INDEX, PID)
if RELOAD > 0:
    {new}
time.sleep({sleep})
own = bound(HOST, PORT); own.listen(64)
say('own', INDEX, PID)
serve(own)"
    )
}

/// The lines that the workers have said about this port.
fn said_of(supervisor: &Supervisor, port: &str) -> usize {
    supervisor.output().iter().filter(|line| line.starts_with(port)).count()
}

/// Longer than a reload needs that does not wait for the second port, with a throttle of 100 ms.
const LATER: &str = "2";

#[test]
fn early_side_port_does_not_make_a_worker_ready() {
    let address = address::tcp();
    let text = side_port_first("6", "pass");
    // The load itself must not hold an old worker for longer: it drains until its queue is empty, or for this time.
    let options = ["-w", "2", "--throttle", "100ms", "--kill-timeout", "500ms"];
    let supervisor = started(&options, &text, address);
    supervisor.eventually("both serve", || said_of(&supervisor, "own") == 2);
    let clients = Load::start(address, 4, Connections::Fresh);
    pass(&supervisor, &clients, 50);
    supervisor.reload(2);
    pass(&supervisor, &clients, 50);
    let tally = clients.stop();
    assert_eq!(tally.inexcusable(), 0, "{tally}");
    assert_eq!(supervisor.logged(&["no worker listens on it"]).len(), 0, "{:?}", supervisor.log());
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn the_debugger_of_node_does_not_make_a_new_worker_ready() {
    let (address, inspect) = (address::tcp(), address::tcp());
    let mut command = fixtures::node("server.js");
    command.insert(1, format!("--inspect={inspect}"));
    let builder = Supervisor::builder().args(["--throttle", "100ms"]).command(command);
    let supervisor = builder.env("LISTEN", address.to_string()).env("DELAY_LISTEN", "4000").spawn();
    supervisor.await_events(1, "ready");
    let clients = Load::start(address, 4, Connections::Fresh);
    pass(&supervisor, &clients, 50);
    supervisor.reload(1);
    pass(&supervisor, &clients, 50);
    let tally = clients.stop();
    assert_eq!(tally.inexcusable(), 0, "{tally}");
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn crash_of_a_worker_with_a_side_port_refuses_no_connection() {
    let address = address::tcp();
    let text = side_port_first(LATER, "pass");
    let supervisor = started(&["--throttle", "100ms"], &text, address);
    supervisor.eventually("it serves", || said_of(&supervisor, "own") == 1);
    let clients = Load::start(address, 4, Connections::Fresh);
    pass(&supervisor, &clients, 50);
    let victim = *supervisor.await_workers(1).first().expect("one");
    process::signal(victim, Signal::KILL);
    supervisor.eventually("another one serves", || said_of(&supervisor, "own") == 2);
    pass(&supervisor, &clients, 50);
    let tally = clients.stop();
    assert_eq!(tally.inexcusable(), 0, "{tally}");
    assert_eq!(supervisor.stop(), 0);
}

/// The seconds after which each worker listened, from the log.
fn listened_after(supervisor: &Supervisor) -> Vec<f64> {
    let seconds = |line: &String| {
        let after = line.split("ready after ").nth(1).and_then(|rest| rest.split(':').next())?;
        match after.strip_suffix("ms") {
            Some(milliseconds) => milliseconds.parse::<f64>().map(|milliseconds| milliseconds / 1000.0).ok(),
            None => after.strip_suffix('s')?.parse().ok(),
        }
    };
    supervisor.logged(&["ready after", "listening"]).iter().filter_map(seconds).collect()
}

#[test]
fn successor_of_a_worker_with_a_remaining_child_waits_for_every_address() {
    let address = address::tcp();
    let child = "
if os.fork() == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1000)";
    let text = format!("{child}{}", side_port_first(LATER, "pass"));
    let supervisor = started(&["--throttle", "100ms"], &text, address);
    supervisor.eventually("it serves", || said_of(&supervisor, "own") == 1);
    let victim = *supervisor.await_workers(1).first().expect("one");
    process::signal(victim, Signal::KILL);
    let after = supervisor.until("its successor is ready", || {
        Some(listened_after(&supervisor)).filter(|after| after.len() == 2)
    });
    assert_eq!(supervisor.logged(&["left 1 process behind"]).len(), 1, "{:?}", supervisor.log());
    let needed: f64 = LATER.parse().expect("seconds");
    assert!(after[1] >= needed, "ready with its side port alone: {after:?}");
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn reload_without_a_needed_address_fails_and_names_it() {
    let address = address::tcp();
    let text = side_port_first("0", "signal.pause()");
    let timeout = format!("{}ms", scaled(Duration::from_secs(2)).as_millis());
    let options = ["-w", "2", "--ready-timeout", &timeout, "--reload-attempts", "1", "--throttle", "100ms"];
    let supervisor = started(&options, &text, address);
    supervisor.eventually("both serve", || said_of(&supervisor, "own") == 2);
    let old = supervisor.await_workers(2);
    let clients = Load::start(address, 4, Connections::Fresh);
    pass(&supervisor, &clients, 50);
    supervisor.signal(Signal::HUP);
    await_failed_reload(&supervisor);
    let why = format!("listen on {address}, which the old worker serves");
    let told = supervisor.logged(&[
        "reload 1 failed: ",
        &why,
        "2 old workers keep serving",
        "ready=1",
        "--ready listen:addr",
    ]);
    assert_eq!(told.len(), 1, "{:?}", supervisor.log());
    supervisor.eventually("so does the line of the worker", || {
        !supervisor.logged(&["was not ready within", &why]).is_empty()
    });
    supervisor.eventually("the new ones are gone", || supervisor.workers() == old);
    pass(&supervisor, &clients, 50);
    nothing_is_lost(clients);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn reload_that_waits_for_an_address_logs_it() {
    let address = address::tcp();
    let text = side_port_first("0", "time.sleep(11)");
    let supervisor = started(&["--throttle", "100ms"], &text, address);
    supervisor.eventually("it serves", || said_of(&supervisor, "own") == 1);
    supervisor.signal(Signal::HUP);
    let missing = format!("it does not listen on {address}, which the old worker serves");
    let told = || supervisor.logged(&["is not ready after", &missing, "waiting for it"]).len();
    supervisor.eventually("one line says what the reload waits for", || told() == 1);
    await_reload_complete(&supervisor, 1);
    assert_eq!(told(), 1);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn notification_makes_a_release_without_an_old_address_ready() {
    let address = address::tcp();
    let text = side_port_first("0", "notify(); signal.pause()");
    let supervisor = started(&["--throttle", "100ms"], &text, address);
    supervisor.eventually("it serves", || said_of(&supervisor, "own") == 1);
    for _ in 0..2 {
        supervisor.reload(1);
    }
    assert_eq!(supervisor.logged(&["complete after"]).len(), 2, "{:?}", supervisor.log());
    supervisor.eventually("the address is closed", || load::get(address, "/") == Outcome::Refused);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn dropped_address_stays_open_during_probation_after_the_old_worker_crashes() {
    let address = address::tcp();
    let text = side_port_first("0", "notify(); signal.pause()");
    let supervisor = started(&["--throttle", "5s", "--throttle-max", "5s"], &text, address);
    supervisor.eventually("it serves", || said_of(&supervisor, "own") == 1);
    let old = *supervisor.await_workers(1).first().expect("one");
    let begun = Instant::now();
    supervisor.signal(Signal::HUP);
    supervisor.eventually("the new one is ready", || !supervisor.logged(&[": notified"]).is_empty());
    process::signal(old, Signal::KILL);
    supervisor.eventually("the old one is gone", || !process::alive(old));
    // No worker accepts them, and the queue is bounded: a connection for each fifth of a second.
    let mut opened = 0;
    always(Duration::from_secs(4).saturating_sub(begun.elapsed()), "connections are queued", || {
        let is_due = begun.elapsed().as_millis() / 200 > opened;
        if is_due {
            opened = begun.elapsed().as_millis() / 200;
        }
        !is_due || Kept::open(address).is_ok()
    });
    supervisor.eventually("the address is closed", || load::get(address, "/") == Outcome::Refused);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn address_closed_by_the_old_worker_is_not_required() {
    let address = address::tcp();
    let text = "
if RELOAD == 0:
    closing = bound(HOST, PORT + 50); closing.listen(64)
own = bound(HOST, PORT); own.listen(64)
if RELOAD == 0:
    closing.close()
say('own', INDEX, PID)
serve(own)";
    let supervisor = started(&["--throttle", "100ms"], text, address);
    supervisor.eventually("it serves", || said_of(&supervisor, "own") == 1);
    reload_under_load(&supervisor, address, 1, 1);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn unix_path_with_a_pid_is_not_required() {
    let address = address::tcp();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let text = "
diagnostics = socket.socket(socket.AF_UNIX)
diagnostics.bind(f'{sys.argv[2]}/diagnostics-{PID}'); diagnostics.listen(8)
time.sleep(1.5)
own = bound(HOST, PORT); own.listen(64)
say('own', INDEX, PID)
serve(own)";
    let command = script_with(text, address, [&folder.path()]);
    let options = ["--throttle", "100ms", "--kill-timeout", "500ms"];
    let supervisor = Supervisor::start(&options, command);
    supervisor.eventually("it serves", || said_of(&supervisor, "own") == 1);
    let clients = Load::start(address, 4, Connections::Fresh);
    for _ in 0..2 {
        pass(&supervisor, &clients, 50);
        supervisor.reload(1);
    }
    let tally = clients.stop();
    assert_eq!(tally.inexcusable(), 0, "{tally}");
    assert_eq!(supervisor.stop(), 0);
}

/// Its first worker starts a daemon in a session of its own, as Erlang does with epmd; the next ones find it.
pub(crate) const STARTS_A_DAEMON: &str = "
def answers():
    try:
        socket.create_connection((HOST, PORT + 50)).close()
        return True
    except OSError:
        return False
if not answers():
    if os.fork() == 0:
        os.setsid()
        if os.fork() != 0: os._exit(0)
        daemon = bound(HOST, PORT + 50); daemon.listen(8)
        say('daemon', os.getpid())
        serve(daemon)
    os.wait()
    while not answers(): time.sleep(0.01)
own = bound(HOST, PORT); own.listen(64)
say('own', INDEX, PID)
serve(own)";

#[test]
fn address_of_a_daemon_is_not_required() {
    let address = address::tcp();
    let supervisor = started(&["--throttle", "100ms"], STARTS_A_DAEMON, address);
    supervisor.eventually("it serves", || said_of(&supervisor, "own") == 1);
    let clients = Load::start(address, 4, Connections::Fresh);
    pass(&supervisor, &clients, 50);
    supervisor.signal(Signal::HUP);
    await_reload_complete(&supervisor, 1);
    nothing_is_lost(clients);
    assert_eq!(said_of(&supervisor, "daemon"), 1, "the second worker found it");
    supervisor.eventually("it ends with the worker that started it", || {
        supervisor.logged(&["worker 0 left 1 process behind", "python3"]).len() == 1
    });
    assert_eq!(supervisor.stop(), 0);
}

/// In mode `listen:ADDR` a worker is ready when it listens there, and not before.
fn is_ready_where_it_is_named(options: &[&str], named: &str, text: &str, argument: Option<&str>) {
    let address = address::tcp();
    let named = named.replace("PORT", &address.port().to_string()).replace("IP", &address.ip().to_string());
    let mode = format!("listen:{named}");
    let mut command = script(text, address);
    command.extend(argument.map(str::to_owned));
    let args = [&["--ready", &mode, "--ready-timeout", "1s"], options].concat();
    let supervisor = Supervisor::start(&args, command);
    supervisor.eventually("it listens beside, and one line warns", || {
        said_of(&supervisor, "side") == 1 && late(&supervisor).len() == 1
    });
    assert_eq!(supervisor.logged(&["it does not listen on", "which --ready names"]).len(), 1, "{mode}");
    supervisor.eventually("it is ready", || ready(&supervisor).len() == 1);
    // Its own line comes by another way than ours.
    supervisor.eventually("it listens where it is named", || said_of(&supervisor, "own") == 1);
    let log = supervisor.log();
    let at = |words: &str| log.iter().position(|line| line.contains(words));
    assert!(at("is not ready after") < at(": listening"), "{mode}: {log:?}");
    assert_eq!(supervisor.stop(), 0);
}

/// Listens beside at once, and after two seconds as `own` does.
fn beside_and(own: &str) -> String {
    format!(
        "
side = bound(HOST, PORT + 50); side.listen(8)
say('side', INDEX, PID)
time.sleep(2)
{own}
own.listen(8)
say('own', INDEX, PID)
while True: signal.pause()"
    )
}

/// The same for each kind of address.
fn is_ready_wherever_it_is_named(share: &str) {
    let tcp = beside_and("own = bound(HOST, PORT)");
    let wildcard = beside_and("own = bound('0.0.0.0', PORT)");
    let path = beside_and("own = socket.socket(socket.AF_UNIX); own.bind(sys.argv[2])");
    let relative = beside_and(
        "os.chdir(os.path.dirname(sys.argv[2])); own = socket.socket(socket.AF_UNIX); own.bind('./app.sock')",
    );
    let name = beside_and("own = socket.socket(socket.AF_UNIX); own.bind('\\0' + sys.argv[2])");
    let options = ["--share", share];
    is_ready_where_it_is_named(&options, "PORT", &tcp, None);
    is_ready_where_it_is_named(&options, "IP:PORT", &wildcard, None);
    let (_folder, file) = address::unix();
    let file = file.to_str().expect("UTF-8");
    is_ready_where_it_is_named(&options, &format!("unix:{file}"), &path, Some(file));
    let (_folder, file) = address::unix();
    let file = file.to_str().expect("UTF-8");
    is_ready_where_it_is_named(&options, file, &relative, Some(file));
    is_ready_where_it_is_named(&options, &format!("@{file}"), &name, Some(file));
}

#[test]
fn in_mode_listen_a_worker_is_ready_at_the_address_that_is_named() {
    is_ready_wherever_it_is_named("slots");
}

#[test]
fn in_mode_listen_a_worker_is_ready_at_the_named_address_that_all_workers_share() {
    is_ready_wherever_it_is_named("shared");
}

#[test]
fn in_mode_listen_a_worker_is_ready_at_the_named_address_without_sharing_too() {
    is_ready_wherever_it_is_named("off");
}

#[test]
fn in_mode_listen_a_release_may_drop_other_addresses() {
    let address = address::tcp();
    let text = "
if RELOAD == 0:
    side = bound(HOST, PORT + 50); side.listen(8)
own = bound(HOST, PORT); own.listen(64)
say('own', INDEX, PID)
serve(own)";
    let mode = format!("listen:{}", address.port());
    let supervisor = started(&["--ready", &mode, "--throttle", "100ms"], text, address);
    supervisor.eventually("it serves", || said_of(&supervisor, "own") == 1);
    reload_under_load(&supervisor, address, 1, 1);
    assert_eq!(supervisor.stop(), 0);
}
