//! The load: the tests' clients, which speak HTTP, or here to redis.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use master_process_tests::load::{Connections, Load, Outcome, Tally, Target};

/// That of the tests' clients: longer than any delay that is caused on purpose.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(15);

/// What redis answers to a ping.
const PONG: &[u8] = b"+PONG\r\n";

/// Clients that send requests again and again. Dropping them stops them: none outlives a measurement that fails.
pub(super) struct Clients {
    /// `None` once stopped.
    load: Option<Load>,
}

impl Clients {
    /// HTTP.
    pub(super) fn http(target: &Target, count: usize, connections: Connections) -> Self {
        Self { load: Some(Load::start(target.clone(), count, connections)) }
    }

    /// One ping to redis on each connection.
    pub(super) fn ping(address: SocketAddr, count: usize) -> Self {
        Self { load: Some(Load::repeat(count, || move || ping(address))) }
    }

    /// The outcomes so far.
    pub(super) fn tally(&self) -> Tally {
        self.load.as_ref().map(Load::tally).unwrap_or_default()
    }

    /// How long the longest request took that was served since the last call of this.
    pub(super) fn take_longest(&self) -> Duration {
        self.load.as_ref().map(Load::take_longest).unwrap_or_default()
    }

    /// Ends the clients after the request that each is at, and gives all outcomes.
    pub(super) fn stop(mut self) -> Tally {
        self.load.take().map(Load::stop).unwrap_or_default()
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        drop(self.load.take().map(Load::stop));
    }
}

/// How many requests have come to an end, whatever it was.
pub(super) fn ended(tally: &Tally) -> u64 {
    tally.served() + failed(tally) + tally.idle_closed
}

/// How many requests have failed; a kept connection that was closed while idle is no request.
pub(super) fn failed(tally: &Tally) -> u64 {
    tally.lost() + tally.inexcusable()
}

/// One ping on a connection of its own. The answer has no pid.
fn ping(address: SocketAddr) -> Outcome {
    match answer(address) {
        Ok(answer) if answer == PONG => Outcome::Ok(String::new()),
        Ok(answer) if PONG.starts_with(&answer) => Outcome::Truncated,
        Ok(answer) => Outcome::Other(String::from_utf8_lossy(&answer).into_owned()),
        Err(error) => Outcome::of(&error),
    }
}

fn answer(address: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&address, CLIENT_TIMEOUT)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(CLIENT_TIMEOUT))?;
    stream.set_write_timeout(Some(CLIENT_TIMEOUT))?;
    stream.write_all(b"PING\r\n")?;
    let (mut answer, mut part) = (Vec::new(), [0; 64]);
    while answer.len() < PONG.len() {
        match stream.read(&mut part) {
            Ok(0) => break,
            Ok(length) => answer.extend_from_slice(&part[..length]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The outcome of one ping to a server that answers so.
    fn pinged(answer: &'static [u8]) -> io::Result<Outcome> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let server = std::thread::spawn(move || -> io::Result<()> {
            let (mut stream, _) = listener.accept()?;
            let mut request = [0; 6];
            stream.read_exact(&mut request)?;
            stream.write_all(answer)
        });
        let outcome = ping(address);
        server.join().map_err(|_| io::Error::other("the server panicked"))??;
        Ok(outcome)
    }

    #[test]
    fn every_end_of_a_ping_is_told_apart() -> io::Result<()> {
        assert_eq!(pinged(PONG)?, Outcome::Ok(String::new()));
        assert_eq!(pinged(b"+PO")?, Outcome::Truncated);
        assert_eq!(pinged(b"")?, Outcome::Truncated);
        assert_eq!(pinged(b"-ERR no\r\n")?, Outcome::Other("-ERR no\r\n".into()));
        let free = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        assert_eq!(ping(free), Outcome::Refused);
        Ok(())
    }
}
