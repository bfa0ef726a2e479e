//! memcached with TCP and UDP on one port number.

use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

use master_process_tests::load::Outcome;
use master_process_tests::scaled;

use crate::network::{needs, path_of};
use crate::run::{serves_and_reloads, words};
use crate::udp::{Flow, Protocol};

const PORT: u16 = 11211;
const TIMEOUT: Duration = Duration::from_secs(15);

/// A frame of the protocol for UDP is its request, its number, their count, and two bytes of nothing.
const BY_UDP: Protocol = Protocol {
    port: PORT,
    query: b"\x00\x01\x00\x00\x00\x01\x00\x00stats\r\n",
    pid: |answer| String::from_utf8_lossy(answer.get(8..)?).lines().find_map(pid),
};

fn pid(line: &str) -> Option<i32> {
    line.split("STAT pid ").nth(1)?.trim().parse().ok()
}

fn by_tcp() -> io::Result<Option<i32>> {
    let mut stream = TcpStream::connect(("127.0.0.1", PORT))?;
    stream.set_read_timeout(Some(scaled(TIMEOUT)))?;
    stream.write_all(b"stats\r\n")?;
    let mut found = None;
    for line in BufReader::new(stream).lines() {
        let line = line?;
        found = found.or_else(|| pid(&line));
        if line == "END" {
            return Ok(found);
        }
    }
    Ok(None)
}

fn by_both() -> Outcome {
    match (by_tcp(), Flow::open(BY_UDP).ask()) {
        (Ok(Some(pid)), Outcome::Ok(_)) => Outcome::Ok(pid.to_string()),
        (Ok(Some(_)), Outcome::Timeout) => Outcome::Other("no answer by UDP".into()),
        (Ok(Some(_)), failed) => Outcome::Other(format!("by UDP: {failed:?}")),
        (Ok(None), _) => Outcome::Truncated,
        (Err(error), _) => Outcome::of(&error),
    }
}

#[test]
fn memcached_on_tcp_and_udp_loses_no_request_in_four_reloads() {
    needs!("memcached_on_tcp_and_udp_loses_no_request_in_four_reloads", "memcached");
    let options = format!("-l 127.0.0.1 -p {PORT} -U {PORT} -u root -m 16 -t 2");
    let mut command = vec![path_of("memcached")];
    command.extend(words(&options));
    serves_and_reloads(1, 4, &command, &by_both);
}
