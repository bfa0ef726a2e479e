//! One client: what it has sent, what it is still to get, and how long it may take.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::connection::{Broken, Connection, SavedConnection, Watch};
use super::event::Event;
use super::protocol::{MAX_REQUEST, Reply, line};
use super::rate::{REQUESTS, Rate};
use super::ring::{Next, Ring};
use crate::policy::Time;
use crate::sys::control_socket::{self, Peer};
use crate::sys::handover::{Incoming, Outgoing};

/// The time for the first request, and for reading an answer. A client on the same host needs milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// The time between two requests.
const IDLE: Duration = Duration::from_secs(60);

/// The events that a follower gets at a time, in bytes: a slow one gets the next ones when it has read these.
const EVENTS_AT_A_TIME: usize = 16 * 1024;

/// Why a client is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// It is done.
    Done,
    /// It sent nothing.
    Silent,
    /// It does not read.
    Slow,
    /// Its request is too long.
    TooLong,
    /// It makes too many requests.
    Flood,
    /// It closed its half before its request was complete.
    HalfRequest,
    /// It sends no requests of this protocol.
    Garbage,
}

impl Cut {
    pub(super) fn reason(self) -> Option<&'static str> {
        match self {
            Cut::Done => None,
            Cut::Silent => Some("it sent no request in time"),
            Cut::Slow => Some("it does not read its answer"),
            Cut::TooLong => Some("its request is too long"),
            Cut::Flood => Some("it makes too many requests"),
            Cut::HalfRequest => Some("it ended in the middle of a request"),
            Cut::Garbage => Some("its requests are not valid"),
        }
    }
}

impl From<Broken> for Cut {
    fn from(_: Broken) -> Cut {
        Cut::Done
    }
}

/// A connected client.
#[derive(Debug)]
pub(super) struct Client {
    connection: Connection,
    pub(super) peer: Peer,
    input: Vec<u8>,
    /// The last event that it got, if it follows the events.
    pub(super) follows: Option<u64>,
    has_asked: bool,
    bad_requests: u32,
    rate: Rate,
    /// Whether a request of it waits to be carried out.
    pub(super) queued: bool,
    pub(super) watched: Option<Watch>,
}

/// The bad requests after which a client is cut off. A person who types makes mistakes.
const BAD_REQUESTS: u32 = 3;

/// A client as a supervisor hands it over.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct SavedClient {
    connection: SavedConnection,
    input: Vec<u8>,
    follows: Option<u64>,
    has_asked: bool,
    bad_requests: u32,
    rate: Rate,
    queued: bool,
}

impl Client {
    pub(super) fn save(&self, out: &mut Outgoing) -> SavedClient {
        SavedClient {
            connection: self.connection.save(out),
            input: self.input.clone(),
            follows: self.follows,
            has_asked: self.has_asked,
            bad_requests: self.bad_requests,
            rate: self.rate.clone(),
            queued: self.queued,
        }
    }

    pub(super) fn resume(saved: SavedClient, from: &mut Incoming) -> Client {
        let SavedClient { connection, input, follows, has_asked, bad_requests, rate, queued } = saved;
        let connection = Connection::resume(connection, from);
        let peer = from.need(control_socket::peer(connection.fd()), "a client");
        Client { connection, peer, input, follows, has_asked, bad_requests, rate, queued, watched: None }
    }

    pub(super) fn new(fd: OwnedFd, peer: Peer, now: Time) -> Client {
        Client {
            connection: Connection::new(fd, now),
            peer,
            input: Vec::new(),
            follows: None,
            has_asked: false,
            bad_requests: 0,
            rate: Rate::new(REQUESTS),
            queued: false,
            watched: None,
        }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.connection.fd()
    }

    /// Whether it has made no request yet.
    pub(super) fn is_silent(&self) -> bool {
        !self.has_asked
    }

    /// The bytes that wait to be written.
    pub(super) fn pending_output(&self) -> usize {
        self.connection.pending_output()
    }

    /// What to wait for.
    pub(super) fn wants(&self) -> Watch {
        if self.pending_output() > 0 {
            Watch::Output
        } else if self.connection.input_ended || self.queued {
            Watch::HangUp
        } else {
            Watch::Input
        }
    }

    /// When it is cut off if it does nothing; `None`: it may wait for events for ever.
    pub(super) fn due(&self) -> Option<Time> {
        if self.pending_output() > 0 {
            return Some(self.connection.since.after(PATIENCE));
        }
        if self.queued || self.follows.is_some() && self.input.is_empty() {
            return None;
        }
        let patience = if self.has_asked && self.input.is_empty() { IDLE } else { PATIENCE };
        Some(self.connection.since.after(patience))
    }

    /// The reason for which it is cut off when it is due; a client that was idle after its requests is just closed.
    pub(super) fn overdue(&self) -> Cut {
        match (self.pending_output() > 0, self.has_asked && self.input.is_empty()) {
            (true, _) => Cut::Slow,
            (false, true) => Cut::Done,
            (false, false) => Cut::Silent,
        }
    }

    /// Reads what has come, at most one request at a time.
    pub(super) fn read(&mut self) -> Result<(), Cut> {
        while !self.connection.input_ended && self.request_end().is_none() {
            let mut bytes = [0u8; MAX_REQUEST];
            let room = MAX_REQUEST - self.input.len();
            if room == 0 {
                return Err(Cut::TooLong);
            }
            match self.connection.read(&mut bytes[..room])? {
                0 => break,
                count => self.input.extend_from_slice(&bytes[..count]),
            }
        }
        Ok(())
    }

    fn request_end(&self) -> Option<usize> {
        self.input.iter().position(|byte| *byte == b'\n')
    }

    /// Whether a request is complete.
    pub(super) fn has_request(&self) -> bool {
        self.request_end().is_some()
    }

    /// Takes a request, without its newline. The next one is taken when the answer to this one was read.
    pub(super) fn take_request(&mut self, now: Time) -> Result<Option<Vec<u8>>, Cut> {
        let Some(end) = self.request_end() else { return Ok(None) };
        let mut line: Vec<u8> = self.input.drain(..=end).collect();
        line.pop();
        if self.input.is_empty() {
            self.input = Vec::new();
        }
        if !self.rate.allow(REQUESTS, now) {
            return Err(Cut::Flood);
        }
        (self.has_asked, self.connection.since) = (true, now);
        Ok(Some(line))
    }

    /// Counts a request that is not one.
    pub(super) fn is_bad(&mut self) -> Result<(), Cut> {
        self.bad_requests += 1;
        if self.bad_requests < BAD_REQUESTS { Ok(()) } else { Err(Cut::Garbage) }
    }

    /// Whether nothing more can come of it: it will send no further request, and has all answers.
    pub(super) fn is_done(&self) -> Option<Cut> {
        let waits = self.pending_output() > 0 || self.queued || self.has_request() || self.follows.is_some();
        if !self.connection.input_ended || waits {
            return None;
        }
        Some(if self.input.is_empty() { Cut::Done } else { Cut::HalfRequest })
    }

    /// Adds a line to what it is to get.
    pub(super) fn send(&mut self, now: Time, text: Vec<u8>) {
        self.connection.send(now, text);
    }

    /// Adds the next events, if it has read the last ones. Without `endless`, a line tells where they end.
    pub(super) fn send_events(&mut self, now: Time, ring: &Ring, endless: bool) {
        let Some(mut seq) = self.follows else { return };
        if self.pending_output() > 0 {
            return;
        }
        let mut text = Vec::new();
        loop {
            if endless && text.len() >= EVENTS_AT_A_TIME {
                break;
            }
            let (next, at) = ring.after(seq);
            seq = at;
            match next {
                Next::Event(event) => text.append(&mut line(&*event)),
                Next::Missed(count) => text.append(&mut line(&Event::missed(count, at))),
                Next::End => break,
            }
        }
        self.follows = Some(seq);
        if !endless {
            self.follows = None;
            text.append(&mut Reply { end_of_events: Some(seq), ..Reply::new() }.line());
        }
        if !text.is_empty() {
            self.send(now, text);
        }
    }

    /// Writes what there is room for.
    pub(super) fn write(&mut self, now: Time) -> Result<(), Cut> {
        if self.connection.write()? {
            self.connection.since = now;
        }
        Ok(())
    }

    /// Whether the connection is closed from the other side, both ways.
    pub(super) fn is_hung_up(&self) -> bool {
        self.connection.is_hung_up()
    }
}
