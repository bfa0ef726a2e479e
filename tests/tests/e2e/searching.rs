//! Programs that look for a free port, long after they are ready.

use std::net::SocketAddr;
use std::time::Duration;

use master_process_tests::script::{said, started};
use master_process_tests::{Supervisor, address, always, load};

/// Serves its main address from the start on. Eleven seconds after it listens there, which is past the time in which a
/// worker counts as starting, it takes the first port of a range that it can have, and says which.
const SEARCHER: &str = "
import threading
main = bound(HOST, PORT); main.listen(64)
threading.Thread(target=serve, args=(main,), daemon=True).start()
say('ready', INDEX, PID)
time.sleep(11)
for port in range(PORT + 100, PORT + 110):
    found = socket.socket()
    if attempt(lambda: found.bind((HOST, port)) or found.listen(64)) == 'ok': break
say('found', INDEX, port)
serve(found)";

/// The ports that two workers have found, in order.
fn found(supervisor: &Supervisor) -> Vec<u16> {
    let mut ports: Vec<u16> = supervisor.until("both have found a port", || {
        let lines = supervisor.output();
        let of = |line: &String| line.strip_prefix("found ")?.split(' ').nth(1)?.parse().ok();
        Some(lines.iter().filter_map(of).collect()).filter(|ports: &Vec<u16>| ports.len() == 2)
    });
    ports.sort_unstable();
    ports
}

/// The lines that say that an address is not shared for its lateness.
fn told(supervisor: &Supervisor) -> usize {
    supervisor.logged(&["long after it was ready", "not shared"]).len()
}

#[test]
fn workers_that_search_for_a_free_port_get_different_ones() {
    let address = address::tcp();
    let supervisor = started(&["-w", "2"], SEARCHER, address);
    let ports = found(&supervisor);
    assert_eq!(ports, [address.port() + 100, address.port() + 101]);
    assert_eq!(told(&supervisor), 1, "{:?}", supervisor.log());
    let mut served: Vec<i32> = ports
        .iter()
        .map(|port| load::who(SocketAddr::new(address.ip(), *port)).expect("its worker answers"))
        .collect();
    served.sort_unstable();
    served.dedup();
    assert_eq!(served.len(), 2, "each port is one worker's");
    always(Duration::from_secs(1), "it is logged once", || told(&supervisor) == 1);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn unshared_main_port_is_in_use_for_the_second_worker() {
    let address = address::tcp();
    let port = address.port().to_string();
    let text = "
made = socket.socket()
outcome = attempt(lambda: made.bind((HOST, PORT)) or made.listen(64))
say(outcome)
if outcome == 'ok': serve(made)
while True: signal.pause()";
    let supervisor = started(&["-w", "2", "--ready", "none", "--no-share", &port], text, address);
    let both = said(&supervisor, 2);
    assert_eq!(both.iter().map(String::as_str).collect::<Vec<_>>(), ["EADDRINUSE", "ok"]);
    assert!(load::who(address).is_some());
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn share_only_range_is_shared_when_bound_late() {
    let address = address::tcp();
    let range = format!("{},{}-{}", address.port(), address.port() + 100, address.port() + 110);
    let supervisor = started(&["-w", "2", "--share-only", &range], SEARCHER, address);
    assert_eq!(found(&supervisor), [address.port() + 100; 2]);
    assert_eq!(told(&supervisor), 0, "{:?}", supervisor.log());
    assert_eq!(supervisor.stop(), 0);
}
