//! Four workers of each server: all four end up serving the address, and from then on no request is lost.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use master_process_tests::load::{Connections, Load, Target};
use master_process_tests::{Supervisor, network, skip};

use crate::run::program;

/// Where the servers listen: each test has a network of its own.
const PORT: u16 = 28400;

/// Enough clients to keep four workers busy at a time: with one queue for all, an idle worker may take everything.
const CLIENTS: usize = 16;

/// Requests that must all be answered once every worker serves.
const REQUESTS: u64 = 400;

/// How a server is reached.
enum At {
    /// TCP, on each of these addresses.
    Tcp(&'static [&'static str]),
    /// A Unix socket, `app.sock` in the working directory.
    Unix,
}

fn all_four_serve(name: &str, at: &At) {
    if let Err(reason) = network::enter_own() {
        skip!(reason);
    }
    let cwd = tempfile::tempdir().expect("a temporary folder");
    let supervisor = four(name, &cwd);
    let targets: Vec<Target> = match at {
        At::Tcp(hosts) => hosts
            .iter()
            .map(|host| Target::Tcp(SocketAddr::new(host.parse().expect("an address"), PORT)))
            .collect(),
        At::Unix => vec![Target::Unix(cwd.path().join("app.sock"))],
    };
    for target in &targets {
        // A worker that is still starting may refuse, or reset what waits in a listener that it only probes with.
        let clients = Load::start(target.clone(), CLIENTS, Connections::Fresh);
        supervisor.eventually(&format!("all four answer at {target:?}"), || clients.tally().ok.len() >= 4);
        println!("{target:?}, while they start: {}", clients.stop());
    }
    let workers = supervisor.await_workers(4);
    for target in targets {
        let clients = Load::start(target.clone(), CLIENTS, Connections::Fresh);
        supervisor.eventually("requests are served", || {
            let tally = clients.tally();
            tally.served() >= REQUESTS && tally.ok.len() >= 4
        });
        let tally = clients.stop();
        assert_eq!(tally.lost() + tally.inexcusable(), 0, "{target:?}: {tally}");
        let answered: BTreeSet<i32> = tally.pids().into_iter().collect();
        assert_eq!(answered, workers, "the workers answer at {target:?}");
    }
    assert_eq!(supervisor.stop(), 0);
}

/// Four workers of a server.
fn four(name: &str, cwd: &tempfile::TempDir) -> Supervisor {
    let command = program(&format!("serve_{name}"));
    let builder = Supervisor::builder().args(["-w", "4", "--monitor", "off"]).command(command);
    builder.cwd(cwd.path()).spawn()
}

/// One test for each server, of its name.
macro_rules! servers {
    ($($name:ident at $at:expr;)*) => {
        $(
            #[test]
            fn $name() {
                all_four_serve(stringify!($name), &$at);
            }
        )*

        pub(crate) const SERVERS: &[&str] = &["udp", $(stringify!($name)),*];
    };
}

const LOCAL: At = At::Tcp(&["127.0.0.1"]);

servers! {
    after_probe at LOCAL;
    device at LOCAL;
    dual_stack at At::Tcp(&["127.0.0.1", "::1"]);
    dup_before_bind at LOCAL;
    epoll_before_bind at LOCAL;
    epoll_edge_before_bind at LOCAL;
    exec at LOCAL;
    fork_before_bind at LOCAL;
    fork_child at LOCAL;
    late at LOCAL;
    mptcp at LOCAL;
    options at LOCAL;
    passed at LOCAL;
    plain at LOCAL;
    prefork at LOCAL;
    process_namespace at LOCAL;
    reopened at LOCAL;
    reuseport at LOCAL;
    reuseport_processes at LOCAL;
    reuseport_two_sockets at LOCAL;
    thread at LOCAL;
    thread_own_descriptors at LOCAL;
    two_families at At::Tcp(&["127.0.0.1", "::1"]);
    unix at At::Unix;
    unix_epoll at At::Unix;
    unix_fork_child at At::Unix;
    unix_relative at At::Unix;
}

#[test]
fn udp() {
    if let Err(reason) = network::enter_own() {
        skip!(reason);
    }
    let cwd = tempfile::tempdir().expect("a temporary folder");
    let supervisor = four("udp", &cwd);
    let mut answered = BTreeSet::new();
    // Each from a port of its own, which is what the kernel spreads datagrams by.
    supervisor.eventually("all four answer datagrams", || {
        answered.extend(ask(Duration::from_millis(200)));
        answered.len() == 4
    });
    assert_eq!(answered, supervisor.await_workers(4));
    for count in 0..REQUESTS {
        assert!(ask(Duration::from_secs(10)).is_some(), "datagram {count} is not answered");
    }
    assert_eq!(supervisor.stop(), 0);
}

/// The pid that answers a datagram, if one does in time.
fn ask(timeout: Duration) -> Option<i32> {
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    client.set_read_timeout(Some(timeout)).expect("not zero");
    client.send_to(b"who", (Ipv4Addr::LOCALHOST, PORT)).ok()?;
    let mut answer = [0; 16];
    let (length, _) = client.recv_from(&mut answer).ok()?;
    std::str::from_utf8(&answer[..length]).ok()?.parse().ok()
}
