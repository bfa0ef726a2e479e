//! The load: the tests' HTTP clients, and clients of the same kind that speak to redis.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use master_process_tests::load::{Connections, Load, Outcome, Tally, Target};

/// As patient as the tests' clients: longer than any delay that is caused on purpose.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(15);

/// What redis answers to a ping.
const PONG: &[u8] = b"+PONG\r\n";

/// Clients that ask again and again. Dropping them stops them: none outlives a measurement that fails.
pub(super) enum Clients {
    /// HTTP; `None` once stopped.
    Http(Option<Load>),
    /// One ping on each connection.
    Ping(Pings),
}

impl Clients {
    pub(super) fn http(target: &Target, count: usize, connections: Connections) -> Self {
        Clients::Http(Some(Load::start(target.clone(), count, connections)))
    }

    pub(super) fn ping(address: SocketAddr, count: usize) -> Self {
        Clients::Ping(Pings::start(address, count))
    }

    /// The outcomes so far.
    pub(super) fn tally(&self) -> Tally {
        match self {
            Clients::Http(load) => load.as_ref().map(Load::tally).unwrap_or_default(),
            Clients::Ping(pings) => pings.tally(),
        }
    }

    /// How long the longest request of HTTP took that was served since this was asked last.
    pub(super) fn take_longest(&self) -> Duration {
        match self {
            Clients::Http(load) => load.as_ref().map(Load::take_longest).unwrap_or_default(),
            Clients::Ping(_) => Duration::ZERO,
        }
    }

    /// Ends the clients after the request that each is at, and gives all outcomes.
    pub(super) fn stop(mut self) -> Tally {
        self.halt()
    }

    fn halt(&mut self) -> Tally {
        match self {
            Clients::Http(load) => load.take().map(Load::stop).unwrap_or_default(),
            Clients::Ping(pings) => pings.stop(),
        }
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.halt();
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

/// Clients of redis.
pub(super) struct Pings {
    stop: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
    threads: Vec<JoinHandle<()>>,
}

impl Pings {
    fn start(address: SocketAddr, count: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let tally = Arc::new(Mutex::new(Tally::default()));
        let client = || {
            let (stop, tally) = (Arc::clone(&stop), Arc::clone(&tally));
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    count_one(&tally, ping(address));
                }
            })
        };
        let threads = (0..count).map(|_| client()).collect();
        Self { stop, tally, threads }
    }

    fn tally(&self) -> Tally {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn stop(&mut self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // It counts failures and has none of its own.
            let _ = thread.join();
        }
        self.tally()
    }
}

fn count_one(tally: &Mutex<Tally>, outcome: Outcome) {
    if !matches!(outcome, Outcome::Ok(_)) {
        // A failure is instant, an answer is not: one dead second must not outnumber all answers.
        std::thread::sleep(Duration::from_millis(2));
    }
    tally.lock().unwrap_or_else(PoisonError::into_inner).count(outcome);
}

/// One ping on a connection of its own. The answer does not say who gave it.
fn ping(address: SocketAddr) -> Outcome {
    match asked(address) {
        Ok(answer) if answer == PONG => Outcome::Ok(String::new()),
        Ok(answer) if PONG.starts_with(&answer) => Outcome::Truncated,
        Ok(answer) => Outcome::Other(String::from_utf8_lossy(&answer).into_owned()),
        Err(error) => Outcome::of(&error),
    }
}

fn asked(address: SocketAddr) -> io::Result<Vec<u8>> {
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
