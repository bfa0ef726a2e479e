//! Crashes and reloads under load, with every outcome counted.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use master_process_tests::load::{self, Connections, Load, Tally, Target};
use master_process_tests::messages::await_failed_reload;
use master_process_tests::traffic::pass;
use master_process_tests::{Supervisor, address, fixtures, needs_root, offset, process, skip};
use rustix::process::Signal;

const CLIENTS: usize = 8;
const RELOADS: u64 = 4;

/// The fixture prints that it is ready just after it was: the end of the old worker may seem too early by this.
const BETWEEN_BEING_AND_SAYING: f64 = 0.2;

fn four(command: Vec<String>, listen: &str) -> Supervisor {
    // A busy machine may need longer than the default to answer what a worker has accepted.
    let args = ["-w", "4", "--throttle", "100ms", "--drain", "1s"];
    let builder = Supervisor::builder().args(args).command(command);
    builder.env("LISTEN", listen).env("WORK_MS", "1").spawn()
}

/// Reloads four times under load; nothing is refused, nothing hangs. Gives the outcomes.
fn reloaded_under_load(command: Vec<String>, target: impl Into<Target>, connections: Connections) -> Tally {
    let target = target.into();
    let listen = match &target {
        Target::Tcp(address) => address.to_string(),
        Target::Unix(path) => path.to_str().expect("UTF-8").to_owned(),
    };
    let supervisor = four(command, &listen);
    supervisor.eventually("a worker answers", || load::who(target.clone()).is_some());
    supervisor.await_workers(4);
    let clients = Load::start(target, CLIENTS, connections);
    pass(&supervisor, &clients, 100);
    for _ in 0..RELOADS {
        let new = supervisor.reload(4);
        pass(&supervisor, &clients, 100);
        assert_eq!(supervisor.workers(), new);
    }
    let tally = clients.stop();
    println!("{RELOADS} reloads: {tally}");
    assert_eq!(tally.inexcusable(), 0, "refused, timed out or worse: {tally}");
    assert_eq!(supervisor.stop(), 0);
    tally
}

#[test]
fn four_reloads_of_a_graceful_node_fail_no_request() {
    let tally = reloaded_under_load(fixtures::node("graceful.js"), address::tcp(), Connections::Fresh);
    assert_eq!(tally.lost(), 0, "{tally}");
}

#[test]
fn four_reloads_of_a_graceful_node_on_a_unix_socket_fail_no_request() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("app.sock");
    let tally = reloaded_under_load(fixtures::node("graceful.js"), path.as_path(), Connections::Fresh);
    assert_eq!(tally.lost(), 0, "{tally}");
}

#[test]
fn four_reloads_of_a_graceful_node_lose_no_keep_alive_request_in_flight() {
    let tally = reloaded_under_load(fixtures::node("graceful.js"), address::tcp(), Connections::KeepAlive);
    assert_eq!(tally.lost(), 0, "{tally}");
}

/// A program without a handler dies with what it has accepted: so its queue is empty, and it had time to answer,
/// before its stop signal.
fn nothing_is_lost(tally: &Tally) {
    assert_eq!(tally.lost() + tally.inexcusable(), 0, "{tally}");
}

#[test]
fn four_reloads_of_node_without_a_handler_lose_no_request() {
    let tally = reloaded_under_load(fixtures::node("plain.js"), address::tcp(), Connections::Fresh);
    nothing_is_lost(&tally);
}

#[test]
fn four_reloads_of_node_without_a_handler_on_a_unix_socket_lose_no_request() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("app.sock");
    let tally = reloaded_under_load(fixtures::node("plain.js"), path.as_path(), Connections::Fresh);
    nothing_is_lost(&tally);
}

#[test]
fn four_reloads_of_python_lose_no_request() {
    let tally = reloaded_under_load(fixtures::python_http(), address::tcp(), Connections::Fresh);
    nothing_is_lost(&tally);
}

#[test]
fn four_reloads_of_static_go_lose_no_request() {
    let Some(command) = fixtures::go_server() else {
        skip!("go is not installed");
    };
    nothing_is_lost(&reloaded_under_load(command, address::tcp(), Connections::Fresh));
}

#[test]
fn four_reloads_of_nginx_lose_no_request() {
    let scratch = tempfile::tempdir().expect("a temporary folder");
    let address = address::tcp();
    let Some(command) = fixtures::nginx(scratch.path(), &address.to_string()) else {
        skip!("nginx is not installed");
    };
    needs_root!();
    nothing_is_lost(&reloaded_under_load(command, address, Connections::Fresh));
}

fn kill_one_under_load(command: Vec<String>, target: impl Into<Target>, listen: &str) {
    let target = target.into();
    let supervisor = four(command, listen);
    supervisor.eventually("a worker answers", || load::who(target.clone()).is_some());
    supervisor.await_workers(4);
    let clients = Load::start(target, CLIENTS, Connections::Fresh);
    for kills in 1..=3_u64 {
        pass(&supervisor, &clients, 100);
        let victim = *supervisor.await_workers(4).first().expect("four");
        process::signal(victim, Signal::KILL);
        supervisor.eventually("it is replaced", || {
            let workers = supervisor.workers();
            workers.len() == 4 && !workers.contains(&victim)
        });
        pass(&supervisor, &clients, 100);
        let tally = clients.tally();
        assert_eq!(tally.inexcusable(), 0, "{tally}");
        let in_flight = u64::try_from(CLIENTS).expect("few") * kills;
        assert!(tally.lost() <= in_flight, "more than what {kills} workers had in flight: {tally}");
    }
    println!("3 kills: {}", clients.stop());
}

#[test]
fn kill_9_of_a_worker_loses_only_what_it_had_in_flight() {
    let address = address::tcp();
    kill_one_under_load(fixtures::node("plain.js"), address, &address.to_string());
}

#[test]
fn kill_9_of_a_worker_on_a_unix_socket_loses_only_what_it_had_in_flight() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("app.sock");
    kill_one_under_load(fixtures::node("plain.js"), path.as_path(), path.to_str().expect("UTF-8"));
}

/// Kills all workers; while none is there, connections must wait, and be served by the next.
fn connections_wait_while_no_worker_is_alive(target: impl Into<Target>, listen: &str) {
    let target = target.into();
    let listen = format!("listen={listen}");
    let options = ["-w", "2", "--throttle", "3s", "--throttle-max", "3s"];
    let supervisor = Supervisor::start(&options, fixtures::worker(&[&listen]));
    let old = supervisor.await_ready(2);
    for pid in &old {
        process::signal(*pid, Signal::KILL);
    }
    supervisor.eventually("both are dead", || old.iter().all(|pid| !process::alive(*pid)));
    let waiting: Vec<_> = (0..10)
        .map(|_| {
            let target = target.clone();
            std::thread::spawn(move || load::who(target))
        })
        .collect();
    // Proof that no worker was there to accept them: the first start after the deaths comes only now.
    assert_eq!(supervisor.events_named("started").len(), 2, "the throttle keeps both slots empty");
    for client in waiting {
        let answered = client.join().expect("clients do not panic").expect("served after the wait");
        assert!(!old.contains(&answered));
    }
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn connections_are_queued_while_all_workers_are_dead() {
    let address = address::tcp();
    connections_wait_while_no_worker_is_alive(address, &address.to_string());
}

#[test]
fn unix_connections_are_queued_while_all_workers_are_dead() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("app.sock");
    connections_wait_while_no_worker_is_alive(path.as_path(), path.to_str().expect("UTF-8"));
}

#[test]
fn an_old_worker_stays_until_its_successor_listens() {
    let address = address::tcp();
    let listen = format!("listen={address}");
    let words = [&listen, "from=1:delay=0.7", "term=clean:0.3:0"];
    let supervisor = Supervisor::start(&["-w", "2"], fixtures::worker(&words));
    supervisor.await_events(2, "ready");
    let clients = Load::start(address, 4, Connections::Fresh);
    supervisor.reload(2);
    let tally = clients.stop();
    assert_eq!(tally.inexcusable() + tally.lost(), 0, "{tally}");
    for old in supervisor.events_named("term") {
        let successor = supervisor.await_event("its successor was ready", |event| {
            event.name == "ready" && event.index == old.index && event.reload == 1
        });
        assert!(successor.at <= old.at + BETWEEN_BEING_AND_SAYING, "{successor:?} {old:?}");
    }
}

/// What an interrupted or failed reload must not disturb: two old workers under load. The new release is told what to do
/// by `bad`, for as long as the file `broken` is there.
struct Release {
    _folder: tempfile::TempDir,
    broken: PathBuf,
    supervisor: Supervisor,
    old: BTreeSet<i32>,
    clients: Load,
    address: SocketAddr,
}

impl Release {
    fn start(bad: &str, more: &[&str]) -> Release {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let broken = folder.path().join("broken");
        let address = address::tcp();
        let (listen, bad) = (format!("listen={address}"), format!("from=1:if={}:{bad}", broken.display()));
        let options = ["-w", "2", "--reload-attempts", "2", "--drain", "50ms"];
        let builder = Supervisor::builder().args(options).args(more);
        let supervisor = builder.command(fixtures::worker(&[&listen, &bad])).spawn();
        let old = supervisor.await_ready(2);
        let clients = Load::start(address, CLIENTS, Connections::Fresh);
        pass(&supervisor, &clients, 100);
        fs::write(&broken, "").expect("the folder is ours");
        Release { _folder: folder, broken, supervisor, old, clients, address }
    }

    fn failures(&self) -> Vec<String> {
        self.supervisor.logged(&["reload", "failed: "])
    }

    /// The reload fails, and everything is as it was before it.
    fn fails(&self, why: &[&str]) {
        self.supervisor.eventually("the reload fails", || !self.failures().is_empty());
        self.supervisor.eventually("the old ones are alone", || self.supervisor.workers() == self.old);
        pass(&self.supervisor, &self.clients, 100);
        assert_eq!(self.failures().len(), 1, "logged once");
        assert!(!self.supervisor.logged(why).is_empty(), "the reason {why:?} is logged");
        assert!(self.supervisor.events_named("term").iter().all(|event| !self.old.contains(&event.pid)));
        for _ in 0..10 {
            let answered = load::who(self.address);
            assert!(answered.is_some_and(|pid| self.old.contains(&pid)), "{answered:?} answers");
        }
    }

    /// The fixed release is loaded as if nothing had been; gives all outcomes.
    fn then_a_fixed_one_works(self) -> Tally {
        fs::remove_file(&self.broken).expect("it is there");
        let new = self.supervisor.reload(2);
        pass(&self.supervisor, &self.clients, 100);
        assert!(load::who(self.address).is_some_and(|pid| new.contains(&pid)));
        assert_eq!(self.failures().len(), 1);
        let tally = self.clients.stop();
        println!("{tally}");
        assert_eq!(tally.inexcusable(), 0, "{tally}");
        assert_eq!(self.supervisor.stop(), 0);
        tally
    }
}

#[test]
fn release_that_crashes_at_start_loses_no_request() {
    let release = Release::start("exit=3", &["--throttle", "50ms", "--throttle-max", "50ms"]);
    release.supervisor.signal(Signal::HUP);
    release.fails(&["exited with code 3"]);
    nothing_is_lost(&release.then_a_fixed_one_works());
}

#[test]
fn release_that_never_becomes_ready_loses_no_request() {
    let options = ["--throttle", "50ms", "--throttle-max", "50ms", "--ready-timeout", "700ms"];
    let release = Release::start("delay=3600", &options);
    release.supervisor.signal(Signal::HUP);
    release.fails(&["was not ready within"]);
    nothing_is_lost(&release.then_a_fixed_one_works());
}

#[test]
fn release_that_dies_in_probation_loses_only_accepted_requests() {
    let options = ["--throttle", "1200ms", "--throttle-max", "1200ms"];
    let release = Release::start("die=0.2", &options);
    release.supervisor.signal(Signal::HUP);
    release.fails(&["exited with code 1"]);
    let deaths = release.supervisor.events_named("ready").iter().filter(|event| event.reload == 1).count();
    assert!((2..=4).contains(&deaths), "{deaths} new workers were ready and died");
    let tally = release.then_a_fixed_one_works();
    let in_flight = u64::try_from(deaths * CLIENTS).expect("few");
    assert!(tally.lost() <= in_flight, "more than what {deaths} workers had in flight: {tally}");
}

#[test]
fn failed_slot_of_a_release_keeps_its_old_worker() {
    let address = address::tcp();
    let listen = format!("listen={address}");
    let options = ["-w", "2", "--reload-attempts", "2", "--throttle", "1s", "--throttle-max", "1s"];
    let words = [listen.as_str(), "from=1:index=1:die=0.2"];
    let supervisor = Supervisor::start(&options, fixtures::worker(&words));
    let old = supervisor.await_events(2, "ready");
    let clients = Load::start(address, CLIENTS, Connections::Fresh);
    supervisor.signal(Signal::HUP);
    await_failed_reload(&supervisor);
    let unlucky = old.iter().find(|event| event.index == 1).expect("two slots").pid;
    assert!(process::alive(unlucky), "the old worker of the slot stood by");
    supervisor.eventually("two workers, it among them", || {
        let workers = supervisor.workers();
        workers.len() == 2 && workers.contains(&unlucky)
    });
    pass(&supervisor, &clients, 100);
    let tally = clients.stop();
    assert_eq!(tally.inexcusable(), 0, "{tally}");
    assert!(tally.lost() <= u64::try_from(2 * CLIENTS).expect("few"), "{tally}");
    assert!(supervisor.events_named("term").iter().all(|event| event.pid != unlucky));
}

#[test]
fn hup_during_a_reload_loses_no_request() {
    // In each stage: while the new ones start, just after they are ready, and while the old ones drain.
    for pause in [0, 100, 250, 400, 700] {
        let address = address::tcp();
        let listen = format!("listen={address}");
        let options = ["-w", "2", "--throttle", "200ms", "--drain", "200ms"];
        let words = [listen.as_str(), "from=1:delay=0.2", "term=default"];
        let supervisor = Supervisor::start(&options, fixtures::worker(&words));
        let mut seen: BTreeSet<i32> = supervisor.await_ready(2);
        let clients = Load::start(address, CLIENTS, Connections::Fresh);
        pass(&supervisor, &clients, 50);
        for reload in 1..=3 {
            supervisor.signal(Signal::HUP);
            // Signals that come together are one.
            let begins = format!("reload {reload}: replacing");
            supervisor.eventually("it begins", || !supervisor.logged(&[&begins]).is_empty());
            offset(Duration::from_millis(pause));
        }
        supervisor.eventually("the last generation is alone", || {
            let workers = supervisor.workers();
            seen.extend(supervisor.events().iter().filter(|event| event.reload < 3).map(|event| event.pid));
            let newest = supervisor.events_named("ready").iter().filter(|event| event.reload == 3).count();
            newest == 2 && workers.len() == 2 && workers.is_disjoint(&seen)
        });
        pass(&supervisor, &clients, 50);
        let tally = clients.stop();
        println!("{pause} ms: {tally}");
        nothing_is_lost(&tally);
        assert_eq!(supervisor.stop(), 0);
    }
}

#[test]
fn term_during_a_reload_stops_each_worker_once() {
    for pause in [0, 50, 150, 300, 500] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("app.sock");
        let options = ["-w", "3", "--throttle", "200ms", "--drain", "200ms"];
        let supervisor = Supervisor::start(
            &options,
            fixtures::listening(path.display(), &["from=1:delay=0.1", "term=clean:0.1:0"]),
        );
        supervisor.await_events(3, "ready");
        supervisor.signal(Signal::HUP);
        offset(Duration::from_millis(pause));
        assert_eq!(supervisor.stop(), 0);
        let ready: BTreeSet<i32> = supervisor.events_named("ready").iter().map(|event| event.pid).collect();
        let cleaned: BTreeSet<i32> =
            supervisor.events_named("clean_up").iter().map(|event| event.pid).collect();
        assert!(ready.is_subset(&cleaned), "a ready worker was cut short: {ready:?}, {cleaned:?}");
        let asked = supervisor.events_named("term");
        let each: BTreeSet<i32> = asked.iter().map(|event| event.pid).collect();
        assert_eq!(asked.len(), each.len(), "each gets the signal once");
        assert_eq!(fs::read_dir(folder.path()).expect("there").count(), 0, "nothing is left in the folder");
    }
}

#[test]
fn crash_of_an_old_worker_during_a_reload_refuses_no_connection() {
    let options = ["--throttle", "100ms", "--throttle-max", "100ms"];
    let (supervisor, address, old) = fixtures::listening_workers(2, &options, &["from=1:delay=0.5"]);
    let clients = Load::start(address, CLIENTS, Connections::Fresh);
    pass(&supervisor, &clients, 50);
    supervisor.signal(Signal::HUP);
    supervisor.eventually("both new ones start", || supervisor.workers().len() == 4);
    old.iter().for_each(|event| process::signal(event.pid, Signal::KILL));
    supervisor.eventually("the new ones are alone and ready", || {
        supervisor.workers().len() == 2 && supervisor.events_named("ready").len() == 4
    });
    pass(&supervisor, &clients, 50);
    let tally = clients.stop();
    assert_eq!(tally.inexcusable(), 0, "the queued clients were served: {tally}");
    assert!(tally.lost() <= u64::try_from(CLIENTS).expect("few"), "{tally}");
    assert_eq!(supervisor.stop(), 0);
}
