//! Programs that know nothing of us, four of each on one address.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;

use master_process_tests::load::{self, Connections, Load, Outcome};
use master_process_tests::supervisor::await_gone;
use master_process_tests::{Supervisor, TIMEOUT, address, eventually, fixtures, process, skip};
use rustix::process::Signal;

/// Enough clients to keep four workers busy at a time: with one queue for all, an idle worker may take everything.
const CLIENTS: usize = 16;

/// How long a worker is busy with a request, so that the others get a chance at the queue.
const WORK_MS: &str = "3";

fn four(command: Vec<String>, listen: &str) -> Supervisor {
    let builder = Supervisor::builder().args(["-w", "4"]).command(command);
    builder.env("LISTEN", listen).env("WORK_MS", WORK_MS).spawn()
}

/// Sends requests until each of `expected` has answered, and gives all that did.
fn everyone_answers(
    supervisor: &Supervisor,
    target: impl Into<load::Target>,
    expected: usize,
) -> BTreeSet<i32> {
    let target = target.into();
    supervisor.eventually("a worker answers", || load::who(target.clone()).is_some());
    let clients = Load::start(target, CLIENTS, Connections::Fresh);
    supervisor.eventually(&format!("all {expected} workers answer"), || clients.tally().ok.len() >= expected);
    let tally = clients.stop();
    assert_eq!(tally.inexcusable() + tally.lost(), 0, "{tally}");
    tally.pids().into_iter().collect()
}

fn four_workers_answer_on_one_address(command: Vec<String>) {
    let address = address::tcp();
    let supervisor = four(command, &address.to_string());
    let answered = everyone_answers(&supervisor, address, 4);
    assert_eq!(answered, supervisor.workers(), "the workers answer");
    assert_eq!(supervisor.stop(), 0);
    assert_eq!(load::get(address, "/"), Outcome::Refused, "the address is free");
}

#[test]
fn four_node_servers_without_a_signal_handler_answer_on_one_address() {
    four_workers_answer_on_one_address(fixtures::node("plain.js"));
}

#[test]
fn four_graceful_node_servers_answer_on_one_address() {
    four_workers_answer_on_one_address(fixtures::node("graceful.js"));
}

#[test]
fn four_python_http_servers_answer_on_one_address() {
    four_workers_answer_on_one_address(fixtures::python_http());
}

#[test]
fn four_static_go_servers_answer_on_one_address() {
    let Some(command) = fixtures::go_server() else {
        skip!("go is not installed");
    };
    let address = address::tcp();
    let supervisor = four(command, &address.to_string());
    let answered = everyone_answers(&supervisor, address, 4);
    assert_eq!(answered, supervisor.workers());
    for pid in answered {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("the worker runs");
        assert!(!maps.contains(".so"), "not a static program:\n{maps}");
    }
    assert_eq!(supervisor.stop(), 0);
}

fn nginx_four(name: &str, scratch: &Path, address: SocketAddr) -> Option<Supervisor> {
    if !process::is_root() {
        println!("{name}: the configuration of nginx is for root");
        return None;
    }
    Some(four(fixtures::nginx(scratch, &address.to_string())?, ""))
}

#[test]
fn four_nginx_answer_on_one_address() {
    let scratch = tempfile::tempdir().expect("a temporary folder");
    let address = address::tcp();
    let Some(supervisor) = nginx_four("four_nginx", scratch.path(), address) else {
        skip!("nginx is not installed, or this is not root");
    };
    // nginx answers from a child of the process that is supervised.
    let answered = everyone_answers(&supervisor, address, 4);
    let parents: BTreeSet<i32> =
        answered.iter().filter_map(|pid| process::stat(*pid)).map(|stat| stat.ppid).collect();
    assert_eq!(parents, supervisor.workers());
    assert_eq!(supervisor.stop(), 0);
    answered.into_iter().for_each(await_gone);
}

#[test]
fn child_of_a_killed_nginx_ends_with_it() {
    let scratch = tempfile::tempdir().expect("a temporary folder");
    let address = address::tcp();
    let Some(supervisor) = nginx_four("killed_nginx", scratch.path(), address) else {
        skip!("nginx is not installed, or this is not root");
    };
    let answered = everyone_answers(&supervisor, address, 4);
    let child = *answered.first().expect("four answered");
    let parent = process::stat(child).expect("it has just answered").ppid;
    process::signal(parent, Signal::KILL);
    await_gone(parent);
    await_gone(child);
    supervisor.eventually("a fourth nginx takes its place", || {
        let workers = supervisor.workers();
        workers.len() == 4 && !workers.contains(&parent)
    });
}

#[test]
fn four_node_servers_answer_on_one_unix_socket() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("app.sock");
    let supervisor = four(fixtures::node("plain.js"), path.to_str().expect("UTF-8"));
    let answered = everyone_answers(&supervisor, path.as_path(), 4);
    assert_eq!(answered, supervisor.workers());
    assert_eq!(supervisor.stop(), 0);
    assert!(!path.exists(), "the path goes with the supervisor");
}

#[test]
fn the_example_of_the_readme_is_shared_by_four() {
    let mut address = address::tcp();
    address.set_port(address::wildcard_port());
    let example = fixtures::repository().join("examples/hello.js");
    let supervisor = Supervisor::builder()
        .args(["-w", "4"])
        .command(["node".as_ref(), example.as_os_str()])
        .env("PORT", address.port().to_string())
        .spawn();
    let mut seen = BTreeSet::new();
    supervisor.eventually("each of the four answers", || {
        // At the same time: one client at a time may always meet the same worker.
        let clients: Vec<_> = (0..8).map(|_| std::thread::spawn(move || load::get(address, "/"))).collect();
        for client in clients {
            if let Outcome::Ok(body) = client.join().expect("clients do not panic") {
                seen.insert(body.split(',').next().unwrap_or_default().to_owned());
            }
        }
        seen.len() == 4
    });
    let expected: BTreeSet<String> = (0..4).map(|index| format!("hello from worker {index}")).collect();
    assert_eq!(seen, expected);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn two_addresses_of_one_program_are_both_shared() {
    let (first, second) = (address::tcp(), address::tcp());
    let both = format!(
        "const http = require('http'); for (const port of [{}, {}]) \
         http.createServer((q, r) => r.end(String(process.pid))).listen(port, '{}')",
        first.port(),
        second.port(),
        first.ip()
    );
    let supervisor = Supervisor::start(&["-w", "2", "--share", "shared"], ["node", "-e", both.as_str()]);
    for address in [first, second] {
        everyone_answers(&supervisor, address, 1);
    }
    let workers = supervisor.await_workers(2);
    // Either alone still answers on both: each has both.
    let mut rest = workers.into_iter();
    let (stopped, other) = (rest.next().expect("two"), rest.next().expect("two"));
    process::freeze(stopped);
    for address in [first, second] {
        // A connection that the stopped one had taken would wait for it: ask until the other answers.
        eventually(TIMEOUT, "the other worker answers", || load::who(address) == Some(other));
    }
}
