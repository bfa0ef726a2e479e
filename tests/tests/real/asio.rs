//! A server of Asio's: its acceptor is registered with epoll when it is opened, before it is bound.

use std::net::SocketAddr;

use master_process_tests::load;

use crate::built;
use crate::network::needs;
use crate::run::serves_and_reloads;

const PORT: u16 = 8000;

fn asio(workers: usize) {
    let command = [built::cpp("asio", &[]), PORT.to_string()];
    let address = SocketAddr::from(([127, 0, 0, 1], PORT));
    serves_and_reloads(workers, 4, &command, &move || load::get(address, "/"));
}

#[test]
fn one_asio_server_accepts_and_loses_no_request_in_four_reloads() {
    needs!("one_asio_server_accepts_and_loses_no_request_in_four_reloads", "g++", "/usr/include/asio.hpp");
    asio(1);
}

#[test]
fn four_asio_servers_accept_and_lose_no_request_in_four_reloads() {
    needs!("four_asio_servers_accept_and_lose_no_request_in_four_reloads", "g++", "/usr/include/asio.hpp");
    asio(4);
}
