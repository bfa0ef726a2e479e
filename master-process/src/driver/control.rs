//! The control socket in the loop: it is opened once the first workers run, and what clients ask for is carried out here.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing::info;

use super::context::{ClientCheck, Context, Deferred, Token};
use super::snapshot::{self, Identity};
use crate::config::{self, Config, MAX_WORKERS};
use crate::control::{
    self, Accepted, Asked, ErrorReply, NextAccept, Reply, Request, SavedServer, Server, Snapshot, Why,
};
use crate::policy::Event;
use crate::sys::control_socket::{Claim, Peer, Permissions, Unavailable};
use crate::sys::handover::{Incoming, Outgoing};
use crate::sys::{own_code, proc_stat};

/// The control socket.
#[derive(Debug)]
pub struct Control {
    opening: Opening,
    group: Option<u32>,
    server: Option<Server>,
    identity: Identity,
    check: ClientCheck,
}

/// How the socket is to be opened.
#[derive(Debug)]
enum Opening {
    /// Under a path that this supervisor has already, because the user chose it.
    Claimed(Claim),
    /// In the first directory that can be used, under the first name that is free.
    Search,
    /// Not at all, or it is open.
    Done,
}

/// The control socket as a supervisor hands it over.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct SavedControl {
    server: Option<SavedServer>,
    name: String,
    path: String,
}

impl Control {
    pub(super) fn save(&self, out: &mut Outgoing) -> SavedControl {
        let server = self.server.as_ref().map(|server| server.save(out));
        SavedControl { server, name: self.identity.name.clone(), path: self.identity.control.clone() }
    }

    /// Goes on with it. [`watch`](Self::watch) comes next.
    pub(super) fn resume(config: &Config, saved: SavedControl, from: &mut Incoming) -> Control {
        let server = saved.server.map(|server| Server::resume(server, config.control_group, from));
        let identity = Identity {
            name: saved.name,
            command: command(config),
            control: saved.path,
            memory_limit: config.limits.max_memory,
            cpu_limit: cpu_limit(config),
        };
        Control {
            opening: Opening::Done,
            group: config.control_group,
            server,
            identity,
            check: ClientCheck::default(),
        }
    }

    /// Waits for clients, and for those that are connected.
    pub(super) fn watch(&mut self, cx: &mut Context) {
        let now = cx.now();
        if let Some(server) = &mut self.server {
            cx.watch(server.listener(), Token::Control);
            server.watch(now, &mut cx.poller, token);
        }
    }

    /// Takes the path of the socket, if the user has chosen it or the name.
    ///
    /// # Errors
    /// Another supervisor has it, or it cannot be used.
    pub fn new(config: &Config) -> anyhow::Result<Control> {
        let command = command(config);
        let default = || control::default_name(config.command.first().map_or("".as_ref(), |word| word));
        let name = config.name.clone().unwrap_or_else(default);
        let opening = match (&config.control, &config.name) {
            (config::Control::Off, _) => Opening::Done,
            (config::Control::At(path), _) => Opening::Claimed(
                Claim::take(path)
                    .map_err(|error| anyhow::anyhow!("--control {}: {}", path.display(), error))?,
            ),
            (config::Control::Default, Some(name)) => Opening::Claimed(claim_named(name)?),
            (config::Control::Default, None) => Opening::Search,
        };
        let path = match &opening {
            Opening::Claimed(claim) => claim.path().display().to_string(),
            Opening::Search | Opening::Done => String::new(),
        };
        let (memory_limit, cpu_limit) = (config.limits.max_memory, cpu_limit(config));
        let identity = Identity { name, command, control: path, memory_limit, cpu_limit };
        Ok(Control {
            opening,
            group: config.control_group,
            server: None,
            identity,
            check: ClientCheck::default(),
        })
    }

    /// Opens the socket, once.
    pub(super) fn begin(&mut self, cx: &mut Context) {
        let claim = match std::mem::replace(&mut self.opening, Opening::Done) {
            Opening::Done => return,
            Opening::Claimed(claim) => Ok(claim),
            Opening::Search => search(&self.identity.name),
        };
        let opened = claim.and_then(|mut claim| {
            let listener = claim
                .listen(Permissions { group: self.group })
                .map_err(|error| format!("{}: {}", claim.path().display(), error))?;
            Ok((claim, listener))
        });
        match opened {
            Ok((claim, listener)) => {
                self.identity.control = claim.path().display().to_string();
                if self.identity.control.ends_with(".sock") {
                    self.identity.name = control::name_of(claim.path());
                }
                let server = Server::new(claim, listener, self.group);
                cx.watch(server.listener(), Token::Control);
                self.server = Some(server);
            }
            Err(why) => info!(
                "no control socket: {why}; master-process status and the other commands cannot reach this supervisor"
            ),
        }
    }

    /// Accepts clients.
    pub(super) fn accept(&mut self, cx: &mut Context) {
        let (now, Some(server)) = (cx.now(), &mut self.server) else { return };
        match server.accept(now, &mut cx.poller, token) {
            NextAccept::Watch => cx.watch(server.listener(), Token::Control),
            NextAccept::After(pause) => cx.schedule(pause, Deferred::Accept),
        }
    }

    /// Handles an event of a client.
    pub(super) fn client(&mut self, cx: &mut Context, number: u64) {
        let now = cx.now();
        if let Some(server) = &mut self.server {
            server.readable(now, number, &mut cx.poller, token);
        }
    }

    /// Carries out what clients have asked for, as much as fits into one round, and sends events to those that follow
    /// them. Returns whether there is more to do without waiting. `lent`: the terminal is lent to the only worker.
    pub(super) fn after_round(&mut self, cx: &mut Context, lent: bool) -> bool {
        let (now, Some(server)) = (cx.now(), &mut self.server) else { return false };
        let asked = server.take_requests(now, &mut cx.poller, token);
        let carries_out = !asked.is_empty();
        for asked in asked {
            self.carry_out(cx, asked, lent);
        }
        let (now, Some(server)) = (cx.now(), &mut self.server) else { return false };
        server.offer(now, cx.journal.ring(), &mut cx.poller, token);
        let more = server.has_work() || server.has_events(cx.journal.ring());
        self.schedule_check(cx);
        carries_out || more
    }

    /// Cuts off the clients that take too long.
    pub(super) fn check_times(&mut self, cx: &mut Context) {
        let now = cx.now();
        self.check = ClientCheck::default();
        if let Some(server) = &mut self.server {
            server.check_times(now, &mut cx.poller, token);
            if server.is_idle() {
                // The code of the answers is not needed until somebody asks again.
                own_code::unmap();
            }
        }
        self.schedule_check(cx);
    }

    fn schedule_check(&mut self, cx: &mut Context) {
        let due = self.server.as_ref().and_then(Server::next_due);
        self.check.schedule(cx, due, Deferred::Clients);
    }

    /// The state now.
    pub(super) fn snapshot(&self, cx: &mut Context) -> Snapshot {
        snapshot::snapshot(cx, &self.identity)
    }

    fn carry_out(&mut self, cx: &mut Context, asked: Asked, lent: bool) {
        let Asked { client, peer, request } = asked;
        let seq = cx.journal.last_seq();
        let reply = self.reply(cx, peer, request, lent);
        let (now, Some(server)) = (cx.now(), &mut self.server) else { return };
        let follows = match request {
            Request::Events { since, follow } => {
                let ring = cx.journal.ring();
                return server.send_events(now, client, (since, follow), ring, &mut cx.poller, token);
            }
            Request::Reload { follow }
            | Request::Stop { follow }
            | Request::Scale { follow, .. }
            | Request::Upgrade { follow }
            | Request::Restart { follow, .. } => follow && reply.error.is_none(),
            Request::Status | Request::Pause(_) | Request::Why { .. } => false,
        };
        if follows {
            server.follow(client, seq);
        }
        server.answer(now, client, &reply, &mut cx.poller, token);
    }

    fn reply(&self, cx: &mut Context, peer: Peer, request: Request, lent: bool) -> Reply {
        let accepted =
            Accepted { seq: cx.journal.last_seq(), name: self.identity.name.clone(), ..Accepted::default() };
        let done = |accepted| Reply { accepted: Some(accepted), ..Reply::new() };
        let refuse = |code: &str, message: String| Reply::error(ErrorReply::new(code, message));
        let changes = matches!(
            request,
            Request::Reload { .. } | Request::Scale { .. } | Request::Restart { .. } | Request::Pause(_)
        );
        if changes && cx.policy.is_stopping() {
            return refuse("stopping", "the supervisor is stopping".to_owned());
        }
        match request {
            Request::Status => {
                let status = Some(Box::new(self.snapshot(cx)));
                Reply { status, ..Reply::new() }
            }
            // It is answered with the events.
            Request::Events { .. } => Reply::new(),
            Request::Reload { .. } => {
                cx.request(Event::Reload, cause(peer));
                done(Accepted {
                    reload: Some(cx.policy.requested_generation()),
                    slots_total: Some(cx.policy.wanted()),
                    batch: Some(u32::try_from(cx.policy.reload_batch()).unwrap_or(u32::MAX)),
                    attempts: Some(cx.policy.attempts()),
                    ..accepted
                })
            }
            Request::Stop { .. } => {
                cx.request(Event::Stop, cause(peer));
                done(accepted)
            }
            Request::Scale { workers, .. } if !(1..=MAX_WORKERS).contains(&workers) => {
                Reply::error(ErrorReply::no_such_number(MAX_WORKERS))
            }
            Request::Scale { workers, .. } if lent && workers > 1 => {
                refuse("not_possible", "only one worker can read the terminal (--stdin inherit)".to_owned())
            }
            Request::Scale { workers, .. } => {
                let from = cx.policy.wanted();
                cx.request(Event::Scale(workers), cause(peer));
                let attempts = Some(cx.policy.attempts());
                done(Accepted { from: Some(from), to: Some(workers), attempts, ..accepted })
            }
            Request::Restart { slot, .. } if slot >= cx.policy.wanted() => no_such_slot(slot, cx),
            Request::Restart { slot, .. } => {
                let serving = cx.policy.workers_of(slot).first().map(|view| view.worker);
                let pid = serving.and_then(|worker| cx.workers.name(worker).pid);
                cx.request(Event::Restart(slot), cause(peer));
                let attempts = Some(cx.policy.attempts());
                done(Accepted { slot: Some(slot), pid, attempts, ..accepted })
            }
            Request::Upgrade { .. } => {
                cx.request_upgrade(cause(peer));
                done(accepted)
            }
            Request::Pause(paused) => {
                cx.request(Event::PauseMonitoring(paused), cause(peer));
                cx.meter.report_anew(None);
                done(Accepted { limits_paused: Some(paused), ..accepted })
            }
            Request::Why { slot } => {
                let ends: Vec<_> = cx.journal.ends_of(slot).cloned().collect();
                if slot >= cx.policy.wanted() && ends.is_empty() {
                    return no_such_slot(slot, cx);
                }
                let (name, restarts_total) = (self.identity.name.clone(), cx.journal.restarts_of(slot));
                Reply { why: Some(Why { name, slot, restarts_total, ends }), ..Reply::new() }
            }
        }
    }
}

/// The CPU that a worker may use, in percent of one. The default is none: it gives way to a program that uses more.
fn cpu_limit(config: &Config) -> Option<f64> {
    let limit = config.limits.max_cpu.filter(|_| !config.limits.cpu_is_default);
    // Nanoseconds in a second.
    limit.map(|limit| Duration::from_nanos(limit).as_secs_f64() * 100.0)
}

fn command(config: &Config) -> Vec<String> {
    config.command.iter().map(|word| word.to_string_lossy().into()).collect()
}

fn token(number: u64) -> u64 {
    Token::Client(number).encode()
}

fn no_such_slot(slot: u32, cx: &Context) -> Reply {
    let last = cx.policy.wanted() - 1;
    Reply::error(ErrorReply::no_such_slot(slot, last))
}

/// The client, as the log names who asked for something.
fn cause(peer: Peer) -> String {
    let Peer { pid, uid, .. } = peer;
    let name = rustix::process::Pid::from_raw(pid).and_then(proc_stat::name);
    match (pid, name) {
        (0, _) => format!("requested from outside this PID namespace (uid {uid})"),
        (_, Some(name)) => format!("requested by {name} (pid {pid}, uid {uid})"),
        (_, None) => format!("requested by a process (pid {pid}, uid {uid})"),
    }
}

fn directories() -> Vec<PathBuf> {
    control::directories(|name| std::env::var_os(name))
}

/// Takes the socket of a name that the user chose.
fn claim_named(name: &str) -> anyhow::Result<Claim> {
    let mut failed = Vec::new();
    for directory in directories() {
        let claimed =
            create(&directory).and_then(|()| Claim::take(&directory.join(control::file_name(name))));
        match claimed {
            Ok(claim) => return Ok(claim),
            Err(error @ Unavailable::Taken(_)) => {
                anyhow::bail!("--name {name}: {}", error);
            }
            Err(error) => failed.push(format!("{}: {}", directory.display(), error)),
        }
    }
    anyhow::bail!(
        "--name {name}: no directory for the control socket ({}); set XDG_RUNTIME_DIR, or say where with --control",
        failed.join("; ")
    )
}

/// Takes the first free socket among the default names.
fn search(name: &str) -> Result<Claim, String> {
    let mut failed = Vec::new();
    for directory in directories() {
        if let Err(error) = create(&directory) {
            failed.push(format!("{}: {error}", directory.display()));
            continue;
        }
        let numbered = (2..=control::MAX_NUMBER).map(|number| format!("{name}-{number}"));
        let last = std::iter::once_with(|| format!("{name}-{}", std::process::id()));
        for candidate in std::iter::once(name.to_owned()).chain(numbered).chain(last) {
            match Claim::take(&directory.join(control::file_name(&candidate))) {
                Ok(claim) => return Ok(claim),
                Err(Unavailable::Taken(_)) => {}
                Err(error) => {
                    failed.push(format!("{}: {}", directory.display(), error));
                    break;
                }
            }
        }
    }
    Err(failed.join("; "))
}

fn create(directory: &Path) -> Result<(), Unavailable> {
    let is_root = rustix::process::geteuid().is_root();
    control::create(directory, is_root).map_err(|error| Unavailable::Failed("mkdir", error))
}
