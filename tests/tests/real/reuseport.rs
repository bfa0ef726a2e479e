//! A server that sets `SO_REUSEPORT` by itself, and dies with connections that the kernel has not forgotten.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use master_process_tests::load::{self, Outcome};
use master_process_tests::script::script;
use master_process_tests::{eventually, process, scaled};
use rustix::process::Signal;

use crate::network::{self, needs};
use crate::run::{Alone, Running, supervised};

const PORT: u16 = 8000;

/// How long a replacement may take to answer. A python starts in 20 ms to 1 s; TIME_WAIT is a minute.
const BACK_WITHIN: Duration = Duration::from_secs(5);

/// Only `SO_REUSEPORT`: without `SO_REUSEADDR` the kernel is asked for nothing else that would let it bind.
const SERVER: &str = "
made = socket.socket()
made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
result = attempt(lambda: made.bind((HOST, PORT)))
if result != 'ok':
    say('failed', result)
    sys.exit(1)
made.listen(64)
say('listens', PID)
serve(made)";

/// A request whose client waits for the server to close: the server's side of it is then in TIME_WAIT.
fn closed_by_server(address: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(scaled(BACK_WITHIN)))?;
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
    stream.read_to_end(&mut Vec::new()).map(drop)
}

/// The server's connections of this network in TIME_WAIT.
fn time_wait() -> usize {
    const TIME_WAIT: &str = "06";
    // The network of this thread, which is not that of the process.
    let table = fs::read_to_string("/proc/thread-self/net/tcp").expect("every process may read it");
    let port = format!(":{PORT:04X}");
    let is_one = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.get(1).is_some_and(|local| local.ends_with(&port)) && fields.get(3) == Some(&TIME_WAIT)
    };
    table.lines().filter(is_one).count()
}

fn leaves_time_wait(address: SocketAddr) {
    for _ in 0..20 {
        closed_by_server(address).expect("the server runs");
    }
    eventually(BACK_WITHIN, "connections are in TIME_WAIT", || time_wait() >= 20);
}

fn comes_back(workers: usize) {
    let address = SocketAddr::from(([127, 0, 0, 1], PORT));
    let command = script(SERVER, address);
    println!("alone");
    network::enter();
    let alone = Alone::start(&command, &[]);
    alone.said("listens");
    leaves_time_wait(address);
    drop(alone);
    Alone::start(&command, &[]).said("listens");

    println!("as {workers} workers");
    network::enter();
    let supervisor = supervised(&["-w", &workers.to_string()], &command);
    let listening = |count: usize| {
        supervisor.eventually("they listen", || {
            supervisor.output().iter().filter(|line| line.starts_with("listens")).count() == count
        });
    };
    listening(workers);
    for kills in 1..=3 {
        leaves_time_wait(address);
        let victim = *supervisor.await_workers(workers).first().expect("it was awaited");
        process::signal(victim, Signal::KILL);
        let killed = Instant::now();
        // A new connection waits for the replacement, if there is no other worker.
        let outcome = load::get(address, "/");
        assert!(matches!(outcome, Outcome::Ok(_) | Outcome::Reset | Outcome::Truncated), "{outcome:?}");
        listening(workers + kills);
        assert!(killed.elapsed() < scaled(BACK_WITHIN), "it took {:?}", killed.elapsed());
        let now = supervisor.await_workers(workers);
        assert!(!now.contains(&victim));
        supervisor.eventually("every worker answers", || {
            (0..8 * workers).filter_map(|_| load::who(address)).collect::<std::collections::BTreeSet<_>>()
                == now
        });
    }
    let failed: Vec<String> =
        supervisor.output().into_iter().filter(|line| line.starts_with("failed")).collect();
    assert!(failed.is_empty(), "a replacement was refused its port: {failed:?}");
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn a_killed_server_with_a_shared_port_of_its_own_comes_back_at_once() {
    needs!("a_killed_server_with_a_shared_port_of_its_own_comes_back_at_once", "python3");
    comes_back(1);
}

#[test]
fn one_of_two_killed_servers_with_a_shared_port_of_their_own_comes_back_at_once() {
    needs!("one_of_two_killed_servers_with_a_shared_port_of_their_own_comes_back_at_once", "python3");
    comes_back(2);
}
