//! The server's side of the socket: it accepts, reads and writes without ever waiting, and hands complete requests over.
//!
//! Everything is bounded: the clients, the size and number of their requests, the output that waits, the time that each
//! may take, and the work of one round of the loop.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};
use tracing::{debug, info};

use super::accepting::{Accepting, NextAccept};
use super::clients::{Client, Cut, SavedClient};
use super::connection::Watch;
use super::log_limit::LogLimit;
use super::protocol::{ErrorReply, Reply, Request, parse_request};
use super::ring::Ring;
use crate::policy::Time;
use crate::sys::control_socket::{self, Claim, Peer, SavedClaim};
use crate::sys::handover::{Fd, Incoming, Outgoing};
use crate::sys::poller::Poller;

/// The most clients at a time. Each can cost an answer's size of memory and a descriptor.
const MAX_CLIENTS: usize = 64;

/// The answers that one round makes. One of a thousand workers takes about a millisecond.
const REQUESTS_PER_ROUND: usize = 1;

/// The output that waits for all clients together, in bytes, above which no further request is carried out.
const MAX_OUTPUT: usize = 8 << 20;

/// Who may use the socket.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowed {
    uid: u32,
    group: Option<u32>,
}

/// A request that is to be carried out now.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// The client.
    pub client: u64,
    /// Who it is.
    pub peer: Peer,
    /// What it asks for.
    pub request: Request,
}

/// The control socket and its clients.
#[derive(Debug)]
pub struct Server {
    claim: Claim,
    listener: OwnedFd,
    allowed: Allowed,
    clients: BTreeMap<u64, Client>,
    next: u64,
    /// The clients whose requests are complete, in the order in which these came.
    queue: VecDeque<u64>,
    accepting: Accepting,
    log_limit: LogLimit,
}

/// Encodes the numbers of clients as tokens of the poller.
type Token = fn(u64) -> u64;

/// A server as a supervisor hands it over, with its clients.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SavedServer {
    claim: SavedClaim,
    listener: Fd,
    clients: Vec<(u64, SavedClient)>,
    next: u64,
    queue: VecDeque<u64>,
}

impl Server {
    /// The state now.
    pub fn save(&self, out: &mut Outgoing) -> SavedServer {
        let clients = self.clients.iter().map(|(id, client)| (*id, client.save(out))).collect();
        SavedServer {
            claim: self.claim.save(out),
            listener: out.keep(self.listener.as_fd()),
            clients,
            next: self.next,
            queue: self.queue.clone(),
        }
    }

    /// A server that goes on from this state. [`watch`](Self::watch) has to be called next.
    pub fn resume(saved: SavedServer, group: Option<u32>, from: &mut Incoming) -> Server {
        let SavedServer { claim, listener, clients, next, queue } = saved;
        let mut server = Server::new(Claim::resume(claim, from), from.take(listener), group);
        for (id, client) in clients {
            server.clients.insert(id, Client::resume(client, from));
        }
        (server.next, server.queue) = (next, queue);
        server
    }

    /// Waits for what comes next of each client.
    pub fn watch(&mut self, now: Time, poller: &mut Poller, token: Token) {
        for id in self.clients.keys().copied().collect::<Vec<_>>() {
            self.proceed(now, id, poller, token);
        }
    }

    /// A server on an open socket.
    pub fn new(claim: Claim, listener: OwnedFd, group: Option<u32>) -> Server {
        let allowed = Allowed { uid: rustix::process::geteuid().as_raw(), group };
        Server {
            claim,
            listener,
            allowed,
            clients: BTreeMap::new(),
            next: 0,
            queue: VecDeque::new(),
            accepting: Accepting::new(),
            log_limit: LogLimit::default(),
        }
    }

    /// The path of the socket.
    pub fn path(&self) -> &std::path::Path {
        self.claim.path()
    }

    /// The listening socket.
    pub fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Whether there is no client.
    pub fn is_idle(&self) -> bool {
        self.clients.is_empty()
    }

    /// Whether there is work that the next round is to do without waiting.
    pub fn has_work(&self) -> bool {
        !self.queue.is_empty() && self.output() < MAX_OUTPUT
    }

    fn output(&self) -> usize {
        self.clients.values().map(Client::pending_output).sum()
    }

    /// Accepts connections, a few at a time, and says when to accept the next ones.
    pub fn accept(&mut self, now: Time, poller: &mut Poller, token: Token) -> NextAccept {
        let (accepted, next, result) = self.accepting.accept(now, self.listener.as_fd());
        for fd in accepted {
            self.add(now, fd, poller, token);
        }
        if let Err(error) = &result {
            debug!("cannot accept a client of the control socket: {error}");
        }
        next
    }

    fn add(&mut self, now: Time, fd: OwnedFd, poller: &mut Poller, token: Token) {
        let Ok(peer) = control_socket::peer(fd.as_fd()) else { return };
        let mut client = Client::new(fd, peer, now);
        let refusal = if !self.allowed.permits(&client) {
            Some((
                "not_permitted",
                "only root, the supervisor's user and --control-group may use this socket",
            ))
        } else if self.is_full(now, poller, token) {
            Some(("too_many_clients", "too many clients: try again later"))
        } else {
            None
        };
        if let Some((code, message)) = refusal {
            client.send(now, Reply::error(ErrorReply::new(code, message.to_owned())).line());
            let _not_read = client.write(now);
            self.report(now, peer, message);
            return;
        }
        self.next += 1;
        let id = self.next;
        self.clients.insert(id, client);
        // Most clients have sent their request by now.
        self.readable(now, id, poller, token);
    }

    /// Whether there is no room for another client. The oldest one that has asked for nothing gives way.
    fn is_full(&mut self, now: Time, poller: &mut Poller, token: Token) -> bool {
        if self.clients.len() < MAX_CLIENTS {
            return false;
        }
        let silent = self.clients.iter().find(|(_, client)| client.is_silent()).map(|(id, _)| *id);
        if let Some(id) = silent {
            self.cut(now, id, Cut::Silent, poller, token);
        }
        silent.is_none()
    }

    /// Handles what the poller reports of a client.
    pub fn readable(&mut self, now: Time, id: u64, poller: &mut Poller, token: Token) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let watched = client.watched.take();
        if watched == Some(Watch::HangUp) && client.is_hung_up() {
            return self.cut(now, id, Cut::Done, poller, token);
        }
        let done = client
            .write(now)
            .and_then(|()| if client.pending_output() > 0 || client.queued { Ok(()) } else { client.read() });
        match done {
            Ok(()) => self.proceed(now, id, poller, token),
            Err(cut) => self.cut(now, id, cut, poller, token),
        }
    }

    /// Queues a complete request, or waits for what comes next.
    fn proceed(&mut self, now: Time, id: u64, poller: &mut Poller, token: Token) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        if client.pending_output() == 0 && !client.queued && client.has_request() {
            client.queued = true;
            self.queue.push_back(id);
        }
        if let Some(cut) = client.is_done() {
            return self.cut(now, id, cut, poller, token);
        }
        let wants = client.wants();
        if client.watched == Some(wants) {
            return;
        }
        if client.watched.replace(wants).is_some() {
            poller.forget(token(id));
        }
        if wants.begin(client.fd(), poller, token(id)).is_err() {
            self.cut(now, id, Cut::Done, poller, token);
        }
    }

    /// Takes the requests that this round is to carry out. Those that are none are answered.
    pub fn take_requests(&mut self, now: Time, poller: &mut Poller, token: Token) -> Vec<Asked> {
        let mut asked = Vec::new();
        while asked.len() < REQUESTS_PER_ROUND && self.has_work() {
            let Some(id) = self.queue.pop_front() else { break };
            let Some(client) = self.clients.get_mut(&id) else { continue };
            client.queued = false;
            let peer = client.peer;
            let line = match client.take_request(now) {
                Ok(Some(line)) => line,
                Ok(None) => continue,
                Err(cut) => {
                    self.cut(now, id, cut, poller, token);
                    continue;
                }
            };
            match parse_request(&line) {
                Ok(request) => asked.push(Asked { client: id, peer, request }),
                Err(error) => {
                    let is_last = client.is_bad();
                    self.answer(now, id, &Reply::error(error), poller, token);
                    if let Err(cut) = is_last {
                        self.cut(now, id, cut, poller, token);
                    }
                    // Each costs as much as a good one.
                    break;
                }
            }
        }
        asked
    }

    /// Sends an answer.
    pub fn answer(&mut self, now: Time, id: u64, reply: &Reply, poller: &mut Poller, token: Token) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        client.send(now, reply.line());
        self.write(now, id, poller, token);
    }

    /// Sends the events after `since`, and with `follow` all further ones.
    pub(crate) fn send_events(
        &mut self,
        now: Time,
        id: u64,
        (since, follow): (u64, bool),
        ring: &Ring,
        poller: &mut Poller,
        token: Token,
    ) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        client.follows = Some(since);
        client.send_events(now, ring, follow);
        self.write(now, id, poller, token);
    }

    fn write(&mut self, now: Time, id: u64, poller: &mut Poller, token: Token) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        match client.write(now) {
            Ok(()) => self.proceed(now, id, poller, token),
            Err(cut) => self.cut(now, id, cut, poller, token),
        }
    }

    /// Has a client follow the events from here on.
    pub fn follow(&mut self, id: u64, since: u64) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.follows = Some(since);
        }
    }

    /// Sends new events to the clients that follow them.
    pub(crate) fn offer(&mut self, now: Time, ring: &Ring, poller: &mut Poller, token: Token) {
        let lacks = |client: &Client| {
            client.pending_output() == 0 && client.follows.is_some_and(|seq| seq < ring.last())
        };
        let behind: Vec<u64> =
            self.clients.iter().filter(|(_, client)| lacks(client)).map(|(id, _)| *id).collect();
        for id in behind {
            if let Some(client) = self.clients.get_mut(&id) {
                client.send_events(now, ring, true);
            }
            self.write(now, id, poller, token);
        }
    }

    /// Whether a follower has room for events that it has not got. Then the next round is not to wait.
    pub(crate) fn has_events(&self, ring: &Ring) -> bool {
        let lacks = |client: &Client| client.follows.is_some_and(|seq| seq < ring.last());
        self.clients.values().any(|client| client.pending_output() == 0 && lacks(client))
    }

    /// Cuts off the clients whose time is over.
    pub fn check_times(&mut self, now: Time, poller: &mut Poller, token: Token) {
        let is_due = |client: &Client| client.due().is_some_and(|due| due <= now);
        let due: Vec<(u64, Cut)> = self
            .clients
            .iter()
            .filter(|(_, client)| is_due(client))
            .map(|(id, client)| (*id, client.overdue()))
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
        if let Some(reason) = cut.reason() {
            if client.pending_output() == 0 {
                client.send(now, Reply::error(ErrorReply::new("closed", reason.to_owned())).line());
                let _may_not_read = client.write(now);
            }
            self.report(now, client.peer, reason);
        }
    }

    fn report(&mut self, now: Time, peer: Peer, reason: &str) {
        let Some(left_out) = self.log_limit.allow(now) else { return };
        let more = if left_out > 0 { format!("; {left_out} more were closed") } else { String::new() };
        let Peer { pid, uid, .. } = peer;
        info!(pid, uid, "closed a client of the control socket (pid {pid}, uid {uid}): {reason}{more}");
    }
}

impl Allowed {
    fn permits(self, client: &Client) -> bool {
        let peer = client.peer;
        let in_group = || self.group.is_some_and(|group| control_socket::has_group(client.fd(), peer, group));
        peer.uid == 0 || peer.uid == self.uid || in_group()
    }
}
