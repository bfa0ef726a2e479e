//! cpp-httplib, whose way to stop is to shut its listener down and close it under a thread that waits in accept(2).

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use master_process_tests::load::{self, Outcome};
use master_process_tests::{eventually, scaled};

use crate::built;
use crate::network::{self, needs};
use crate::run::{Alone, Running, answers, supervised};

const PORT: u16 = 8000;

fn address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], PORT))
}

fn command() -> [String; 2] {
    [built::cpp("httplib", &["-lcpp-httplib"]), PORT.to_string()]
}

/// How long the thread in accept(2) may take to wake up. It takes no time; what it must not do is wait for a client.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// A worker that closes its listener and lives on sees it closed within 2 s; twice that on a busy machine.
const CLOSED_WITHIN: Duration = Duration::from_secs(4);

/// Has the server that answers stop its listener, and gives its pid.
fn stop_one(program: &impl Running) -> i32 {
    answers(program, &|| load::get(address(), "/"));
    let outcome = load::get(address(), "/stop");
    let Outcome::Ok(pid) = outcome else { panic!("{outcome:?}") };
    let took: u64 = program.said("stopped").parse().expect("milliseconds");
    assert!(u128::from(took) < scaled(STOP_WITHIN).as_millis(), "it took {took} ms");
    pid.parse().expect("a pid")
}

fn stops(program: &impl Running) {
    stop_one(program);
    let is_closed = || load::get(address(), "/") == Outcome::Refused;
    eventually(CLOSED_WITHIN, "its port is closed", is_closed);
    assert!(program.is_running());
}

#[test]
fn the_listening_thread_of_a_stopped_httplib_server_returns() {
    needs!("the_listening_thread_of_a_stopped_httplib_server_returns", "g++", "/usr/include/httplib.h");
    println!("alone");
    network::enter();
    stops(&Alone::start(&command(), &[]));
    println!("as a worker");
    network::enter();
    let supervisor = supervised(&[], &command());
    stops(&supervisor);
    assert_eq!(supervisor.workers().len(), 1);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn the_listening_thread_of_one_of_two_httplib_servers_returns_and_the_other_serves() {
    let name = "the_listening_thread_of_one_of_two_httplib_servers_returns_and_the_other_serves";
    needs!(name, "g++", "/usr/include/httplib.h");
    network::enter();
    let supervisor = supervised(&["-w", "2"], &command());
    let mut both = BTreeSet::new();
    supervisor.eventually("both answer", || {
        both.extend(load::who(address()));
        both.len() == 2
    });
    let stopped = stop_one(&supervisor);
    both.remove(&stopped);
    let other = both.first().copied();
    let is_all = || (0..20).all(|_| load::who(address()) == other);
    eventually(CLOSED_WITHIN, "only the other is asked", is_all);
    assert!(supervisor.workers().contains(&stopped), "it lives on");
    assert_eq!(supervisor.stop(), 0);
}
