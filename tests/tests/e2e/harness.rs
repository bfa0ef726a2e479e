//! The harness itself, against servers without a supervisor: what it reports must be true.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use master_process_tests::load::{self, Connections, Load, Outcome};
use master_process_tests::{TIMEOUT, address, eventually, fixtures};

/// A program on its own, killed when the test is over.
struct Alone(Child);

impl Alone {
    fn start(command: &[String], listen: &str) -> Alone {
        let mut program = Command::new(&command[0]);
        program.args(&command[1..]).env("LISTEN", listen).env("WORKER_INDEX", "0").env("RELOAD_INDEX", "0");
        Alone(program.stdout(Stdio::null()).spawn().expect("the fixture's program is on this machine"))
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_client_reads_the_pid_from_every_fixture() {
    let mut programs = vec![
        fixtures::node("plain.js"),
        fixtures::node("graceful.js"),
        fixtures::node("server.js"),
        fixtures::python_http(),
    ];
    programs.extend(fixtures::go_server());
    for program in programs {
        let address = address::tcp();
        let alone = Alone::start(&program, &address.to_string());
        let pid = i32::try_from(alone.0.id()).expect("pids are small");
        eventually(TIMEOUT, &format!("{program:?} answers"), || load::who(address) == Some(pid));
        for connections in [Connections::Fresh, Connections::KeepAlive] {
            let clients = Load::start(address, 4, connections);
            eventually(TIMEOUT, "a hundred requests", || clients.tally().served() >= 100);
            let tally = clients.stop();
            assert_eq!(tally.pids(), [pid], "{program:?}: {tally}");
            assert_eq!(tally.inexcusable() + tally.lost(), 0, "{program:?}: {tally}");
        }
    }
}

#[test]
fn the_client_reads_the_pid_from_nginx() {
    let scratch = tempfile::tempdir().expect("a temporary folder");
    let address = address::tcp();
    let Some(nginx) = fixtures::nginx(scratch.path(), &address.to_string()) else {
        master_process_tests::skip!("nginx is not installed");
    };
    let alone = Alone::start(&nginx, &address.to_string());
    eventually(TIMEOUT, "nginx answers", || load::who(address).is_some());
    let parent = load::who(address).and_then(master_process_tests::process::stat).map(|stat| stat.ppid);
    assert_eq!(parent, i32::try_from(alone.0.id()).ok());
    // nginx takes its children along on TERM, which the kill of the guard would not.
    master_process_tests::process::signal(parent.expect("seen above"), rustix::process::Signal::TERM);
    eventually(TIMEOUT, "nginx has left", || load::get(address, "/") == Outcome::Refused);
}

#[test]
fn the_client_speaks_to_unix_sockets() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("sock");
    assert_eq!(load::get(path.as_path(), "/"), Outcome::Refused, "no such path");
    let _alone = Alone::start(&fixtures::node("plain.js"), path.to_str().expect("UTF-8"));
    eventually(TIMEOUT, "node answers", || load::who(path.as_path()).is_some());
}

#[test]
fn the_client_distinguishes_failures() {
    let address = address::tcp();
    assert_eq!(load::get(address, "/"), Outcome::Refused);

    let listener = TcpListener::bind(address).expect("the address is this test's own");
    let server = std::thread::spawn(move || {
        let mut scratch = [0; 1024];
        let next = || listener.accept().expect("the client connects").0;
        // Closed with the request unread: the kernel resets.
        drop(next());
        let mut cut = next();
        let _ = cut.read(&mut scratch);
        cut.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc").expect("the client reads");
        drop(cut);
        let mut error = next();
        let _ = error.read(&mut scratch);
        error.write_all(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n").expect("the client reads");
    });
    let first = load::get(address, "/");
    assert!(matches!(first, Outcome::Reset | Outcome::Truncated), "{first:?}");
    assert_eq!(load::get(address, "/"), Outcome::Truncated);
    assert_eq!(load::get(address, "/"), Outcome::Other("status 503".into()));
    server.join().expect("the server has nothing to fail at");
}

#[test]
fn the_example_of_the_readme_answers() {
    let mut address = address::tcp();
    address.set_port(address::wildcard_port());
    let example = fixtures::repository().join("examples/hello.js");
    let _alone = Command::new("node")
        .arg(&example)
        .env("PORT", address.port().to_string())
        .spawn()
        .map(Alone)
        .expect("node is on this machine");
    assert!(Path::new(&example).exists());
    // It binds the wildcard address, so any loopback address reaches it.
    eventually(
        TIMEOUT,
        "the example answers",
        || matches!(load::get(address, "/"), Outcome::Ok(body) if body.starts_with("hello from worker")),
    );
}
