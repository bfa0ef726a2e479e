//! What the service manager is told: sd_notify(3).
//!
//! After each event that the journal has recorded, the state is compared with what the service manager knows, and the
//! difference is sent. So nothing here has to be kept by whoever restores the state of a supervisor: a state that is
//! announced again is true again.
//!
//! No message waits for the service manager. One that finds its queue full is sent a moment later.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::context::{Context, Deferred};
use super::fd_store::FdStore;
use crate::config::Config;
use crate::control::ReloadState;
use crate::policy::Time;
use crate::sys::sd_notify::{self, ManagerSocket, NotSent};

/// How soon a message is sent again that found the service manager's queue full.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// The time between two sentences about the state. A start of a thousand workers is not a thousand messages.
const STATUS_EVERY: Duration = Duration::from_millis(250);

/// The number of messages that wait. The service manager has not read for minutes then, and the oldest ones matter least.
const MAX_WAITING: usize = 32;

/// The longest sentence. The reason of a failed reload may contain what a program has printed.
const MAX_STATUS: usize = 200;

/// The shortest time between two messages for the watchdog: a period of microseconds is a mistake, which must not keep a CPU
/// busy.
const FEED_AT_MOST_EVERY: Duration = Duration::from_millis(10);

/// What a stop takes at most in addition to `--kill-timeout`: the end of the processes after SIGKILL.
const STOP_MARGIN: Duration = Duration::from_secs(7);

/// The sentence while another program takes over.
const UPGRADING: &str = "upgrading";

/// The connection to the service manager, if one has started this process.
#[derive(Debug, Default)]
pub(super) struct ServiceManager(Option<Box<Connection>>);

#[derive(Debug)]
struct Connection {
    socket: ManagerSocket,
    known: State,
    /// `None`: it keeps no descriptors.
    store: Option<FdStore>,
    /// Messages that found the queue full.
    waiting: VecDeque<String>,
    retry_scheduled: bool,
    /// Whether a failure was logged. It is logged once.
    failed: bool,
    /// The last event of the journal that was looked at.
    seen: Option<u64>,
    /// When the last sentence was sent.
    status_at: Option<Time>,
    status_scheduled: bool,
    /// Half of `WATCHDOG_USEC`.
    feed_every: Option<Duration>,
    limits: Limits,
}

/// What a supervisor hands over of it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct SavedManager {
    known: State,
    /// The names and inode numbers of the listeners that the service manager keeps.
    kept: Vec<(String, u64)>,
    waiting: VecDeque<String>,
}

/// The state, as far as the service manager is told of it: as it is, and as that knows it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct State {
    /// Whether each slot has had a ready worker.
    ready: bool,
    /// The number of reloads so far.
    generation: u32,
    /// Whether a reload is in progress.
    reloading: bool,
    stopping: bool,
    /// It in a sentence.
    status: String,
    /// The slots that were ready, or are replaced.
    progress: u32,
}

/// How long the steps take at most.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// One of a start or a reload.
    step: Duration,
    stop: Duration,
}

impl ServiceManager {
    /// The service manager that `NOTIFY_SOCKET` names. `kept`: the listeners that it keeps since an earlier supervisor,
    /// with their inode numbers.
    pub(super) fn new(config: &Config, kept: Vec<(String, u64)>) -> ServiceManager {
        let var = |name: &str| std::env::var_os(name);
        let Some(address) = var("NOTIFY_SOCKET").filter(|address| !address.is_empty()) else {
            return ServiceManager::default();
        };
        let socket = match ManagerSocket::open(&address) {
            Ok(socket) => socket,
            Err(error) => {
                let address = address.to_string_lossy();
                warn!("cannot notify the service manager: NOTIFY_SOCKET={address}: {error}");
                return ServiceManager::default();
            }
        };
        let attempt = config.ready_timeout + config.kill_timeout + config.throttle_max;
        ServiceManager(Some(Box::new(Connection {
            socket,
            known: State::default(),
            store: Some(sd_notify::store_size(var))
                .filter(|size| *size > 0)
                .map(|size| FdStore::new(size, kept)),
            waiting: VecDeque::new(),
            retry_scheduled: false,
            failed: false,
            seen: None,
            status_at: None,
            status_scheduled: false,
            feed_every: sd_notify::watchdog(var).map(|period| (period / 2).max(FEED_AT_MOST_EVERY)),
            limits: Limits {
                step: attempt.saturating_mul(config.reload_attempts).saturating_add(config.drain),
                stop: config.kill_timeout.saturating_add(STOP_MARGIN),
            },
        })))
    }

    pub(super) fn save(&self) -> Option<SavedManager> {
        let connection = self.0.as_ref()?;
        let kept = connection.store.as_ref().map(FdStore::stored).unwrap_or_default();
        Some(SavedManager { known: connection.known.clone(), kept, waiting: connection.waiting.clone() })
    }

    /// The service manager of a supervisor that goes on from another one.
    pub(super) fn resume(config: &Config, saved: SavedManager) -> ServiceManager {
        let mut manager = ServiceManager::new(config, saved.kept);
        if let Some(connection) = &mut manager.0 {
            (connection.known, connection.waiting) = (saved.known, saved.waiting);
        }
        manager
    }

    /// Tells that another program is about to take over. The next state takes the place of this sentence.
    pub(super) fn upgrading(&mut self, cx: &mut Context) {
        let Some(connection) = &mut self.0 else { return };
        UPGRADING.clone_into(&mut connection.known.status);
        connection.seen = None;
        connection.send(cx, format!("STATUS={UPGRADING}\n"));
    }

    /// Feeds the watchdog, from the loop, so that a loop that is stuck is noticed.
    pub(super) fn feed(&mut self, cx: &mut Context) {
        let Some(connection) = &mut self.0 else { return };
        let Some(every) = connection.feed_every else { return };
        connection.send(cx, "WATCHDOG=1\n".to_owned());
        cx.schedule(every, Deferred::Watchdog);
    }

    /// Sends what found the queue full.
    pub(super) fn retry(&mut self, cx: &mut Context) {
        let Some(connection) = &mut self.0 else { return };
        connection.retry_scheduled = false;
        connection.flush(cx);
    }

    /// The next sentence about the state is due.
    pub(super) fn status_due(&mut self) {
        if let Some(connection) = &mut self.0 {
            connection.status_scheduled = false;
            connection.seen = None;
        }
    }

    /// A comparison of the kept listeners is due.
    pub(super) fn store_due(&mut self) {
        if let Some(store) = self.0.as_mut().and_then(|connection| connection.store.as_mut()) {
            store.due();
        }
    }

    /// Tells the service manager what has changed in this round of the loop.
    pub(super) fn after_round(&mut self, cx: &mut Context) {
        let Some(connection) = &mut self.0 else { return };
        if let Some(store) = &mut connection.store {
            store.after_round(cx, &connection.socket);
        }
        let last = cx.journal.last_seq();
        if connection.seen.replace(last) == Some(last) {
            return;
        }
        let state = connection.state(cx);
        let messages = connection.known.update(&state, connection.limits, sd_notify::monotonic_usec);
        let any = !messages.is_empty();
        for message in messages {
            connection.send(cx, message);
        }
        if any {
            connection.status_at = Some(cx.now());
        } else {
            connection.update_status(cx, state.status);
        }
    }
}

impl Connection {
    fn state(&self, cx: &mut Context) -> State {
        let wanted = cx.policy.wanted();
        // Slots that were ready once need no second look.
        let mut progress = if self.known.ready { wanted } else { self.known.progress };
        while progress < wanted && cx.policy.has_been_ready(progress) {
            progress += 1;
        }
        let left = cx.policy.reload_progress().map(|reload| u32::try_from(reload.left).unwrap_or(u32::MAX));
        State {
            ready: progress >= wanted,
            generation: cx.policy.generation(),
            reloading: left.is_some(),
            stopping: cx.policy.is_stopping(),
            status: status(cx, left),
            progress: left.filter(|_| self.known.ready).map_or(progress, |left| wanted.saturating_sub(left)),
        }
    }

    fn update_status(&mut self, cx: &mut Context, status: String) {
        if status == self.known.status || self.status_scheduled {
            return;
        }
        let now = cx.now();
        let wait = self.status_at.map_or(Duration::ZERO, |last| last.after(STATUS_EVERY).since(now));
        if wait.is_zero() {
            self.send(cx, format!("STATUS={status}\n"));
            self.known.status = status;
            self.status_at = Some(now);
        } else {
            self.status_scheduled = true;
            cx.schedule(wait, Deferred::ManagerStatus);
        }
    }

    /// Sends a message after those that wait.
    fn send(&mut self, cx: &mut Context, message: String) {
        let is_repeated = |other: &String| *other == message || is_status(other) && is_status(&message);
        self.waiting.retain(|other| !is_repeated(other));
        if self.waiting.len() == MAX_WAITING {
            self.waiting.pop_front();
        }
        self.waiting.push_back(message);
        self.flush(cx);
    }

    fn flush(&mut self, cx: &mut Context) {
        while let Some(message) = self.waiting.pop_front() {
            match self.socket.send(&message, None) {
                Ok(()) => {}
                Err(NotSent::Full) => {
                    self.waiting.push_front(message);
                    if !self.retry_scheduled {
                        self.retry_scheduled = true;
                        cx.schedule(RETRY_AFTER, Deferred::ManagerRetry);
                    }
                    return;
                }
                Err(NotSent::Failed(error)) => {
                    if !std::mem::replace(&mut self.failed, true) {
                        warn!(
                            "cannot notify the service manager: {error}; it does not learn the state of this service"
                        );
                    }
                }
            }
        }
    }
}

fn is_status(message: &str) -> bool {
    message.starts_with("STATUS=")
}

impl State {
    /// The messages that lead from this state, which is known, to the other one.
    fn update(&mut self, state: &State, limits: Limits, clock: impl Fn() -> u64) -> Vec<String> {
        let mut messages = Vec::new();
        let mut add = |lines: &str, extend: Option<Duration>| {
            let mut message = format!("{lines}STATUS={}\n", state.status);
            if let Some(extend) = extend {
                let _infallible = writeln!(message, "EXTEND_TIMEOUT_USEC={}", usec(extend));
            }
            messages.push(message);
        };
        let progressed = state.progress > self.progress;
        self.progress = state.progress;
        if state.stopping {
            if !std::mem::replace(&mut self.stopping, true) {
                add("STOPPING=1\n", Some(limits.stop));
            }
        } else if !self.ready {
            // A reload of a service that still starts is part of the start.
            self.generation = state.generation;
            if state.ready {
                self.ready = true;
                add("READY=1\n", None);
            } else if progressed {
                add("", Some(limits.step));
            }
        } else {
            if state.generation != self.generation {
                // Also when a newer reload takes the place of one in progress. Only a message that is younger than the
                // signal counts as the answer to it.
                self.generation = state.generation;
                self.reloading = true;
                add(&format!("RELOADING=1\nMONOTONIC_USEC={}\n", clock()), Some(limits.step));
            } else if state.reloading && progressed {
                add("", Some(limits.step));
            }
            if self.reloading && !state.reloading {
                self.reloading = false;
                add("READY=1\n", None);
            }
        }
        if !messages.is_empty() {
            self.status.clone_from(&state.status);
        }
        messages
    }
}

fn usec(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

/// The state in a sentence. `left`: the slots that the reload in progress has not replaced yet.
fn status(cx: &mut Context, left: Option<u32>) -> String {
    if cx.policy.is_stopping() {
        return match cx.workers.alive().count() {
            1 => "stopping: 1 worker left".to_owned(),
            workers => format!("stopping: {workers} workers left"),
        };
    }
    let wanted = cx.policy.wanted();
    let is_hung = |slot: u32| {
        let mut views = cx.policy.workers_of(slot).into_iter();
        views.any(|view| cx.workers.get(view.worker.serial).is_some_and(|entry| entry.history.hung.is_some()))
    };
    let ready = (0..wanted).filter(|slot| cx.policy.is_ready(*slot) && !is_hung(*slot)).count();
    let mut text = format!("{ready} of {wanted} ready");
    if let Some(reload) = &cx.journal.reload {
        let number = reload.number;
        let _infallible = match (reload.ended, left) {
            (None, Some(left)) => {
                write!(
                    text,
                    ", reload {number}: {} of {} replaced",
                    reload.slots.saturating_sub(left),
                    reload.slots
                )
            }
            (Some((ReloadState::GivenUp, _)), _) => {
                let error = reload.error.as_ref();
                let slot = error.and_then(|error| error.slot).map(|slot| format!(": slot {slot}"));
                let why = error.map(|error| format!(": {}", error.message));
                write!(
                    text,
                    ", reload {number} failed{}{}",
                    slot.unwrap_or_default(),
                    why.unwrap_or_default()
                )
            }
            (None, None) | (Some(_), _) => write!(text, ", reload {number}"),
        };
    }
    let uptime = cx.journal.uptime();
    let _infallible = match cx.journal.restarts_last_hour(uptime) {
        0 => Ok(()),
        1 => write!(text, ", 1 restart in the last hour"),
        restarts => write!(text, ", {restarts} restarts in the last hour"),
    };
    one_line(&text)
}

/// A message has one assignment in a line.
fn one_line(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { ' ' } else { char }).take(MAX_STATUS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { step: Duration::from_secs(60), stop: Duration::from_secs(12) };

    /// A service manager, and the messages that it got, without the sentences.
    #[derive(Default)]
    struct Manager {
        known: State,
        clock: u64,
    }

    impl Manager {
        fn told(&mut self, state: &State) -> Vec<String> {
            self.clock += 1;
            let clock = self.clock;
            let messages = self.known.update(state, LIMITS, || clock);
            let without_status = |message: String| {
                let lines = message.lines().filter(|line| !line.starts_with("STATUS="));
                lines.collect::<Vec<_>>().join(" ")
            };
            messages.into_iter().map(without_status).collect()
        }
    }

    fn reload(generation: u32, reloading: bool) -> State {
        State { ready: true, generation, reloading, ..State::default() }
    }

    #[test]
    fn ready_is_told_once() {
        let mut manager = Manager::default();
        assert_eq!(manager.told(&State::default()), [""; 0]);
        assert_eq!(manager.told(&reload(0, false)), ["READY=1"]);
        assert_eq!(manager.told(&State::default()), [""; 0], "a worker has crashed");
        assert_eq!(manager.told(&reload(0, false)), [""; 0]);
    }

    #[test]
    fn a_start_that_makes_progress_gets_more_time() {
        let mut manager = Manager::default();
        let started = |progress| State { progress, ..State::default() };
        assert_eq!(manager.told(&started(0)), [""; 0], "the unit's own time-out counts for the first one");
        assert_eq!(manager.told(&started(1)), ["EXTEND_TIMEOUT_USEC=60000000"]);
        assert_eq!(manager.told(&started(1)), [""; 0], "a crash loop gets none");
    }

    #[test]
    fn a_reload_is_announced_and_ends_with_ready() {
        let mut manager = Manager::default();
        manager.told(&reload(0, false));
        let begun = "RELOADING=1 MONOTONIC_USEC=2 EXTEND_TIMEOUT_USEC=60000000";
        assert_eq!(manager.told(&reload(1, true)), [begun]);
        assert_eq!(manager.told(&reload(1, true)), [""; 0]);
        let further = State { progress: 1, ..reload(1, true) };
        assert_eq!(manager.told(&further), ["EXTEND_TIMEOUT_USEC=60000000"]);
        assert_eq!(manager.told(&reload(1, false)), ["READY=1"]);
        assert_eq!(manager.told(&reload(1, false)), [""; 0]);
    }

    #[test]
    fn a_reload_that_is_over_within_one_round_is_announced_all_the_same() {
        let mut manager = Manager::default();
        manager.told(&reload(0, false));
        let messages = manager.told(&reload(1, false));
        assert_eq!(messages.len(), 2, "in one message the second line would hide the first");
        assert!(messages[0].starts_with("RELOADING=1"));
        assert_eq!(messages[1], "READY=1");
    }

    #[test]
    fn a_newer_reload_answers_its_own_signal_and_only_its_end_is_ready() {
        let mut manager = Manager::default();
        manager.told(&reload(0, false));
        manager.told(&reload(1, true));
        let again = manager.told(&reload(2, true));
        assert!(again[0].starts_with("RELOADING=1 MONOTONIC_USEC=3"), "{again:?}");
        assert_eq!(manager.told(&reload(2, false)), ["READY=1"]);
    }

    #[test]
    fn a_reload_during_the_start_is_part_of_the_start() {
        let mut manager = Manager::default();
        let starting = State { generation: 1, reloading: true, ..State::default() };
        assert_eq!(manager.told(&starting), [""; 0]);
        assert_eq!(manager.told(&reload(1, true)), ["READY=1"]);
        assert_eq!(manager.told(&reload(1, false)), [""; 0]);
        assert_eq!(manager.told(&reload(2, false)).len(), 2);
    }

    #[test]
    fn a_stop_is_told_once_and_ends_everything_else() {
        let mut manager = Manager::default();
        manager.told(&reload(0, false));
        manager.told(&reload(1, true));
        let stopping = State { stopping: true, ..reload(1, false) };
        assert_eq!(manager.told(&stopping), ["STOPPING=1 EXTEND_TIMEOUT_USEC=12000000"]);
        assert_eq!(manager.told(&stopping), [""; 0]);
    }

    #[test]
    fn a_sentence_is_one_line_of_bounded_length() {
        assert_eq!(one_line("a\nREADY=1\tb"), "a READY=1 b");
        assert_eq!(one_line(&"ä".repeat(5000)).chars().count(), MAX_STATUS);
    }
}
