//! The state of the driver as data, and a driver that goes on from it.

use std::os::fd::AsFd;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::calls::Calls;
use super::causes::Causes;
use super::context::{Context, Deferred, Token};
use super::control::SavedControl;
use super::endpoint::Endpoint;
use super::exits::{Exits, SavedExits};
use super::gate::{Gate, SavedGate};
use super::launch::{Launcher, SavedLauncher};
use super::preload::SavedPreloads;
use super::samples::{self, Sampling};
use super::service_manager::{SavedManager, ServiceManager};
use super::settling::Settling;
use super::signals::{SavedTty, Signals};
use super::starts::Starts;
use super::stop_timeout::StopTimeout;
use super::upgrade::Upgrades;
use super::workers::{CallListeners, SavedCallListeners, SavedWorker, Workers};
use super::{ChosenPoller, Control, Driver, LOOP, choose_poller};
use crate::config::Config;
use crate::control::{Journal, SavedJournal, What};
use crate::metrics::{Meter, Question};
use crate::policy::{self, Settings, Supervisor, Time, WorkerId};
use crate::share::{self, Access, Broker, Takeover};
use crate::sys::handover::{self, Incoming, Outgoing};
use crate::sys::notify::{self, NotifySocket};
use crate::sys::signalfd::SignalFd;
use crate::tree::{self, Trees};
use crate::upgrade::{OwnProgram, State, VERSION};
use crate::{http, report};

/// The state of the driver.
#[derive(Debug, Serialize, Deserialize)]
pub struct Saved {
    /// The zero of all times, by the monotonic clock.
    epoch: u64,
    launcher: SavedLauncher,
    policy: policy::Saved,
    share: share::Saved,
    trees: tree::Saved,
    notify: notify::Saved,
    workers: Vec<SavedWorker>,
    call_listeners: SavedCallListeners,
    journal: SavedJournal,
    exits: SavedExits,
    tty: SavedTty,
    control: SavedControl,
    #[serde(default)]
    endpoint: Option<http::SavedServer>,
    #[serde(default)]
    deferred: Vec<(Time, Deferred)>,
    #[serde(default)]
    causes: Causes,
    #[serde(default)]
    gate: SavedGate,
    /// The looks at workers that have no result yet.
    #[serde(default)]
    inspections: Vec<(WorkerId, Question)>,
    #[serde(default)]
    unseen_reported: bool,
    #[serde(default)]
    preloads: SavedPreloads,
    /// What the service manager knows, if there is one.
    #[serde(default)]
    manager: Option<SavedManager>,
}

impl Driver {
    /// The state now. The descriptors in it are named in `out`.
    pub(super) fn save(&self, out: &mut Outgoing) -> Saved {
        let cx = &self.cx;
        let measured = |entry: &super::workers::Entry| {
            let (cpu, peak) = cx.measured_before(entry);
            let Some((usage, measured_peak)) = cx.meter.usage(entry.id) else { return entry.measured_before };
            (cpu + Duration::from_nanos(usage.cpu_ns), peak.max(measured_peak).max(usage.memory))
        };
        let deferred = cx.deferred.iter().filter(|(_, deferred)| survives(deferred));
        Saved {
            epoch: handover::monotonic_at(cx.epoch()),
            launcher: self.starts.launcher().save(out),
            policy: cx.policy.save(),
            share: cx.broker.save(out),
            trees: cx.trees.save(out),
            notify: self.notify.save(out),
            workers: cx.workers.save(measured, out),
            call_listeners: cx.call_listeners.save(out),
            journal: cx.journal.save(),
            exits: self.exits.save(out),
            tty: self.signals.tty.save(),
            control: self.control.save(out),
            endpoint: self.endpoint.save(out),
            deferred: deferred.collect(),
            causes: cx.causes.clone(),
            gate: self.gate.save(out),
            inspections: cx.inspector.unanswered().collect(),
            unseen_reported: self.calls.unseen_reported(),
            preloads: self.starts.preloads.save(out),
            manager: self.manager.save(),
        }
    }

    /// A driver that goes on from the state of another one. `came_back`: that was this program, and another one could not
    /// take over for this reason.
    ///
    /// It goes back to the other one where something fails. Until that is decided, nothing is changed that the other one
    /// would see: no process gets a signal, no client an answer, and nothing that was taken is dropped.
    pub fn resume(
        config: &Config,
        signals: SignalFd,
        state: State,
        came_back: Option<&str>,
        mut from: Incoming,
    ) -> Box<Driver> {
        let State { driver: saved, program, version, paused_at, .. } = state;
        let chosen = choose_poller(std::env::var(LOOP).ok().as_deref());
        let ChosenPoller { mut poller, refused: _ } =
            chosen.unwrap_or_else(|error| from.go_back(&format_args!("{error:#}")));
        from.need(poller.watch(signals.as_fd(), Token::Signals.encode()), "watching");
        let meter = Meter::resume(config).unwrap_or_else(|error| from.go_back(&format_args!("{error:#}")));
        let (inherited, nofile) = saved.launcher.take(&mut from);
        let notify = NotifySocket::resume(saved.notify, &mut from);
        from.need(poller.watch(notify.watched(), Token::Messages.encode()), "watching");
        let launcher = Launcher::with_limit(config, inherited, &notify, nofile);
        let mut launcher = launcher.unwrap_or_else(|error| from.go_back(&format_args!("{error:#}")));
        launcher.resume(&saved.launcher, &mut from);
        let trees = Trees::resume(saved.trees, config.cgroup_limits, &notify.address(), &mut from);
        let access = Access { mode: config.socket_mode, owner: config.socket_owner };
        let is_checked = |id| saved.deferred.iter().any(|(_, of)| *of == Deferred::Queue(id));
        let settings = (config.share, config.share_rules.clone(), access);
        let (mut broker, waiting) = Broker::resume(settings, saved.share, is_checked, &mut from);
        broker.set_takeover(Takeover::of(config));
        broker.set_notify_address(&notify.address());
        let _was_checked_at_the_start = broker.set_ready_mode(&config.ready);
        let policy = Supervisor::resume(Settings::from(config), saved.policy);
        let epoch = handover::instant(saved.epoch);
        let cx = Context::with_policy((policy, epoch), poller, broker, trees, meter);
        let mut cx = from.need(cx, "eventfd");
        cx.workers = Workers::resume(saved.workers, &mut from);
        cx.call_listeners = CallListeners::resume(saved.call_listeners, &mut from);
        cx.journal = Journal::resume(saved.journal);
        cx.causes = saved.causes;
        saved.deferred.into_iter().for_each(|(at, deferred)| cx.deferred.add(at, deferred));
        waiting
            .into_iter()
            .for_each(|(serial, call)| cx.schedule(Duration::ZERO, Deferred::Call(serial, call)));
        let mut exits = Exits::new(config);
        exits.resume(&mut cx, saved.exits, &mut from);
        let mut starts = Starts::resume(launcher, (config.preload_max, config.ready_timeout));
        starts.preloads.resume(&mut cx, saved.preloads, &mut from);
        let mut signals = Signals::new(config, signals, cx.now());
        signals.tty.take_over(saved.tty);
        let gate = Gate::resume(config, saved.gate, &mut from);
        let control = Control::resume(config, saved.control, &mut from);
        let endpoint = Endpoint::resume(saved.endpoint, &mut from);
        let mut driver = Box::new(Driver {
            signals,
            notify,
            starts,
            gate,
            calls: Calls::resume(saved.unseen_reported),
            exits,
            sampling: Sampling::new(config),
            control,
            endpoint,
            manager: ServiceManager::resume(config, saved.manager.unwrap_or_default()),
            stop_timeout: StopTimeout::new(config, true),
            upgrades: Upgrades::new(config, OwnProgram::at(program)),
            settling: Settling::default(),
            cx,
        });
        let closed = from.decide();
        driver.watch_again(saved.inspections);
        driver.cx.trees.hold(false);
        let pause = Duration::from_nanos(handover::monotonic().saturating_sub(paused_at));
        match came_back {
            None => {
                driver.cx.journal.upgrade(&version, VERSION, pause);
                report::upgraded(&version, VERSION, driver.cx.workers.alive().count(), pause);
            }
            Some(reason) => {
                driver.cx.journal.record(What::UpgradeFailed { message: reason.into() });
                report::came_back(reason, pause);
            }
        }
        if closed > 0 {
            report::closed_descriptors(closed);
        }
        driver
    }

    /// Waits for all that the other one has waited for.
    fn watch_again(&mut self, inspections: Vec<(WorkerId, Question)>) {
        let cx = &mut self.cx;
        let alive: Vec<(WorkerId, rustix::process::Pid)> =
            cx.workers.alive().map(|entry| (entry.id, entry.pid)).collect();
        for (worker, pid) in &alive {
            let serial = worker.serial;
            let Some(entry) = cx.workers.get(serial) else { continue };
            let mut watch = |fd, token: Token| {
                if let Err(error) = cx.poller.watch(fd, token.encode()) {
                    tracing::warn!("cannot watch {token:?}: {error}; its events are not seen");
                }
            };
            watch(entry.pidfd.as_fd(), Token::Exit(serial));
            if let Some(pipe) = &entry.ready_pipe {
                watch(pipe.as_fd(), Token::ReadyPipe(serial));
            }
            if cx.meter.is_on() {
                cx.meter.launched(*worker, *pid, alive.iter().copied());
            }
        }
        for (serial, listener) in cx.call_listeners.all() {
            if let Err(error) = cx.poller.watch(listener, Token::Calls(serial).encode()) {
                tracing::warn!("cannot watch the system calls of worker {serial}: {error}");
            }
        }
        self.control.watch(cx);
        self.gate.give(cx);
        cx.schedule_cgroup_removal();
        for (worker, question) in inspections {
            samples::inspect(cx, worker, question);
        }
    }
}

/// Whether a deferred operation goes on in another program. The others begin anew there.
fn survives(deferred: &Deferred) -> bool {
    match deferred {
        Deferred::Queue(_)
        | Deferred::Pending(..)
        | Deferred::Sweep(_)
        | Deferred::KillFirst(_)
        | Deferred::Remains(_)
        | Deferred::Background(..)
        | Deferred::Exit(_)
        | Deferred::Call(..)
        | Deferred::Hangup
        | Deferred::Stops
        | Deferred::Resume(..) => true,
        Deferred::CheckListeners
        | Deferred::Cgroups(_)
        | Deferred::Start(..)
        | Deferred::Settle
        | Deferred::Measuring
        | Deferred::TryPlaces
        | Deferred::Sample
        | Deferred::Inspection(_)
        | Deferred::Clients
        | Deferred::Accept
        | Deferred::Scrapers
        | Deferred::AcceptScrapers
        | Deferred::Reap
        | Deferred::Watchdog
        | Deferred::ManagerRetry
        | Deferred::ManagerStore
        | Deferred::ManagerStatus
        | Deferred::StopTimeout
        | Deferred::Upgrade => false,
    }
}
