//! What workers tell the supervisor: the calls of their seccomp filters, which wait for an answer, and notifications.
//! The results that become known later, from helper threads and from queues, are handled here as well.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Pid;
use tracing::{debug, info, warn};

use super::context::{Context, Deferred, Token};
use super::exits::Exits;
use super::journal;
use super::starts::Starts;
use crate::config::Identity;
use crate::policy::{Event, ReadySignal, WorkerId};
use crate::share::{CLOSE_CHECK, Decision, Listens, Report, Watch};
use crate::sys::notify::{self, NotifySocket, WorkerUser};
use crate::sys::proc_stat;
use crate::sys::seccomp::{self, Notification};

/// How soon a queue is examined after a connection arrived, and how often while a connection waits. It limits the cost
/// of a busy socket to one wake-up in this time, however many connections arrive.
const QUEUE_CHECK_AFTER: Duration = Duration::from_secs(1);

/// How soon after a worker was added to the rotation its registered sockets are compared with its open descriptors. A
/// program that only probed a port has closed it by then. Clients of that port hang for this long.
const SWEEP_AFTER: Duration = Duration::from_secs(2);

/// How soon the result of a `bind` that the kernel executes is checked: the kernel needs microseconds. Each further
/// check waits twice as long.
const PENDING_CHECK_AFTER: Duration = Duration::from_millis(1);

/// The number of checks. A program that binds in order to connect does so within a few seconds. A program that listens
/// late must not wake the supervisor forever.
const PENDING_CHECKS: u32 = 13;

/// The number of messages that are read in one round of the loop. A worker that floods the socket must not block the
/// loop.
const MAX_MESSAGES: usize = 64;

/// The number of ancestors of a sender that are searched for a worker.
const MAX_ANCESTORS: usize = 16;

/// Answers one call for each readiness event. The watch is then set again, and reports at once if there is another
/// call.
pub(super) fn answer_call(cx: &mut Context, exits: &mut Exits, serial: u64) {
    let Some((worker, listener)) = cx.call_listeners.get(serial) else { return };
    let mut state = [PollFd::new(&listener, PollFlags::IN)];
    let _count = poll(&mut state, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    let state = state[0].revents();
    if !state.contains(PollFlags::IN) {
        // The kernel also reports ERR if it was interrupted (`seccomp_notify_poll` of kernel/seccomp.c), so ERR is
        // not evaluated.
        if state.intersects(PollFlags::HUP | PollFlags::NVAL) {
            // No process of the worker's tree is left.
            cx.call_listeners.close(serial, !cx.trees.has(serial));
            exits.tree_is_empty(cx, serial);
            if !cx.trees.has(serial) {
                cx.broker.forget(serial);
            }
            return;
        }
    } else if let Ok(call) = seccomp::receive(listener) {
        reply_to(cx, serial, &call);
    }
    if let Some((_, listener)) = cx.call_listeners.get(serial)
        && let Err(error) = cx.poller.watch(listener, Token::Calls(serial).encode())
    {
        warn!("cannot watch the system calls of {}: {error}; they are not answered", cx.workers.name(worker));
    }
}

/// Answers a call now, or later if the answer needs a lookup or the kernel lacks a resource. If the call continued
/// unanswered, the worker would get an address of its own, which the other workers then could not bind.
pub(super) fn reply_to(cx: &mut Context, serial: u64, call: &Notification) {
    let now = cx.now();
    let Some((worker, listener)) = cx.call_listeners.get(serial) else { return };
    let reply = match cx.broker.reply(now, listener, call, worker) {
        Decision::Reply(reply) => reply,
        Decision::Wait(wait) => return cx.schedule(wait, Deferred::Call(serial, *call)),
        Decision::AwaitScan => return,
    };
    debug!("{}: {:?}: {:?}", cx.workers.name(worker), call.call, reply.answer);
    if seccomp::answer(listener, call, reply.answer).is_err() {
        // The caller is dead, or will repeat the call. The effect of the call does not count until the worker has
        // received the answer.
        return cx.broker.undelivered(worker, reply.answer);
    }
    let signal = reply.listens.map(|listens| match listens {
        Listens::All => ReadySignal::Listen,
        Listens::Some => ReadySignal::ListenPartly,
    });
    if let Some(signal) = signal {
        cx.event(Event::ReadySignal(worker, signal));
    }
}

/// Reports as ready the workers that now listen on all expected addresses without having made another call. Returns
/// true if there are any.
pub(super) fn report_complete(cx: &mut Context) -> bool {
    let complete = cx.broker.take_complete();
    let any = !complete.is_empty();
    for worker in complete {
        cx.event(Event::ReadySignal(worker, ReadySignal::Listen));
    }
    any
}

/// Reads the results of the helper thread, and answers the calls that waited for them.
pub(super) fn read_scans(cx: &mut Context) {
    for (serial, call) in cx.broker.take_scans(cx.now()) {
        reply_to(cx, serial, &call);
    }
    if cx.broker.take_found_unowned() {
        cx.trees.survey();
    }
    watch_scans(cx);
}

pub(super) fn watch_scans(cx: &mut Context) {
    if let Err(error) = cx.poller.watch(cx.broker.scans(), Token::Scans.encode()) {
        warn!("cannot watch the helper thread: {error}; listeners that workers close may go unnoticed");
    }
}

/// Handles the events of sockets: connections arrived, or the sockets were shut down.
pub(super) fn read_queues(cx: &mut Context) {
    for inode in cx.broker.take_queue_events(cx.now()) {
        cx.schedule(QUEUE_CHECK_AFTER, Deferred::Queue(inode));
    }
    watch_queues(cx);
}

pub(super) fn watch_queues(cx: &mut Context) {
    if let Err(error) = cx.poller.watch(cx.broker.queue_events(), Token::Queues.encode()) {
        warn!("cannot watch the queues: {error}; a worker that stops accepting may go unnoticed");
    }
}

/// Checks whether the queue of a socket moves.
pub(super) fn check_queue(cx: &mut Context, inode: u64) {
    match cx.broker.check_queue(cx.now(), inode) {
        Watch::ForConnections => cx.broker.watch_queue(cx.now(), inode),
        Watch::Soon => cx.schedule(QUEUE_CHECK_AFTER, Deferred::Queue(inode)),
        Watch::Over => {}
    }
}

/// Checks whether a socket is bound or listens.
pub(super) fn check_pending(cx: &mut Context, inode: u64, checks: u32) {
    let is_last = checks == PENDING_CHECKS;
    if cx.broker.check_pending(cx.now(), inode, is_last) == Watch::Soon {
        let checks = checks + 1;
        let wait = PENDING_CHECK_AFTER * 2u32.saturating_pow(checks.min(PENDING_CHECKS));
        cx.schedule(wait, Deferred::Pending(inode, checks));
    }
}

/// Adds a worker to the rotation, and schedules the one comparison of its registered sockets with its open descriptors.
pub(super) fn add_to_rotation(cx: &mut Context, worker: WorkerId) {
    cx.broker.set_in_rotation(cx.now(), worker.serial, true);
    cx.schedule(SWEEP_AFTER, Deferred::Sweep(worker.serial));
}

/// Compares the registered sockets of a worker with its open descriptors.
pub(super) fn sweep(cx: &mut Context, serial: u64) {
    match cx.workers.get(serial).map(|entry| entry.id.slot) {
        // The sockets that only its predecessor served are kept as long as the predecessor may come back.
        Some(slot) if cx.policy.is_on_probation(slot) => cx.schedule(SWEEP_AFTER, Deferred::Sweep(serial)),
        Some(_) | None => cx.broker.sweep(cx.now(), serial),
    }
}

/// The state of the work that follows from the workers' calls.
#[derive(Debug, Default)]
pub(super) struct Calls {
    /// Whether a check of the workers' listeners is scheduled.
    check_scheduled: bool,
    /// Whether the warning about a call that could not be inspected was logged. It is logged once, not for each call.
    unseen_reported: bool,
}

impl Calls {
    /// Whether the warning about a call that could not be inspected was logged.
    pub(super) fn unseen_reported(&self) -> bool {
        self.unseen_reported
    }

    pub(super) fn resume(unseen_reported: bool) -> Calls {
        Calls { check_scheduled: false, unseen_reported }
    }

    /// Handles the consequences of socket sharing: watches new queues, schedules checks of pending binds, and logs the
    /// reports.
    pub(super) fn after_round(&mut self, cx: &mut Context) {
        let now = cx.now();
        if cx.policy.is_stopping() {
            cx.broker.freeze();
        }
        cx.broker.reconcile(now);
        let policy = &cx.policy;
        cx.broker.abandon_slots(now, |slot| policy.expects_start(slot) || policy.is_on_probation(slot));
        if cx.meter.watches_listeners()
            && let Some(places) = cx.broker.take_relocated()
        {
            cx.meter.watch_listeners(places);
        }
        for inode in cx.broker.take_pending() {
            cx.schedule(PENDING_CHECK_AFTER, Deferred::Pending(inode, 0));
        }
        if !self.check_scheduled && cx.broker.wants_check(now) {
            self.check_scheduled = true;
            cx.schedule(CLOSE_CHECK, Deferred::CheckListeners);
        }
        for report in cx.broker.take_reports() {
            journal::sharing(cx, &report);
            self.log(cx, &report);
        }
    }

    fn log(&mut self, cx: &Context, report: &Report) {
        match report {
            Report::Listening { address } | Report::Closed { address } | Report::Restored { address, .. } => {
                info!(address, "{report}")
            }
            Report::Unwatched { .. } | Report::NotRestored { .. } => warn!("{report}"),
            Report::NotSelected { address, .. }
            | Report::NotRenamed { address, .. }
            | Report::Held { address, .. }
            | Report::TakenOver { address, .. } => {
                warn!(address, "{report}");
            }
            Report::Refused { worker, address, .. }
            | Report::Stalled { worker, address, .. }
            | Report::Bypassed { worker, address }
            | Report::Unshared { worker, address } => {
                warn!(worker = worker.slot, address, "{} {report}", cx.workers.name(*worker));
            }
            Report::TooManyListeners { worker, .. } => {
                warn!(worker = worker.slot, "{} {report}", cx.workers.name(*worker));
            }
            Report::QueueFull { worker: Some(worker), address, .. } => {
                warn!(worker = worker.slot, address, "{}: {report}", cx.workers.name(*worker));
            }
            Report::QueueFull { worker: None, address, .. } => warn!(address, "{report}"),
            Report::Accepts { worker, address } => {
                info!(worker = worker.slot, address, "{} {report}", cx.workers.name(*worker));
            }
            Report::Unseen { worker, .. } => {
                if !std::mem::replace(&mut self.unseen_reported, true) {
                    let worker_name = cx.workers.name(*worker);
                    warn!(
                        worker = worker.slot,
                        "{worker_name}: {report}; further such calls are not reported"
                    );
                }
            }
        }
    }

    /// Checks whether workers still have their listeners open.
    pub(super) fn check_listeners(&mut self, cx: &mut Context) {
        cx.broker.check_listeners();
        self.check_scheduled = false;
    }
}

/// Opens the socket that the workers send notifications to.
pub(super) fn open_notify_socket(identity: Option<&Identity>) -> std::io::Result<NotifySocket> {
    let opened = open_notify(identity)?;
    for (base, error) in &opened.failed {
        debug!("cannot put the notify socket in {}: {error}; trying another", base.display());
    }
    if !opened.is_private {
        info!(
            "no private directory for the notify socket: using an abstract address, open to every local user"
        );
    }
    Ok(opened.socket)
}

/// The same without a log.
pub(super) fn open_notify(identity: Option<&Identity>) -> std::io::Result<notify::Opened> {
    let user = WorkerUser {
        uid: identity
            .and_then(|identity| identity.uid)
            .unwrap_or_else(|| rustix::process::geteuid().as_raw()),
        gid: identity.map(|identity| identity.gid),
        groups: identity.map_or(&[], |identity| &identity.groups),
    };
    notify::open(user)
}

/// Reads the notifications of workers.
pub(super) fn read_messages(notify: &NotifySocket, cx: &mut Context, starts: &mut Starts) {
    for _ in 0..MAX_MESSAGES {
        let Some(message) = notify.receive() else {
            break;
        };
        let serial = message.sender.and_then(|sender| worker_of(cx, sender)).or_else(|| {
            starts.catch_up(cx);
            message.sender.and_then(|sender| worker_of(cx, sender))
        });
        let Some(serial) = serial.filter(|_| !message.is_sender_gone()) else {
            let pid = message.sender.map(Pid::as_raw_pid);
            debug!("ignored a notification of process {pid:?}: it belongs to no worker");
            continue;
        };
        let parsed = notify::parse(&message.text);
        let Some(id) = cx.workers.get(serial).map(|entry| entry.id) else {
            continue;
        };
        if let Some(status) = parsed.status {
            debug!(worker = id.slot, status, "{} status: {status}", cx.workers.name(id));
        }
        if let Some(paused) = parsed.pauses_monitor {
            cx.event(Event::WatchesItself(id, paused));
            cx.meter.report_anew(Some(id));
        }
        if parsed.ready {
            cx.workers.notified(serial, message.sender);
            cx.event(Event::ReadySignal(id, ReadySignal::Notify));
        }
    }
    if let Err(error) = cx.poller.watch(notify.watched(), Token::Messages.encode()) {
        warn!("cannot watch the notify socket: {error}; notifications are not read");
    }
}

/// The worker that a process is or descends from. For example, a shell script of a worker runs `systemd-notify`.
fn worker_of(cx: &Context, sender: Pid) -> Option<u64> {
    let group = proc_stat::of(sender).ok().and_then(|stat| stat.group);
    if let Some(serial) = [Some(sender), group]
        .into_iter()
        .flatten()
        .find_map(|pid| cx.workers.serial_of(pid))
        .or_else(|| cx.trees.owner(sender))
    {
        return Some(serial);
    }
    let mut pid = sender;
    for _ in 0..MAX_ANCESTORS {
        pid = parent_of(pid)?;
        if let Some(serial) = cx.workers.serial_of(pid).or_else(|| cx.trees.owner(pid)) {
            return Some(serial);
        }
    }
    None
}

fn parent_of(pid: Pid) -> Option<Pid> {
    proc_stat::of(pid).ok()?.parent
}

/// Reads the readiness pipe of a worker.
pub(super) fn read_ready_pipe(cx: &mut Context, serial: u64) {
    let Some(entry) = cx.workers.get_mut(serial) else {
        return;
    };
    let Some(pipe) = &entry.ready_pipe else { return };
    let id = entry.id;
    let mut text = [0u8; 256];
    match rustix::io::read(pipe, &mut text) {
        Ok(0) => entry.ready_pipe = None,
        Ok(length) if text[..length].contains(&b'\n') => {
            entry.ready_pipe = None;
            cx.event(Event::ReadySignal(id, ReadySignal::Notify));
        }
        Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {
            if let Err(error) = cx.poller.watch(pipe.as_fd(), Token::ReadyPipe(serial).encode()) {
                warn!("cannot watch the readiness pipe of {}: {error}; it is not read", cx.workers.name(id));
            }
        }
        Err(error) => {
            entry.ready_pipe = None;
            warn!("cannot read the readiness pipe of {}: {error}; closed it", cx.workers.name(id));
        }
    }
}
