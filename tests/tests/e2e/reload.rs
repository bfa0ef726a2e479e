//! Crashes and reloads while clients ask, with every outcome counted.

use master_process_tests::load::{self, Connections, Load, Tally, Target};
use master_process_tests::{Supervisor, address, fixtures, process, skip};
use rustix::process::Signal;

const CLIENTS: usize = 8;
const RELOADS: u64 = 4;

/// The fixture says that it is ready just after it was: that much the end of the old one may seem too early.
const BETWEEN_BEING_AND_SAYING: f64 = 0.2;

fn four(command: Vec<String>, listen: &str) -> Supervisor {
    let builder = Supervisor::builder().args(["-w", "4", "--throttle", "100ms"]).command(command);
    builder.env("LISTEN", listen).env("WORK_MS", "1").spawn()
}

fn requests_pass(supervisor: &Supervisor, clients: &Load, count: u64) {
    let goal = clients.tally().served() + count;
    supervisor.eventually("requests are served", || clients.tally().served() >= goal);
}

/// Reloads four times under load; nothing is refused, nothing hangs. Gives the outcomes.
fn reloaded_under_load(command: Vec<String>, target: impl Into<Target>, connections: Connections) -> Tally {
    let target = target.into();
    let listen = match &target {
        Target::Tcp(address) => address.to_string(),
        Target::Unix(path) => path.to_str().expect("UTF-8").to_owned(),
    };
    let supervisor = four(command, &listen);
    supervisor.eventually("somebody answers", || load::who(target.clone()).is_some());
    supervisor.await_workers(4);
    let clients = Load::start(target, CLIENTS, connections);
    requests_pass(&supervisor, &clients, 100);
    for _ in 0..RELOADS {
        let new = supervisor.reload(4);
        requests_pass(&supervisor, &clients, 100);
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
/// before it is asked to leave.
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
        skip!("four_reloads_of_static_go_lose_no_request", "go is not installed");
    };
    nothing_is_lost(&reloaded_under_load(command, address::tcp(), Connections::Fresh));
}

#[test]
fn four_reloads_of_nginx_lose_no_request() {
    let scratch = tempfile::tempdir().expect("a temporary folder");
    let address = address::tcp();
    let name = "four_reloads_of_nginx_lose_no_request";
    let Some(command) = fixtures::nginx(scratch.path(), &address.to_string()) else {
        skip!(name, "nginx is not installed");
    };
    if !process::is_root() {
        skip!(name, "the configuration of nginx is for root");
    }
    nothing_is_lost(&reloaded_under_load(command, address, Connections::Fresh));
}

fn kill_one_under_load(command: Vec<String>, target: impl Into<Target>, listen: &str) {
    let target = target.into();
    let supervisor = four(command, listen);
    supervisor.eventually("somebody answers", || load::who(target.clone()).is_some());
    supervisor.await_workers(4);
    let clients = Load::start(target, CLIENTS, Connections::Fresh);
    for kills in 1..=3_u64 {
        requests_pass(&supervisor, &clients, 100);
        let victim = *supervisor.await_workers(4).first().expect("four");
        process::signal(victim, Signal::KILL);
        supervisor.eventually("it is replaced", || {
            let workers = supervisor.workers();
            workers.len() == 4 && !workers.contains(&victim)
        });
        requests_pass(&supervisor, &clients, 100);
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
    let old: Vec<i32> = supervisor.await_events(2, "ready").iter().map(|event| event.pid).collect();
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
    // Proof that nobody was there to take them: the first start after the deaths comes only now.
    assert_eq!(supervisor.events_named("started").len(), 2, "the throttle keeps both slots empty");
    for client in waiting {
        let answered = client.join().expect("clients do not panic").expect("served after the wait");
        assert!(!old.contains(&answered));
    }
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn with_all_workers_dead_connections_wait_and_are_served() {
    let address = address::tcp();
    connections_wait_while_no_worker_is_alive(address, &address.to_string());
}

#[test]
fn with_all_workers_dead_connections_to_a_unix_socket_wait_and_are_served() {
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
