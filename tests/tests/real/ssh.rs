//! OpenSSH's server, whose sessions are processes that bind the ports that their clients request.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;

use master_process_tests::load::{self, Outcome};
use master_process_tests::{TIMEOUT, await_some};

use crate::network::{self, needs, path_of};
use crate::run::{Alone, Running, supervised, text_of, words, write};

const PORT: u16 = 2222;

/// The port that both sessions request.
const FORWARDED: u16 = 9000;

fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn key(path: &Path) {
    let mut command = Command::new(path_of("ssh-keygen"));
    command.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path);
    assert!(command.status().is_ok_and(|status| status.success()), "ssh-keygen");
}

fn server(folder: &Path) -> Vec<String> {
    key(&folder.join("host"));
    key(&folder.join("user"));
    let path = |name: &str| text_of(&folder.join(name));
    let options = format!(
        "Port {PORT}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nUsePAM no\n\
         StrictModes no\nPermitRootLogin yes\nAllowTcpForwarding yes\n",
        path("host"),
        path("user.pub")
    );
    let options = write(folder, "sshd_config", &options);
    // The package's service makes it, and nothing else does.
    fs::create_dir_all("/run/sshd").expect("this is root");
    vec![path_of("sshd"), "-D".into(), "-e".into(), "-f".into(), options]
}

/// A client that requests the port and forwards it to `to`; it ends where it is refused.
fn client(folder: &Path, to: u16) -> Vec<String> {
    let options = format!(
        "-F none -N -p {PORT} -i {}/user -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
         -o ExitOnForwardFailure=yes -R 127.0.0.1:{FORWARDED}:127.0.0.1:{to} root@127.0.0.1",
        text_of(folder)
    );
    let mut command = vec![path_of("ssh")];
    command.extend(words(&options));
    command
}

/// A server of this test's own, in the network of this thread, that answers with `body`.
fn destination(body: &'static str) -> u16 {
    let listener = TcpListener::bind(address(0)).expect("any port");
    let port = listener.local_addr().expect("it is bound").port();
    let answer = move |mut stream: TcpStream| {
        let _ = stream.read(&mut [0; 1024]);
        let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    };
    std::thread::spawn(move || listener.incoming().flatten().for_each(answer));
    port
}

fn second_is_refused(program: &impl Running, folder: &Path) {
    let (to_first, to_second) = (destination("first"), destination("second"));
    let forwarded = |to: &str| load::get(address(FORWARDED), "/") == Outcome::Ok(to.into());
    program.wait_for("the server listens", || TcpStream::connect(address(PORT)).ok());
    let first = Alone::start(&client(folder, to_first), &[]);
    first.wait_for("the first session has the port", || forwarded("first").then_some(()));

    let log = folder.join("refused.log");
    let mut command = client(folder, to_second);
    command.splice(1..1, ["-E".into(), text_of(&log)]);
    let status = Alone::start(&command, &[]).ended("the second session is refused the port");
    let said = fs::read_to_string(&log).unwrap_or_default();
    assert_eq!(status.code(), Some(255), "{said}");
    assert!(said.contains(&format!("remote port forwarding failed for listen port {FORWARDED}")), "{said}");
    fs::remove_file(log).expect("it was read");
    for _ in 0..10 {
        assert!(forwarded("first"), "the first session keeps the port");
    }

    // The end of a session frees its port for others.
    drop(first);
    await_some(TIMEOUT, "a later session has the port", || {
        let later = Alone::start(&client(folder, to_second), &[]);
        while later.is_running() {
            if forwarded("second") {
                return Some(());
            }
        }
        None
    });
}

#[test]
fn the_second_of_two_sessions_is_refused_the_port_that_the_first_forwards() {
    let name = "the_second_of_two_sessions_is_refused_the_port_that_the_first_forwards";
    needs!(name, "sshd", "ssh", "ssh-keygen");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let command = server(folder.path());
    println!("alone");
    network::enter();
    second_is_refused(&Alone::start(&command, &[]), folder.path());
    println!("as a worker");
    network::enter();
    let supervisor = supervised(&[], &command);
    second_is_refused(&supervisor, folder.path());
    assert_eq!(supervisor.stop(), 0);
}
