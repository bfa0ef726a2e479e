//! The processes that remain of a worker whose first process has ended: a daemon, which becomes the worker, or
//! processes to stop.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tracing::{debug, info, warn};

use super::deferred::Deferred;
use super::{Driver, Token};
use crate::config::{Config, Orphans};
use crate::policy::{Event, Time, WorkerId};
use crate::report::ExitReport;
use crate::sys::cgroup::{self, Leftover, Supervisors};
use crate::sys::holders::Holds;
use crate::sys::pidfd::{self, Death, Exit};
use crate::tree::{self, Exited, Found, Member};

/// The number of processes that one log line names.
const NAMED: usize = 5;

/// How long the supervisor waits for the list of the remaining processes. The helper thread needs milliseconds, unless
/// the workers have tens of thousands of processes.
pub(super) const ANSWERED_WITHIN: Duration = Duration::from_secs(2);

/// The interval at which killed processes that are not gone yet are checked again.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// SIGKILL takes effect within microseconds, unless a process is blocked in the kernel: then it cannot be ended.
const KILL_TAKES: Duration = Duration::from_secs(5);

/// How soon after a daemon became the worker its listeners are checked again, if the first check had no clear result.
const LISTENS_WITHIN: Duration = Duration::from_secs(1);

/// The number of attempts to remove a cgroup. The wait doubles after each attempt; together the attempts take minutes.
/// A process that is blocked in the kernel must not wake the supervisor forever: the end of another worker triggers the
/// next attempt.
const TRIES_AT_CGROUPS: u32 = 11;

/// Programs that go into the background by default, and the options that keep them in the foreground.
const FOREGROUND: [(&str, &str); 13] = [
    ("nginx", "-g 'daemon off;'"),
    ("redis-server", "--daemonize no"),
    ("valkey-server", "--daemonize no"),
    ("php-fpm", "--nodaemonize"),
    ("httpd", "-DFOREGROUND"),
    ("apache2", "-DFOREGROUND"),
    ("sshd", "-D"),
    ("lighttpd", "-D"),
    ("dnsmasq", "--keep-in-foreground"),
    ("named", "-f"),
    ("squid", "--foreground"),
    ("vsftpd", "-obackground=NO"),
    ("unbound", "-d"),
];

/// A worker whose first process has ended.
#[derive(Debug)]
pub(super) struct Remainder {
    worker: WorkerId,
    /// Whether the end of the worker was expected.
    end_expected: bool,
    /// Whether the worker was not ready when its first process ended. A daemon can listen, and make the worker ready,
    /// before the answer comes that finds the daemon.
    was_starting: bool,
    /// Whether the remaining processes already got the stop signal.
    had_stop_signal: bool,
    phase: Phase,
    /// The question to the helper thread for the remaining processes. The answer to an earlier question describes a
    /// time when the first process lived.
    question: u64,
    /// When it is due. An earlier entry of the queue belongs to an earlier end of the worker's first process.
    due: Time,
    /// The leader of its process group, which exists while the group has a process.
    first: OwnedFd,
    first_pid: Pid,
    /// The processes that were known to belong to it when its first process ended.
    hints: Vec<Pid>,
}

#[derive(Debug)]
enum Phase {
    /// The helper thread is looking for the remaining processes.
    Searching(Option<Death>),
    /// The remaining processes were reported, and must stop. The time is that of the first SIGKILL, if any.
    Stopping(Option<Time>),
}

impl Remainder {
    /// Whether the answer belongs to this question or to a later one.
    fn is_answered_by(&self, found: &Found) -> bool {
        found.question >= self.question
    }

    fn is_due(&self, now: Time) -> bool {
        self.due <= now
    }
}

/// All remainders, by serial.
pub(super) type Remainders = HashMap<u64, Remainder>;

/// Makes the cgroups for the workers, if one is delegated. Processes that an earlier supervisor left in the delegated
/// cgroup are killed, unless its workers were to keep running.
pub fn cgroups(config: &Config) -> Option<Supervisors> {
    let (cgroups, leftovers) = match Supervisors::make() {
        Ok(made) => made?,
        Err(error) => {
            debug!("cgroups unavailable: {error}; telling the processes of workers apart without them");
            return None;
        }
    };
    let counts: Vec<usize> = leftovers.iter().map(Leftover::processes).collect();
    let found = |leftover: &Leftover, count: usize| {
        let processes = if count == 1 { "process" } else { "processes" };
        let supervisor = leftover.supervisor();
        format!("{count} {processes} of an earlier master-process (pid {supervisor})")
    };
    let keeps = |count: usize| config.orphans == Orphans::Keep && count > 0;
    let (kept, to_end): (Vec<_>, Vec<_>) =
        leftovers.into_iter().zip(counts).partition(|(_, count)| keeps(*count));
    for (leftover, count) in kept {
        let found = found(&leftover, count);
        warn!(processes = count, "found {found} in this cgroup: left running (--orphans keep)");
    }
    let (to_end, counts): (Vec<_>, Vec<_>) = to_end.into_iter().unzip();
    let ended = cgroup::end(&to_end);
    for ((leftover, count), ended) in to_end.iter().zip(counts).zip(ended) {
        let found = found(leftover, count);
        match (count, ended) {
            (0, _) => {}
            (_, true) => warn!(processes = count, "found {found} in this cgroup: killed"),
            (_, false) => warn!(processes = count, "found {found} in this cgroup: cannot kill them"),
        }
    }
    Some(cgroups)
}

fn exited_successfully(death: Option<Death>) -> bool {
    death.is_some_and(|death| death.exit == Exit::Code(0))
}

impl Driver {
    /// Handles the end of a worker's first process, which is reaped. The helper thread looks for remaining processes,
    /// unless the kernel reports that none is left: then the worker is gone.
    pub(super) fn first_process_ended(&mut self, serial: u64, death: Option<Death>) {
        let Some(entry) = self.workers.get(serial) else { return };
        let (worker, first_pid) = (entry.id, entry.pid);
        let first = entry.pidfd.try_clone();
        self.trees.first_ended(serial);
        self.workers.reaped(serial);
        let Ok(first) = first else { return self.worker_gone(serial, death) };
        if !self.may_have_remains(serial) {
            return self.worker_gone(serial, death);
        }
        let hints = self.meter.processes_of(worker);
        let end_expected = self.policy.expects_end(worker);
        // The listeners, if one of the remaining processes may become the worker.
        let listeners = if !end_expected && exited_successfully(death) {
            self.broker.listeners(serial)
        } else {
            Vec::new()
        };
        let own = self.broker.listeners_of_worker(serial);
        let question = self.trees.look(serial, hints.clone(), own, listeners);
        let remainder = Remainder {
            worker,
            end_expected,
            was_starting: self.policy.is_starting(worker),
            had_stop_signal: self.stops_trees && self.policy.was_asked_to_stop(worker),
            phase: Phase::Searching(death),
            question,
            due: self.now(),
            first,
            first_pid,
            hints,
        };
        self.remainders.insert(serial, remainder);
        self.look_at_remains_in(ANSWERED_WITHIN, serial);
    }

    fn look_at_remains_in(&mut self, wait: Duration, serial: u64) {
        let due = self.now().after(wait);
        if let Some(remainder) = self.remainders.get_mut(&serial) {
            remainder.due = due;
            self.schedule_in(wait, Deferred::Remains(serial));
        }
    }

    /// Handles the end of the last process of a worker.
    fn worker_gone(&mut self, serial: u64, death: Option<Death>) {
        let Some(entry) = self.workers.get(serial) else { return };
        let id = entry.id;
        let details = self.meter.ended(id);
        self.inspector.forget(id);
        self.workers.ended(serial, ExitReport::new(death, details));
        self.broker.leave(self.now(), serial, self.policy.expects_end(id));
        self.forget_tree(serial);
        self.event(Event::Died(id));
    }

    fn forget_tree(&mut self, serial: u64) {
        self.trees.gone(serial);
        self.daemons_checked.remove(&serial);
        self.remove_cgroups_later();
        self.listeners.forget(serial);
        if !self.listeners.has(serial) {
            self.broker.forget(serial);
        }
    }

    /// Schedules another attempt to remove the cgroups of workers that are gone, if any are left.
    pub(super) fn remove_cgroups_later(&mut self) {
        if self.trees.has_emptied() && !self.removes_cgroups {
            self.removes_cgroups = true;
            self.schedule(Deferred::Cgroups(0));
        }
    }

    pub(super) fn remove_cgroups(&mut self, tries: u32) {
        self.removes_cgroups = self.trees.remove_cgroups() && tries + 1 < TRIES_AT_CGROUPS;
        if self.removes_cgroups {
            self.schedule(Deferred::Cgroups(tries + 1));
        }
    }

    /// Whether processes of a worker whose first process has ended may live. Two sources tell: the worker's cgroup, and
    /// its filter, which the kernel keeps while a process has it, whatever cgroup that process is in.
    fn may_have_remains(&self, serial: u64) -> bool {
        let populated = self.trees.is_populated(serial);
        let Some(listener) = self.listeners.get(serial) else {
            return populated.unwrap_or(!self.listeners.has_hung_up(serial));
        };
        let mut state = [PollFd::from_borrowed_fd(listener, PollFlags::IN)];
        let _count = poll(&mut state, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        populated == Some(true) || !state[0].revents().intersects(PollFlags::HUP | PollFlags::NVAL)
    }

    /// Reads the results of the helper thread.
    pub(super) fn read_trees(&mut self) {
        for found in self.trees.take() {
            self.found_tree(&found);
        }
        for (pid, started, worker) in self.trees.owned() {
            self.meter.adopt(worker, pid, started);
        }
        self.broker.set_owners(self.trees.owners().clone());
        self.watch_trees();
    }

    pub(super) fn watch_trees(&mut self) {
        if let Err(error) = self.poller.watch(self.trees.fd(), Token::Trees.encode()) {
            warn!(
                "cannot watch the helper thread: {error}; processes that workers leave behind are found late"
            );
        }
    }

    fn found_tree(&mut self, found: &Found) {
        let serial = found.worker.serial;
        // Processes that live only for a moment are in no list, but the cgroup counts them.
        let unseen = found.members.is_empty() && self.trees.is_populated(serial) == Some(true);
        let Some(remainder) = self.remainders.get(&serial) else { return self.daemon_checked(found) };
        match &remainder.phase {
            Phase::Searching(_) if !remainder.is_answered_by(found) => {}
            Phase::Searching(death) => {
                let death = *death;
                if unseen {
                    self.leaves_behind(found.worker, death, &[]);
                } else if found.members.is_empty() {
                    self.none_found(serial, death);
                } else if let Some((main, holds)) = self.daemon(found, death) {
                    self.becomes_daemon(found.worker, main, holds);
                } else {
                    self.leaves_behind(found.worker, death, &found.members);
                }
            }
            Phase::Stopping(_) if found.members.is_empty() && !unseen => self.remains_gone(serial),
            Phase::Stopping(None) if found.unheeded => self.event(Event::RemainsUnheeding(found.worker)),
            Phase::Stopping(_) => {}
        }
    }

    /// Handles an answer without processes although, according to the kernel, a process still has the worker's filter.
    /// That process cannot be told apart from those of other workers. The processes of the first process's group
    /// certainly belong to the worker, so they are killed.
    fn none_found(&mut self, serial: u64, death: Option<Death>) {
        self.trees.kill_cgroup(serial);
        if let Some(remainder) = self.remainders.remove(&serial)
            && pidfd::kill_led_group(remainder.first.as_fd()).is_ok()
        {
            self.dying_groups.push((remainder.first, remainder.first_pid));
        }
        self.worker_gone(serial, death);
    }

    /// The process that becomes the worker, if the first process only put the program into the background.
    fn daemon<'found>(&self, found: &'found Found, death: Option<Death>) -> Option<(&'found Member, Holds)> {
        let serial = found.worker.serial;
        let Remainder { end_expected, was_starting, .. } = *self.remainders.get(&serial)?;
        if !exited_successfully(death) || end_expected {
            return None;
        }
        let notifier = self.workers.get(serial).and_then(|entry| entry.notifier);
        tree::daemon(&found.members, Exited { was_starting, notifier })
    }

    /// Makes a daemon the process of the worker, in place of the process that started it.
    fn becomes_daemon(&mut self, worker: WorkerId, main: &Member, holds: Holds) {
        let serial = worker.serial;
        let handle = pidfd_open(main.pid, PidfdFlags::empty()).ok();
        let Some(handle) = handle.filter(|_| main.is_there()) else {
            // The daemon has ended meanwhile, so the helper thread looks again for the remaining processes.
            let (own, listeners) = (self.broker.listeners_of_worker(serial), self.broker.listeners(serial));
            let question = self.trees.look(serial, Vec::new(), own, listeners);
            if let Some(remainder) = self.remainders.get_mut(&serial) {
                remainder.question = question;
            }
            return;
        };
        self.remainders.remove(&serial);
        let before = self.name(worker);
        self.watch(handle.as_fd(), Token::Exit(serial));
        self.trees.replaced(serial, main.pid, main.started);
        self.broker.launched(worker, main.pid);
        self.meter.moved(worker, main.pid);
        let (name, pid) = (&main.name, main.pid.as_raw_pid());
        let known = FOREGROUND.iter().find(|(program, _)| name.starts_with(program));
        let hint = known.map_or_else(String::new, |(_, flag)| format!("; {flag} keeps it in the foreground"));
        // A daemon forks twice, and is logged once.
        let first = !self.workers.get(serial).is_some_and(|entry| entry.in_background);
        if first {
            info!(
                worker = worker.slot,
                pid, "{before} went into the background: {name} (pid {pid}) is now the worker{hint}"
            );
        }
        self.workers.replace_process(serial, main.pid, handle);
        self.event(Event::WentIntoBackground(worker));
        let starts = self.policy.is_starting(worker);
        if starts {
            self.schedule_in(self.ready_timeout, Deferred::Background(serial, starts));
        } else if holds == Holds::Unknown {
            self.schedule_in(LISTENS_WITHIN, Deferred::Background(serial, starts));
        }
    }

    /// Checks whether a daemon listens. A daemon without a listener is not the worker. The helper thread looks
    /// for the listener.
    pub(super) fn check_daemon(&mut self, serial: u64, was_starting: bool) {
        let Some(entry) = self.workers.get(serial).filter(|entry| !entry.reaped) else { return };
        let id = entry.id;
        // A worker that has become ready since then has listened, or has sent a notification.
        let is_ready = was_starting && !self.policy.is_starting(id);
        if is_ready || self.policy.expects_end(id) {
            return;
        }
        let listeners = self.broker.listeners(serial);
        if listeners.is_empty() {
            return self.stop_daemon(id);
        }
        self.daemons_checked.insert(serial);
        self.trees.look(serial, Vec::new(), self.broker.listeners_of_worker(serial), listeners);
    }

    fn daemon_checked(&mut self, found: &Found) {
        let serial = found.worker.serial;
        let lives = self.workers.get(serial).is_some_and(|entry| !entry.reaped);
        let none_listens = found.members.iter().all(|member| member.holds == Holds::No);
        let is_checked = self.daemons_checked.remove(&serial);
        if is_checked && lives && none_listens && !self.policy.expects_end(found.worker) {
            self.stop_daemon(found.worker);
        }
    }

    fn stop_daemon(&mut self, worker: WorkerId) {
        warn!(
            worker = worker.slot,
            "{} went into the background and is not listening: stopping it",
            self.name(worker)
        );
        self.signal(worker, self.stop_signal);
        self.schedule_in(LISTENS_WITHIN, Deferred::KillFirst(worker.serial));
    }

    /// Reports processes that remain of a worker, and begins to stop them.
    fn leaves_behind(&mut self, worker: WorkerId, death: Option<Death>, members: &[Member]) {
        let serial = worker.serial;
        let named: Vec<String> = members
            .iter()
            .take(NAMED)
            .map(|member| format!("{} (pid {})", member.name, member.pid.as_raw_pid()))
            .collect();
        let more = members.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let (count, es) = (members.len(), if members.len() == 1 { "" } else { "es" });
        let slot = worker.slot;
        let line = match count {
            0 => format!("worker {slot} left short-lived processes behind"),
            _ => format!("worker {slot} left {count} process{es} behind: {}{more}", named.join(", ")),
        };
        if self.policy.was_killed(worker) {
            // All of its processes are already being killed.
            debug!(worker = slot, processes = count, "{line}");
        } else {
            info!(worker = slot, processes = count, "{line}");
        }
        if let Some(remainder) = self.remainders.get_mut(&serial) {
            remainder.phase = Phase::Stopping(None);
        }
        let details = self.meter.ended(worker);
        self.inspector.forget(worker);
        self.workers.ended(serial, ExitReport::new(death, details));
        let end_expected = self.remainders.get(&serial).is_some_and(|remainder| remainder.end_expected);
        self.broker.first_ended(self.now(), serial, end_expected);
        self.event(Event::DiedWithRemains(worker));
        self.look_at_remains_in(LOOK_AGAIN, serial);
    }

    /// Sends the remaining processes the stop signal.
    pub(super) fn stop_remains(&mut self, worker: WorkerId) {
        let Some(remainder) = self.remainders.get(&worker.serial) else { return };
        if !remainder.had_stop_signal {
            self.trees.signal(worker.serial, self.stop_signal, remainder.hints.clone());
        }
    }

    /// Kills the remaining processes. Returns false if the worker's first process lives.
    pub(super) fn kill_remains(&mut self, worker: WorkerId) -> bool {
        let now = self.now();
        let Some(remainder) = self.remainders.get_mut(&worker.serial) else { return false };
        let since = match remainder.phase {
            Phase::Searching(_) => return false,
            Phase::Stopping(since) => since.unwrap_or(now),
        };
        remainder.phase = Phase::Stopping(Some(since));
        let _group_is_empty = pidfd::kill_led_group(remainder.first.as_fd());
        let hints = remainder.hints.clone();
        self.trees.signal(worker.serial, libc::SIGKILL, hints);
        self.look_at_remains_in(LOOK_AGAIN, worker.serial);
        true
    }

    /// Checks again which processes of a worker remain.
    pub(super) fn look_at_remains(&mut self, serial: u64) {
        let now = self.now();
        let Some(remainder) = self.remainders.get(&serial).filter(|left| left.is_due(now)) else { return };
        match remainder.phase {
            // The helper thread did not answer in time.
            Phase::Searching(death) => self.none_found(serial, death),
            Phase::Stopping(Some(since)) if now.since(since) > KILL_TAKES => {
                warn!(
                    worker = remainder.worker.slot,
                    "cannot kill the processes that worker {} left behind: leaving them",
                    remainder.worker.slot
                );
                self.remains_gone(serial);
            }
            Phase::Stopping(killed) => {
                let (worker, hints) = (remainder.worker, remainder.hints.clone());
                if killed.is_some() {
                    self.kill_remains(worker);
                } else {
                    // With a filter, the kernel reports the end of the last process.
                    if !self.listeners.has(serial) {
                        self.trees.look(serial, hints, Vec::new(), Vec::new());
                    }
                    self.look_at_remains_in(LOOK_AGAIN, serial);
                }
            }
        }
    }

    /// Handles the kernel's report that the process tree of a worker is empty.
    pub(super) fn tree_is_empty(&mut self, serial: u64) {
        match self.remainders.get(&serial).map(|remainder| &remainder.phase) {
            Some(Phase::Searching(death)) => {
                let death = *death;
                self.remainders.remove(&serial);
                self.worker_gone(serial, death);
            }
            Some(Phase::Stopping(_)) => self.remains_gone(serial),
            None => {}
        }
    }

    fn remains_gone(&mut self, serial: u64) {
        let Some(remainder) = self.remainders.remove(&serial) else { return };
        debug!(
            worker = remainder.worker.slot,
            "all processes of worker {} have ended", remainder.worker.slot
        );
        self.broker.leave(self.now(), serial, remainder.end_expected);
        self.forget_tree(serial);
        self.event(Event::RemainsGone(remainder.worker));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> Time {
        Time::new(Duration::from_millis(milliseconds))
    }

    fn remainder(question: u64, due: Time) -> Remainder {
        Remainder {
            worker: WorkerId { slot: 0, serial: 1 },
            was_starting: false,
            end_expected: false,
            had_stop_signal: false,
            phase: Phase::Searching(None),
            question,
            due,
            first: std::fs::File::open("/dev/null").expect("it is everywhere").into(),
            first_pid: Pid::INIT,
            hints: Vec::new(),
        }
    }

    #[test]
    fn an_answer_to_an_earlier_question_is_ignored() {
        let answered = |question| {
            let found = Found {
                worker: WorkerId { slot: 0, serial: 1 },
                question,
                members: Vec::new(),
                unheeded: false,
            };
            remainder(7, at(0)).is_answered_by(&found)
        };
        assert!(!answered(6));
        assert!(answered(7));
        assert!(answered(8), "one walk answers all questions asked before it");
    }

    #[test]
    fn a_check_scheduled_for_an_earlier_end_of_the_worker_is_not_due() {
        // The first process went into the background at 0 ms, and the daemon ended at 1900 ms.
        let daemon = remainder(2, at(1900).after(ANSWERED_WITHIN));
        assert!(!daemon.is_due(at(0).after(ANSWERED_WITHIN)));
        assert!(daemon.is_due(at(3900)));
    }
}
