//! redis on a port, and on a port and a Unix path at once.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use master_process_tests::load::Outcome;
use master_process_tests::scaled;

use crate::network::{self, needs, path_of};
use crate::run::{Client, alone_serves, answers, reloads, serves_and_reloads, supervised, text_of, words};

const PORT: u16 = 6400;
const TIMEOUT: Duration = Duration::from_secs(15);

fn command(folder: &Path, more: &str) -> Vec<String> {
    let folder = text_of(folder);
    let mut command = vec![path_of("redis-server")];
    command.extend(words(&format!(
        "--port {PORT} --bind 127.0.0.1 --appendonly no --dir {folder} {more} --save"
    )));
    command.push(String::new());
    command
}

/// The pid that a server names in its answer to INFO.
fn ask(mut stream: impl Read + Write) -> io::Result<String> {
    stream.write_all(b"INFO server\r\n")?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    if line.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let length = line.trim().strip_prefix('$').and_then(|length| length.parse::<usize>().ok());
    let mut info = vec![0; length.ok_or_else(|| io::Error::other(line.clone()))?];
    reader.read_exact(&mut info)?;
    let info = String::from_utf8_lossy(&info).into_owned();
    let pid = info.lines().find_map(|line| line.strip_prefix("process_id:"));
    pid.map(|pid| pid.trim().to_owned()).ok_or_else(|| io::Error::other(info.clone()))
}

fn outcome(answer: io::Result<String>) -> Outcome {
    match answer {
        Ok(pid) => Outcome::Ok(pid),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Outcome::Truncated,
        Err(error) => Outcome::of(&error),
    }
}

fn by_port() -> Outcome {
    let stream = TcpStream::connect(("127.0.0.1", PORT));
    outcome(
        stream.and_then(|stream| stream.set_read_timeout(Some(scaled(TIMEOUT))).and_then(|()| ask(stream))),
    )
}

fn by_path(path: &Path) -> impl Client + use<> {
    let path = path.to_owned();
    move || {
        let stream = UnixStream::connect(&path);
        outcome(
            stream
                .and_then(|stream| stream.set_read_timeout(Some(scaled(TIMEOUT))).and_then(|()| ask(stream))),
        )
    }
}

#[test]
fn redis_loses_no_request_in_four_reloads() {
    needs!("redis_loses_no_request_in_four_reloads", "redis-server");
    let folder = tempfile::tempdir().expect("a temporary folder");
    serves_and_reloads(1, 4, &command(folder.path(), ""), &by_port);
}

#[test]
fn redis_on_a_port_and_a_unix_path_loses_no_request_at_either() {
    needs!("redis_on_a_port_and_a_unix_path_loses_no_request_at_either", "redis-server");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("redis.sock");
    let command = command(folder.path(), &format!("--unixsocket {}", text_of(&path)));
    alone_serves(&command, 2, &by_port);
    println!("as a worker");
    network::enter();
    let supervisor = supervised(&[], &command);
    answers(&supervisor, &by_port);
    answers(&supervisor, &by_path(&path));
    // Both in turn, so that a worker counts only as there when it answers at both.
    let unix = by_path(&path);
    let both = move || match (by_port(), unix()) {
        (Outcome::Ok(first), Outcome::Ok(_)) => Outcome::Ok(first),
        (Outcome::Ok(_), failed) | (failed, _) => failed,
    };
    reloads(&supervisor, 1, 4, 4, &both);
    assert_eq!(supervisor.stop(), 0);
}
