//! What has happened, as far as it is kept: the recent events, the last ends of each slot, and counters.

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use super::ring::{Ring, What};
use super::snapshot::{Durations, EndReason, FailedReload, LastEnd, ReloadState, ReloadTotals, Upgraded};
use crate::sys::handover;

/// The ends that are kept for each slot.
const ENDS: usize = 5;

/// The minutes of the count of restarts.
const MINUTES: usize = 60;

/// The replaced workers of a slot, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Restarts {
    /// Exits.
    #[serde(skip_serializing_if = "is_zero")]
    pub exit: u64,
    /// Ends by a signal.
    #[serde(skip_serializing_if = "is_zero")]
    pub signal: u64,
    /// Ends by the OOM killer.
    #[serde(skip_serializing_if = "is_zero")]
    pub oom: u64,
    /// Replacements for `--max-cpu`.
    #[serde(skip_serializing_if = "is_zero")]
    pub cpu: u64,
    /// Replacements for `--max-memory`.
    #[serde(skip_serializing_if = "is_zero")]
    pub memory: u64,
    /// Replacements of workers that do not accept.
    #[serde(skip_serializing_if = "is_zero")]
    pub hung: u64,
    /// Replacements by reloads.
    #[serde(skip_serializing_if = "is_zero")]
    pub reload: u64,
    /// Replacements by upgrades.
    #[serde(skip_serializing_if = "is_zero")]
    pub upgrade: u64,
    /// Replacements by request.
    #[serde(skip_serializing_if = "is_zero")]
    pub request: u64,
    /// Workers that were not ready in time.
    #[serde(skip_serializing_if = "is_zero")]
    pub never_ready: u64,
}

impl Restarts {
    /// Whether all are zero.
    pub fn is_empty(&self) -> bool {
        *self == Restarts::default()
    }

    /// Those that nobody asked for.
    pub fn unasked(&self) -> u64 {
        self.exit + self.signal + self.oom + self.cpu + self.memory + self.hung + self.never_ready
    }

    fn add(&mut self, reason: EndReason) {
        let count = match reason {
            EndReason::Exit => &mut self.exit,
            EndReason::Signal => &mut self.signal,
            EndReason::Oom => &mut self.oom,
            EndReason::Cpu => &mut self.cpu,
            EndReason::Memory => &mut self.memory,
            EndReason::Hung => &mut self.hung,
            EndReason::Reload => &mut self.reload,
            EndReason::Upgrade => &mut self.upgrade,
            EndReason::Request => &mut self.request,
            EndReason::NeverReady => &mut self.never_ready,
            EndReason::Stop => return,
        };
        *count += 1;
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// An end, as it is kept.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct End {
    /// The exit code, if it exited.
    pub exit_code: Option<i32>,
    /// The signal that ended it, and whether it left a core dump.
    pub signal: Option<(i32, bool)>,
    /// Whether the OOM killer ended it.
    pub oom: bool,
    /// The limit of its cgroup at which the OOM killer did that, in bytes.
    pub oom_limit: Option<u64>,
    /// The forks that a limit refused.
    pub forks_refused: u64,
    /// How long it waited because it had used the CPU time of its cgroup.
    pub throttled: Duration,
    /// Who sent the signal.
    pub sender: Option<super::Sender>,
    /// Its CPU time.
    pub cpu: Option<Duration>,
    /// The highest resident memory, in bytes.
    pub peak_memory: Option<u64>,
    /// How long it had run.
    pub uptime: Duration,
}

impl End {
    /// What ended a worker that nobody has asked to stop.
    pub fn reason(&self) -> EndReason {
        match self.signal {
            _ if self.oom => EndReason::Oom,
            Some(_) => EndReason::Signal,
            None => EndReason::Exit,
        }
    }

    /// The end as clients see it.
    pub fn wire(&self, at: SystemTime, pid: i32, reason: EndReason) -> LastEnd {
        LastEnd {
            at: time(at),
            pid,
            reason,
            exit_code: self.exit_code,
            signal_name: self.signal.map(|(number, _)| crate::sys::signal_names::name(number)),
            sender: self.sender.clone(),
            core_dumped: self.signal.is_some_and(|(_, dumped)| dumped),
            oom_limit_bytes: self.oom_limit,
            forks_refused: Some(self.forks_refused).filter(|count| *count > 0),
            cpu_throttled_seconds: (!self.throttled.is_zero()).then(|| seconds(self.throttled)),
            cpu_seconds: self.cpu.map(seconds),
            memory_peak_bytes: self.peak_memory,
            uptime_seconds: seconds(self.uptime),
            output: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Slot {
    restarts: Restarts,
    /// The CPU time of the workers that have ended.
    cpu: Duration,
    /// Oldest first.
    ends: VecDeque<LastEnd>,
    /// The reason for which the serving worker is to be replaced.
    replaced_for: Option<EndReason>,
}

/// The last reload.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ReloadRecord {
    pub(crate) number: u32,
    pub(crate) slots: u32,
    pub(crate) began: SystemTime,
    pub(crate) by: String,
    /// Its end, and how long it took.
    pub(crate) ended: Option<(ReloadState, Duration)>,
    pub(crate) error: Option<FailedReload>,
}

/// What has happened. It costs next to nothing while nothing happens: a slot has a record once a worker of it has
/// ended.
#[derive(Debug)]
pub struct Journal {
    /// When the supervisor was started.
    pub started: SystemTime,
    began: Instant,
    ring: Ring,
    slots: Vec<Option<Box<Slot>>>,
    /// The restarts in each of the last minutes; the last one is that of `minute`.
    restarts: VecDeque<u32>,
    minute: u64,
    pub(crate) reload: Option<ReloadRecord>,
    reloads: ReloadTotals,
    reload_durations: Durations,
    upgraded: Option<Upgraded>,
}

/// A journal as a supervisor hands it over.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SavedJournal {
    started: SystemTime,
    /// When the supervisor was started, by the monotonic clock.
    began: u64,
    #[serde(default)]
    ring: Ring,
    #[serde(default)]
    slots: Vec<Option<Box<Slot>>>,
    #[serde(default)]
    restarts: VecDeque<u32>,
    #[serde(default)]
    minute: u64,
    #[serde(default)]
    reload: Option<ReloadRecord>,
    #[serde(default)]
    reloads: ReloadTotals,
    #[serde(default)]
    reload_durations: Durations,
    #[serde(default)]
    upgraded: Option<Upgraded>,
}

impl Default for Journal {
    fn default() -> Journal {
        let (mut ring, restarts) = (Ring::default(), VecDeque::new());
        ring.push(SystemTime::now(), What::SupervisorStarted);
        let began = Instant::now();
        Journal {
            started: SystemTime::now(),
            began,
            ring,
            slots: Vec::new(),
            restarts,
            minute: 0,
            reload: None,
            reloads: ReloadTotals::default(),
            reload_durations: Durations::default(),
            upgraded: None,
        }
    }
}

impl Journal {
    /// What is kept now.
    pub fn save(&self) -> SavedJournal {
        SavedJournal {
            started: self.started,
            began: handover::monotonic_at(self.began),
            ring: self.ring.clone(),
            slots: self.slots.clone(),
            restarts: self.restarts.clone(),
            minute: self.minute,
            reload: self.reload.clone(),
            reloads: self.reloads,
            reload_durations: self.reload_durations,
            upgraded: self.upgraded.clone(),
        }
    }

    /// A journal that goes on from there.
    pub fn resume(saved: SavedJournal) -> Journal {
        Journal {
            started: saved.started,
            began: handover::instant(saved.began),
            ring: saved.ring,
            slots: saved.slots,
            restarts: saved.restarts,
            minute: saved.minute,
            reload: saved.reload,
            reloads: saved.reloads,
            reload_durations: saved.reload_durations,
            upgraded: saved.upgraded,
        }
    }

    /// Another version has taken over, and no event was handled during the pause.
    pub fn upgrade(&mut self, from: &str, to: &str, pause: Duration) {
        let pause_ms = u32::try_from(pause.as_millis()).unwrap_or(u32::MAX);
        self.record(What::Upgraded { from: from.into(), to: to.into(), pause_ms });
        let count = self.upgraded.as_ref().map_or(0, |before| before.count) + 1;
        self.upgraded = Some(Upgraded {
            count,
            at: time(SystemTime::now()),
            previous_version: from.to_owned(),
            pause_seconds: seconds(pause),
        });
    }

    /// The last time that another version has taken over.
    pub fn upgraded(&self) -> Option<&Upgraded> {
        self.upgraded.as_ref()
    }

    /// How long the supervisor has run.
    pub fn uptime(&self) -> Duration {
        self.began.elapsed()
    }

    /// Records an event.
    pub(crate) fn record(&mut self, what: What) {
        self.ring.push(SystemTime::now(), what);
    }

    /// The recent events.
    pub(crate) fn ring(&self) -> &Ring {
        &self.ring
    }

    /// The number of the last event.
    pub fn last_seq(&self) -> u64 {
        self.ring.last()
    }

    fn slot(&self, slot: u32) -> Option<&Slot> {
        self.slots.get(usize::try_from(slot).ok()?)?.as_deref()
    }

    fn slot_mut(&mut self, slot: u32) -> &mut Slot {
        let at = usize::try_from(slot).unwrap_or(usize::MAX);
        if self.slots.len() <= at {
            self.slots.resize_with(at + 1, || None);
        }
        self.slots[at].get_or_insert_default()
    }

    /// The serving worker of a slot is to be replaced.
    pub fn to_be_replaced(&mut self, slot: u32, reason: EndReason) {
        self.slot_mut(slot).replaced_for = Some(reason);
    }

    /// The replacement of the serving worker was cancelled, or has happened. Returns its reason.
    pub fn take_replaced_for(&mut self, slot: u32) -> Option<EndReason> {
        self.slots.get_mut(usize::try_from(slot).ok()?)?.as_mut()?.replaced_for.take()
    }

    /// Counts a replacement.
    pub fn count_restart(&mut self, slot: u32, reason: EndReason, uptime: Duration) {
        let before = self.slot_mut(slot).restarts.unasked();
        self.slot_mut(slot).restarts.add(reason);
        if self.slot_mut(slot).restarts.unasked() > before {
            self.move_to(uptime.as_secs() / 60);
            if let Some(last) = self.restarts.back_mut() {
                *last = last.saturating_add(1);
            }
        }
    }

    /// The restarts in the last hour that nobody asked for.
    pub fn restarts_last_hour(&mut self, uptime: Duration) -> u64 {
        if self.restarts.is_empty() {
            return 0;
        }
        self.move_to(uptime.as_secs() / 60);
        self.restarts.iter().copied().map(u64::from).sum()
    }

    fn move_to(&mut self, minute: u64) {
        let passed = usize::try_from(minute.saturating_sub(self.minute)).unwrap_or(MINUTES).min(MINUTES);
        self.minute = minute;
        self.restarts.extend(std::iter::repeat_n(0, passed));
        if self.restarts.is_empty() {
            self.restarts.push_back(0);
        }
        while self.restarts.len() > MINUTES {
            self.restarts.pop_front();
        }
    }

    /// Counts a reload that was decided.
    pub fn count_reload(&mut self, state: ReloadState, took: Duration) {
        match state {
            ReloadState::Complete => self.reloads.complete += 1,
            ReloadState::GivenUp => self.reloads.given_up += 1,
            ReloadState::Running | ReloadState::Stopping => return,
        }
        self.reload_durations.add(seconds(took));
    }

    /// Counts a reload that a newer one replaces.
    pub fn count_superseded(&mut self) {
        self.reloads.superseded += 1;
    }

    /// The reloads that have ended, and how long they took.
    pub fn reloads(&self) -> (ReloadTotals, Durations) {
        (self.reloads, self.reload_durations)
    }

    /// Keeps the end of a worker that nobody has asked to stop.
    pub fn keep_end(&mut self, slot: u32, end: LastEnd) {
        let ends = &mut self.slot_mut(slot).ends;
        if ends.len() == ENDS {
            ends.pop_front();
        }
        ends.push_back(end);
    }

    /// Adds the CPU time of a worker that has ended to the counter of its slot.
    pub fn add_cpu(&mut self, slot: u32, cpu: Duration) {
        if !cpu.is_zero() {
            self.slot_mut(slot).cpu += cpu;
        }
    }

    /// The CPU time of the ended workers of a slot.
    pub fn cpu_of(&self, slot: u32) -> Duration {
        self.slot(slot).map_or(Duration::ZERO, |slot| slot.cpu)
    }

    /// The replacements in a slot.
    pub fn restarts_of(&self, slot: u32) -> Restarts {
        self.slot(slot).map(|slot| slot.restarts).unwrap_or_default()
    }

    /// The last ends of a slot, the last one first.
    pub fn ends_of(&self, slot: u32) -> impl Iterator<Item = &LastEnd> {
        self.slot(slot).into_iter().flat_map(|slot| slot.ends.iter().rev())
    }
}

/// A time as clients see it: RFC 3339, in UTC.
pub(crate) fn time(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}

/// A duration as clients see it: seconds, to the millisecond.
pub(crate) fn seconds(span: Duration) -> f64 {
    (span.as_secs_f64() * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(pid: i32) -> LastEnd {
        End { exit_code: Some(1), ..End::default() }.wire(SystemTime::UNIX_EPOCH, pid, EndReason::Exit)
    }

    #[test]
    fn the_last_five_ends_are_kept_and_counters_go_on() {
        let mut journal = Journal::default();
        for pid in 1..=7 {
            journal.keep_end(3, end(pid));
            journal.count_restart(3, EndReason::Exit, Duration::ZERO);
            journal.add_cpu(3, Duration::from_secs(2));
        }
        journal.count_restart(3, EndReason::Reload, Duration::ZERO);
        assert_eq!(journal.ends_of(3).map(|end| end.pid).collect::<Vec<_>>(), [7, 6, 5, 4, 3]);
        assert_eq!(journal.ends_of(2).count(), 0);
        assert_eq!(journal.cpu_of(3), Duration::from_secs(14));
        assert_eq!((journal.restarts_of(3).exit, journal.restarts_of(3).reload), (7, 1));
        assert_eq!(journal.restarts_last_hour(Duration::ZERO), 7, "a reload was asked for");
    }

    #[test]
    fn reloads_are_counted_by_their_result() {
        let mut journal = Journal::default();
        for (state, seconds) in [(ReloadState::Complete, 2), (ReloadState::GivenUp, 4000)] {
            journal.count_reload(state, Duration::from_secs(seconds));
        }
        journal.count_reload(ReloadState::Stopping, Duration::from_secs(1));
        journal.count_superseded();
        let (totals, durations) = journal.reloads();
        assert_eq!(totals, ReloadTotals { complete: 1, given_up: 1, superseded: 1 });
        assert_eq!((durations.count, durations.buckets), (2, [0, 0, 1, 0, 0, 0, 0, 0, 0]));
        assert!((durations.sum - 4002.0).abs() < 1e-9);
    }

    #[test]
    fn restarts_leave_the_count_after_an_hour() {
        let mut journal = Journal::default();
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        assert_eq!(journal.restarts_last_hour(minutes(500)), 0);
        journal.count_restart(0, EndReason::Signal, minutes(500));
        journal.count_restart(0, EndReason::Signal, minutes(530));
        assert_eq!(journal.restarts_last_hour(minutes(559)), 2);
        assert_eq!(journal.restarts_last_hour(minutes(560)), 1);
        assert_eq!(journal.restarts_last_hour(minutes(10_000)), 0);
    }

    #[test]
    fn a_time_has_its_date_and_zone() {
        assert_eq!(time(SystemTime::UNIX_EPOCH + Duration::from_millis(1500)), "1970-01-01T00:00:01.500Z");
        assert!((seconds(Duration::from_nanos(1_234_567_890)) - 1.235).abs() < 1e-9);
    }
}
