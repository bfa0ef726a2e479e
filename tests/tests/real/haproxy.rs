//! haproxy. It binds a temporary name beside a Unix path and renames it; with `transparent` it binds addresses that
//! the machine does not have.

use std::net::SocketAddr;
use std::path::Path;

use master_process_tests::load;

use crate::network::{self, ip, needs, path_of};
use crate::run::{Alone, answers, reloads, serves_and_reloads, supervised, text_of, write};

fn command(folder: &Path, bind: &str) -> Vec<String> {
    let options = format!(
        "global\n  maxconn 200\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 20s\n  timeout server 20s\n\
         frontend pid\n  bind {bind}\n  http-request return status 200 content-type text/plain lf-string %pid\n"
    );
    vec![path_of("haproxy"), "-db".into(), "-f".into(), write(folder, "haproxy.cfg", &options)]
}

/// haproxy renames its socket into place before it calls listen(2). Alone, the path refuses connections for the few
/// microseconds between the two; while an old worker listens there, it must not refuse any for longer than that.
fn on_a_unix_path(workers: usize) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("haproxy.sock");
    let command = command(folder.path(), &text_of(&path));
    serves_and_reloads(workers, 4, &command, &move || load::get(path.as_path(), "/"));
}

#[test]
fn one_haproxy_on_a_unix_path_loses_no_request_in_four_reloads() {
    needs!("one_haproxy_on_a_unix_path_loses_no_request_in_four_reloads", "haproxy");
    on_a_unix_path(1);
}

#[test]
fn two_haproxy_on_one_unix_path_lose_no_request_in_four_reloads() {
    needs!("two_haproxy_on_one_unix_path_lose_no_request_in_four_reloads", "haproxy");
    on_a_unix_path(2);
}

/// An address for documentation, which no machine has.
const FOREIGN: ([u8; 4], u16) = ([192, 0, 2, 1], 8000);

/// A new network that delivers packets for the foreign address here, but does not have it as its own: only a
/// transparent socket can be bound to it.
fn enter_with_foreign_address() {
    network::enter();
    // With a source of its own the kernel would take the packets for forged ones.
    ip("route add local 192.0.2.0/24 dev lo src 127.0.0.1 table 100");
    ip("rule add to 192.0.2.0/24 lookup 100");
}

#[test]
fn a_transparent_haproxy_serves_an_address_that_the_machine_does_not_have() {
    needs!("a_transparent_haproxy_serves_an_address_that_the_machine_does_not_have", "haproxy");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let address = SocketAddr::from(FOREIGN);
    let client = move || load::get(address, "/");
    let transparent = command(folder.path(), &format!("{address} transparent"));
    enter_with_foreign_address();
    let error = std::net::TcpListener::bind(address).expect_err("an ordinary socket");
    assert_eq!(error.kind(), std::io::ErrorKind::AddrNotAvailable);
    println!("alone");
    let alone = Alone::start(&transparent, &[]);
    answers(&alone, &client);
    drop(alone);

    println!("as a worker");
    enter_with_foreign_address();
    let supervisor = supervised(&[], &transparent);
    answers(&supervisor, &client);
    reloads(&supervisor, 1, 2, 4, &client);
    assert_eq!(supervisor.stop(), 0);
}
