//! What becomes of the workers when the supervisor itself is killed.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use master_process_tests::load::{self, Connections, Load, Outcome, Tally};
use master_process_tests::process::{self, Stat};
use master_process_tests::supervisor::await_gone;
use master_process_tests::{Supervisor, TIMEOUT, address, always, eventually, fixtures, skip};
use rustix::process::Signal;

/// Enough to have requests at every worker at the moment of the kill.
const CLIENTS: usize = 16;

/// How many requests each worker answers before and after it.
const EACH: u64 = 50;

/// Ends what no supervisor ends any more.
fn end(workers: &[Stat]) {
    workers.iter().copied().for_each(process::kill_exactly);
    workers.iter().for_each(|worker| await_gone(worker.pid));
}

/// What is known of the workers that run now.
fn look(workers: &BTreeSet<i32>) -> Vec<Stat> {
    workers.iter().map(|pid| process::stat(*pid).expect("it runs")).collect()
}

/// Waits until each of the workers has answered this many times more.
fn each_answers(clients: &Load, workers: &[Stat]) {
    let count = |tally: &Tally, worker: &Stat| tally.ok.get(&worker.pid.to_string()).copied().unwrap_or(0);
    let before = clients.tally();
    eventually(TIMEOUT, "each worker answers", || {
        let now = clients.tally();
        workers.iter().all(|worker| count(&now, worker) >= count(&before, worker) + EACH)
    });
}

/// SIGKILL; what is left is not our child.
fn kill(supervisor: &Supervisor) {
    supervisor.signal(Signal::KILL);
    eventually(TIMEOUT, "the supervisor is gone", || supervisor.exited().is_some());
}

/// Kills the supervisor of four workers under load, after this many reloads.
fn workers_serve_on(command: Vec<String>, reloads: usize) {
    let address = address::tcp();
    let builder = Supervisor::builder().args(["-w", "4", "--orphans", "keep"]).command(command);
    let supervisor = builder.env("LISTEN", address.to_string()).spawn();
    supervisor.eventually("all four listen", || supervisor.logged(&[": listening"]).len() >= 4);
    for _ in 0..reloads {
        supervisor.reload(4);
    }
    // A socket that no worker has would close with the supervisor, and with it whoever the kernel sends there then.
    let SocketAddr::V4(v4) = address else { unreachable!("the tests' addresses are IPv4") };
    supervisor.eventually("each socket is a worker's", || process::listening(v4) == 4);
    let workers = look(&supervisor.await_workers(4));
    let clients = Load::start(address, CLIENTS, Connections::Fresh);
    each_answers(&clients, &workers);
    kill(&supervisor);
    each_answers(&clients, &workers);
    let tally = clients.stop();
    assert_eq!(tally.lost() + tally.inexcusable(), 0, "{tally}");
    assert_eq!(tally.ok.len(), 4, "the same four all the time: {tally}");
    let now = look(&workers.iter().map(|worker| worker.pid).collect());
    assert!(now.iter().zip(&workers).all(|(now, then)| now.started == then.started), "{now:?}");
    end(&workers);
    // A process counts as gone while threads of it still close what it had.
    eventually(TIMEOUT, "nobody else holds the address", || load::get(address, "/") == Outcome::Refused);
}

#[test]
fn kept_node_servers_lose_no_request() {
    workers_serve_on(fixtures::node("plain.js"), 0);
}

#[test]
fn kept_python_servers_lose_no_request() {
    workers_serve_on(fixtures::python_http(), 0);
}

#[test]
fn kept_go_servers_lose_no_request() {
    let Some(command) = fixtures::go_server() else {
        skip!("go is not installed");
    };
    workers_serve_on(command, 0);
}

/// What an earlier generation listened on is not there any more: with it gone, the kernel counts the sockets anew.
#[test]
fn kept_workers_lose_no_request_after_reloads() {
    let Some(command) = fixtures::go_server() else {
        skip!("go is not installed");
    };
    workers_serve_on(command, 1);
}

#[test]
fn flag_and_variable_decide_whether_workers_are_kept() {
    const VARIABLE: &str = "MASTER_PROCESS_ORPHANS";
    let builders = [
        (Supervisor::builder(), false),
        (Supervisor::builder().args(["--orphans", "kill"]), false),
        (Supervisor::builder().env(VARIABLE, ""), false),
        (Supervisor::builder().env(VARIABLE, "keep").args(["--orphans", "kill"]), false),
        (Supervisor::builder().env(VARIABLE, "keep"), true),
    ];
    for (builder, kept) in builders {
        let what = format!("{builder:?}");
        let address = address::tcp();
        let command = fixtures::listening(address, &["term=ignore"]);
        let supervisor = builder.args(["-w", "2"]).command(command).spawn();
        supervisor.await_events(2, "ready");
        let workers = look(&supervisor.await_workers(2));
        kill(&supervisor);
        if kept {
            always(Duration::from_millis(500), &what, || {
                workers.iter().all(|worker| process::alive(worker.pid))
            });
            assert!(load::who(address).is_some(), "{what}");
            end(&workers);
        } else {
            let gone = || workers.iter().all(|worker| !process::alive(worker.pid));
            eventually(Duration::from_secs(5), &what, gone);
        }
    }
}
