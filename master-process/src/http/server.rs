//! The server: it accepts, reads and writes without ever waiting, and hands complete requests over.
//!
//! It is bounded as the control socket is: the clients, the size and number of requests, the output that waits, the time
//! that each client may take, and the work of one round of the loop.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing::{debug, info};

use super::listener::{Listener, SavedListener};
use super::request::{MAX_HEAD, Page, Parsed, Refusal, parse};
use crate::control::{
    Accepting, Broken, Connection, LogLimit, NextAccept, REQUESTS, Rate, SavedConnection, Watch,
};
use crate::policy::Time;
use crate::sys::control_socket;
use crate::sys::handover::{Incoming, Outgoing};
use crate::sys::poller::Poller;

/// The most clients at a time.
const MAX_CLIENTS: usize = 64;

/// The output that waits for all clients together, in bytes, above which no further request is carried out.
const MAX_OUTPUT: usize = 8 << 20;

/// The time for a whole request, and for reading a whole answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is read of a client that is to be closed: unread input would make the kernel throw the answer away.
const DISCARD: usize = 64 * 1024;

/// A request that is to be answered now.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// The client.
    pub client: u64,
    /// What it asks for.
    pub page: Page,
}

/// An answer.
#[derive(Debug)]
pub struct Response {
    /// The status of HTTP.
    pub status: u16,
    /// The type of the content.
    pub content_type: &'static str,
    /// The content.
    pub body: String,
}

impl Response {
    /// An answer of one line.
    pub fn line(status: u16, text: &str) -> Response {
        Response { status, content_type: "text/plain; charset=utf-8", body: format!("{text}\n") }
    }

    fn bytes(&self, with_body: bool) -> Vec<u8> {
        let reason = match self.status {
            200 => "OK",
            400 => "Bad Request",
            404 => "Not Found",
            405 => "Method Not Allowed",
            408 => "Request Timeout",
            429 => "Too Many Requests",
            431 => "Request Header Fields Too Large",
            _unavailable => "Service Unavailable",
        };
        let Response { status, content_type, body } = self;
        let allow = if *status == 405 { "Allow: GET, HEAD\r\n" } else { "" };
        let mut text = format!(
            "HTTP/1.1 {status} {reason}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n{allow}Connection: close\r\n\r\n",
            body.len()
        );
        if with_body {
            text.push_str(body);
        }
        text.into_bytes()
    }
}

/// Why a client is cut off: for the log, and for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// It is done, or gone.
    Done,
    /// It sent no request in time.
    Silent,
    /// It does not read.
    Slow,
    /// It closed its half before its request was complete.
    HalfRequest,
    /// Its head is too long.
    TooLong,
    /// It does not speak HTTP.
    Garbage,
    /// There are too many requests.
    Flood,
    /// There are too many clients.
    Full,
}

impl Cut {
    fn reason(self) -> Option<(u16, &'static str)> {
        match self {
            Cut::Done => None,
            Cut::Silent => Some((408, "it sent no request in time")),
            Cut::Slow => Some((408, "it does not read its answer")),
            Cut::HalfRequest => Some((400, "it ended in the middle of a request")),
            Cut::TooLong => Some((431, "its request is too long")),
            Cut::Garbage => Some((400, "it does not speak HTTP/1.1")),
            Cut::Flood => Some((429, "too many requests")),
            Cut::Full => Some((503, "too many clients")),
        }
    }
}

impl From<Broken> for Cut {
    fn from(_: Broken) -> Cut {
        Cut::Done
    }
}

#[derive(Debug)]
struct Client {
    connection: Connection,
    peer: String,
    input: Vec<u8>,
    /// Its request, once that is complete; whether the answer has a body.
    asked: Option<(Page, bool)>,
    answered: bool,
    watched: Option<Watch>,
}

impl Client {
    fn due(&self) -> Option<Time> {
        let waits_for_us = self.asked.is_some() && !self.answered;
        (!waits_for_us).then(|| self.connection.since.after(PATIENCE))
    }

    /// Reads what has come, and at most a whole head.
    fn read(&mut self) -> Result<Parsed, Cut> {
        let mut bytes = [0u8; 1024];
        loop {
            let room = bytes.len().min(MAX_HEAD - self.input.len());
            let count = self.connection.read(&mut bytes[..room])?;
            self.input.extend_from_slice(&bytes[..count]);
            let parsed = parse(&self.input);
            if parsed != Parsed::Partial || count == 0 {
                return Ok(parsed);
            }
        }
    }
}

/// The server.
#[derive(Debug)]
pub struct Server {
    listener: Listener,
    clients: BTreeMap<u64, Client>,
    next: u64,
    /// The clients whose requests are complete, in the order in which these came.
    queue: VecDeque<u64>,
    /// The limit on the requests of all clients together. Each is a connection of its own, so a single client cannot be told
    /// from many.
    rate: Rate,
    accepting: Accepting,
    log_limit: LogLimit,
}

/// Encodes the numbers of clients as tokens of the poller.
type Token = fn(u64) -> u64;

/// A server as a supervisor hands it over, with its clients.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SavedServer {
    listener: SavedListener,
    clients: Vec<(u64, SavedClient)>,
    next: u64,
    queue: VecDeque<u64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct SavedClient {
    connection: SavedConnection,
    input: Vec<u8>,
    asked: Option<(Page, bool)>,
    answered: bool,
}

impl Server {
    /// The state now.
    pub fn save(&self, out: &mut Outgoing) -> SavedServer {
        let save = |(id, client): (&u64, &Client)| {
            let Client { connection, peer: _, input, asked, answered, watched: _ } = client;
            let (input, asked, answered) = (input.clone(), *asked, *answered);
            (*id, SavedClient { connection: connection.save(out), input, asked, answered })
        };
        let clients = self.clients.iter().map(save).collect();
        SavedServer { listener: self.listener.save(out), clients, next: self.next, queue: self.queue.clone() }
    }

    /// A server that goes on from this state. Each client has an event next, so that it is waited for.
    pub fn resume(saved: SavedServer, from: &mut Incoming) -> Server {
        let SavedServer { listener, clients, next, queue } = saved;
        let mut server = Server { next, queue, ..Server::new(Listener::resume(listener, from)) };
        for (id, SavedClient { connection, input, asked, answered }) in clients {
            let connection = Connection::resume(connection, from);
            let peer = peer(&server.listener, connection.fd());
            server.clients.insert(id, Client { connection, peer, input, asked, answered, watched: None });
        }
        server
    }

    /// The clients.
    pub fn clients(&self) -> Vec<u64> {
        self.clients.keys().copied().collect()
    }

    /// A server on an open socket.
    pub fn new(listener: Listener) -> Server {
        Server {
            listener,
            clients: BTreeMap::new(),
            next: 0,
            queue: VecDeque::new(),
            rate: Rate::new(REQUESTS),
            accepting: Accepting::new(),
            log_limit: LogLimit::default(),
        }
    }

    /// The listening socket.
    pub fn listener(&self) -> BorrowedFd<'_> {
        self.listener.fd()
    }

    /// Whether there is work that the next round is to do without waiting.
    pub fn has_work(&self) -> bool {
        let waiting =
            || self.clients.values().map(|client| client.connection.pending_output()).sum::<usize>();
        !self.queue.is_empty() && waiting() < MAX_OUTPUT
    }

    /// Accepts connections, a few at a time, and says when to accept the next ones.
    pub fn accept(&mut self, now: Time, poller: &mut Poller, token: Token) -> NextAccept {
        let (accepted, next, result) = self.accepting.accept(now, self.listener.fd());
        for fd in accepted {
            self.add(now, fd, poller, token);
        }
        if let Err(error) = &result {
            debug!("cannot accept a client of the metrics: {error}");
        }
        next
    }

    fn add(&mut self, now: Time, fd: OwnedFd, poller: &mut Poller, token: Token) {
        let peer = peer(&self.listener, fd.as_fd());
        self.next += 1;
        let id = self.next;
        let connection = Connection::new(fd, now);
        let client =
            Client { connection, peer, input: Vec::new(), asked: None, answered: false, watched: None };
        let is_full = self.clients.len() >= MAX_CLIENTS;
        self.clients.insert(id, client);
        if is_full {
            // The oldest one that has asked for nothing gives way.
            let silent = self.clients.iter().find(|(_, client)| client.asked.is_none()).map(|(id, _)| *id);
            match silent.filter(|silent| *silent != id) {
                Some(silent) => self.cut(now, silent, Cut::Silent, poller, token),
                None => return self.cut(now, id, Cut::Full, poller, token),
            }
        }
        // Most clients have sent their request by now.
        self.event(now, id, poller, token);
    }

    /// Handles what the poller reports of a client.
    pub fn event(&mut self, now: Time, id: u64, poller: &mut Poller, token: Token) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let watched = client.watched.take();
        if watched == Some(Watch::HangUp) && client.connection.is_hung_up() {
            return self.cut(now, id, Cut::Done, poller, token);
        }
        if client.answered {
            return self.write(now, id, poller, token);
        }
        if client.asked.is_some() {
            return self.watch(now, id, Watch::HangUp, poller, token);
        }
        match client.read() {
            Ok(Parsed::Page { page, body }) => {
                client.asked = Some((page, body));
                client.input = Vec::new();
                self.queue.push_back(id);
                // It may give up before its turn comes; a half-closed one has not.
                self.watch(now, id, Watch::HangUp, poller, token);
            }
            Ok(Parsed::Partial) if !client.connection.input_ended => {
                self.watch(now, id, Watch::Input, poller, token);
            }
            // A check whether the port is open.
            Ok(Parsed::Partial) if client.input.is_empty() => self.cut(now, id, Cut::Done, poller, token),
            Ok(Parsed::Partial) => self.cut(now, id, Cut::HalfRequest, poller, token),
            Ok(Parsed::Refused(refusal)) => self.refuse(now, id, refusal, poller, token),
            Err(cut) => self.cut(now, id, cut, poller, token),
        }
    }

    fn refuse(&mut self, now: Time, id: u64, refusal: Refusal, poller: &mut Poller, token: Token) {
        let response = match refusal {
            Refusal::Garbage => return self.cut(now, id, Cut::Garbage, poller, token),
            Refusal::TooLong => return self.cut(now, id, Cut::TooLong, poller, token),
            Refusal::NoSuchPage => Response::line(404, "not found: /metrics, /healthz and /readyz are here"),
            Refusal::Method => Response::line(405, "only GET and HEAD"),
        };
        self.answer(now, id, &response, poller, token);
    }

    fn watch(&mut self, now: Time, id: u64, wants: Watch, poller: &mut Poller, token: Token) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        if client.watched.replace(wants).is_some() {
            poller.forget(token(id));
        }
        if wants.begin(client.connection.fd(), poller, token(id)).is_err() {
            self.cut(now, id, Cut::Done, poller, token);
        }
    }

    /// Takes the request that this round is to answer.
    pub fn take_request(&mut self, now: Time, poller: &mut Poller, token: Token) -> Option<Asked> {
        while self.has_work() {
            let client = self.queue.pop_front()?;
            let Some((page, _)) = self.clients.get(&client).and_then(|client| client.asked) else { continue };
            if self.rate.allow(REQUESTS, now) {
                return Some(Asked { client, page });
            }
            self.cut(now, client, Cut::Flood, poller, token);
        }
        None
    }

    /// Sends an answer.
    pub fn answer(&mut self, now: Time, id: u64, response: &Response, poller: &mut Poller, token: Token) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let with_body = client.asked.is_none_or(|(_, body)| body);
        client.connection.send(now, response.bytes(with_body));
        client.answered = true;
        self.write(now, id, poller, token);
    }

    fn write(&mut self, now: Time, id: u64, poller: &mut Poller, token: Token) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        match client.connection.write() {
            Ok(_) if client.connection.pending_output() > 0 => {
                self.watch(now, id, Watch::Output, poller, token);
            }
            Ok(_) | Err(Broken) => self.cut(now, id, Cut::Done, poller, token),
        }
    }

    /// Cuts off the clients whose time is over.
    pub fn check_times(&mut self, now: Time, poller: &mut Poller, token: Token) {
        let is_due = |client: &Client| client.due().is_some_and(|due| due <= now);
        let due: Vec<(u64, Cut)> = self
            .clients
            .iter()
            .filter(|(_, client)| is_due(client))
            .map(|(id, client)| (*id, if client.answered { Cut::Slow } else { Cut::Silent }))
            .collect();
        for (id, cut) in due {
            self.cut(now, id, cut, poller, token);
        }
    }

    /// When the next client is due.
    pub fn next_due(&self) -> Option<Time> {
        self.clients.values().filter_map(Client::due).min()
    }

    fn cut(&mut self, now: Time, id: u64, cut: Cut, poller: &mut Poller, token: Token) {
        let Some(mut client) = self.clients.remove(&id) else { return };
        if client.watched.is_some() {
            poller.forget(token(id));
        }
        if let Some((status, reason)) = cut.reason() {
            if client.connection.pending_output() == 0 {
                client.connection.send(now, Response::line(status, reason).bytes(true));
                let _may_not_read = client.connection.write();
            }
            self.report(now, &client.peer, reason);
        }
        let mut bytes = [0u8; 4096];
        let unread = |_: &usize| matches!(client.connection.read(&mut bytes), Ok(1..));
        let _discarded = (0..DISCARD / 4096).take_while(unread).count();
    }

    fn report(&mut self, now: Time, peer: &str, reason: &str) {
        let Some(left_out) = self.log_limit.allow(now) else { return };
        let more = if left_out > 0 { format!("; {left_out} more were closed") } else { String::new() };
        info!("closed a client of the metrics ({peer}): {reason}{more}");
    }
}

/// Who connected, for the log.
fn peer(listener: &Listener, fd: BorrowedFd<'_>) -> String {
    if listener.is_unix() {
        let peer = control_socket::peer(fd).map(|peer| format!("pid {}, uid {}", peer.pid, peer.uid));
        return peer.unwrap_or_default();
    }
    let address =
        rustix::net::getpeername(fd).ok().flatten().and_then(|any| std::net::SocketAddr::try_from(any).ok());
    address.map(|address| address.to_string()).unwrap_or_default()
}
