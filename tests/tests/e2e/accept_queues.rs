//! A queue that is full: one line that names what limits it.

use std::fs;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;

use master_process_tests::script::{said, script, script_with};
use master_process_tests::{Supervisor, address, network, skip};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// Listens with the backlog that is its argument, and accepts nothing.
const ACCEPTS_NOTHING: &str = "
made = bound(HOST, PORT); made.listen(int(sys.argv[2]))
say('ready')
signal.pause()";

/// Connections that are requested and not awaited: some find no room.
fn request(address: SocketAddr, count: usize) -> Vec<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let new = || socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).expect("a socket");
    let clients: Vec<OwnedFd> = (0..count).map(|_| new()).collect();
    for client in &clients {
        let _in_progress = connect(client, &address);
    }
    clients
}

fn full_lines(supervisor: &Supervisor) -> Vec<String> {
    supervisor.logged(&["accept queue of ", " full "])
}

fn the_full_line(supervisor: &Supervisor) -> String {
    supervisor.until("the full queue is noticed", || full_lines(supervisor).pop())
}

#[test]
fn a_full_queue_is_one_line_that_names_the_backlog_and_somaxconn() {
    let address = address::tcp();
    let command = script_with(ACCEPTS_NOTHING, address, ["4"]);
    let supervisor = Supervisor::start(&["-w", "2"], command);
    said(&supervisor, 2);
    // Both workers' queues get full.
    let _clients = request(address, 40);
    let line = the_full_line(&supervisor);
    let somaxconn = fs::read_to_string("/proc/sys/net/core/somaxconn").expect("readable");
    let expected = [
        format!("accept queue of {address} is full (5 connections, limit 4), new connections are dropped: "),
        format!("listen was called with a backlog of 4, net.core.somaxconn is {}; ", somaxconn.trim()),
        "pass a larger backlog, or use more workers".to_owned(),
    ];
    assert!(expected.iter().all(|part| line.contains(part)), "{line}");
    assert!(line.contains("worker 0 (pid ") || line.contains("worker 1 (pid "), "{line}");
    // Both are found to hang, after several more checks of their queues.
    supervisor
        .eventually("both workers are named", || supervisor.logged(&["is not accepting on"]).len() == 2);
    assert_eq!(full_lines(&supervisor), [line]);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn a_queue_that_never_gets_full_is_no_line() {
    let address = address::tcp();
    let supervisor = Supervisor::start(&[], script_with(ACCEPTS_NOTHING, address, ["4"]));
    said(&supervisor, 1);
    let _clients = request(address, 4);
    supervisor.eventually("it is checked", || !supervisor.logged(&["is not accepting on"]).is_empty());
    assert!(full_lines(&supervisor).is_empty(), "{:?}", full_lines(&supervisor));
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn a_backlog_above_the_somaxconn_of_its_network_is_named_as_limited_by_it() {
    if let Err(reason) = network::enter_own() {
        skip!(reason);
    }
    fs::write("/proc/sys/net/core/somaxconn", "6").expect("it is this network's own");
    let address = SocketAddr::from(([127, 0, 0, 1], 6200));
    let supervisor = Supervisor::start(&[], script_with(ACCEPTS_NOTHING, address, ["500"]));
    said(&supervisor, 1);
    let _clients = request(address, 20);
    let line = the_full_line(&supervisor);
    let expected = [
        "is full (7 connections, limit 6)",
        "listen was called with a backlog of 500, net.core.somaxconn is 6; raise it and reload",
    ];
    assert!(expected.iter().all(|part| line.contains(part)), "{line}");
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn a_full_queue_of_a_socket_of_listen_is_noticed() {
    if let Err(reason) = network::enter_own() {
        skip!(reason);
    }
    fs::write("/proc/sys/net/core/somaxconn", "6").expect("it is this network's own");
    let address = SocketAddr::from(([127, 0, 0, 1], 6200));
    let listen = address.to_string();
    let options = ["-w", "2", "--ready", "none", "--listen", &listen];
    let supervisor = Supervisor::start(&options, script("say('started'); signal.pause()", address));
    said(&supervisor, 1);
    let _clients = request(address, 20);
    let line = the_full_line(&supervisor);
    let expected = [
        format!("accept queue of {address} is full (7 connections, limit 6)"),
        "listen was called with a backlog of 4096, net.core.somaxconn is 6; raise it and restart".to_owned(),
    ];
    assert!(expected.iter().all(|part| line.contains(part)), "{line}");
    assert!(!line.contains("worker 0 (") && !line.contains("worker 1 ("), "both have it: {line}");
    assert_eq!(supervisor.stop(), 0);
}

fn connect_until_full(path: &Path) -> Vec<OwnedFd> {
    let address = SocketAddrUnix::new(path).expect("it fits");
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let mut clients = Vec::new();
    loop {
        let client = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).expect("a socket");
        match connect(&client, &address) {
            Ok(()) => clients.push(client),
            Err(rustix::io::Errno::AGAIN) => return clients,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_full_queue_of_a_unix_socket_is_noticed() {
    let text = "
made = socket.socket(socket.AF_UNIX)
made.bind(sys.argv[2]); made.listen(3)
say('ready')
signal.pause()";
    let (_folder, path) = address::unix();
    let supervisor = Supervisor::start(&["-w", "2"], script_with(text, address::tcp(), [&path]));
    said(&supervisor, 2);
    let clients = connect_until_full(&path);
    assert_eq!(clients.len(), 4);
    let line = the_full_line(&supervisor);
    let expected = [
        format!("accept queue of {} is full (4 connections, limit 3)", path.display()).to_lowercase(),
        "new connections wait or get eagain: listen was called with a backlog of 3".to_owned(),
    ];
    assert!(expected.iter().all(|part| line.contains(part)), "{line}");
    assert!(!line.contains("worker 0 (") && !line.contains("worker 1 ("), "both have it: {line}");
    assert_eq!(supervisor.stop(), 0);
}
