//! What is left of a worker whose first process is gone: a daemon that is the worker from now on, or processes that are
//! to go.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tracing::{debug, info, warn};

use super::chores::Chore;
use super::{Driver, Token};
use crate::config::{Config, Orphans};
use crate::policy::{Event, Time, WorkerId};
use crate::report::ExitReport;
use crate::sys::cgroup::Supervisors;
use crate::sys::pidfd::{self, Death, Exit};
use crate::tree::{Found, Member};

/// So many processes are named in one line.
const NAMED: usize = 5;

/// How long the answer to the question who is left is waited for. The helper thread needs milliseconds, unless the
/// workers have tens of thousands of processes.
pub(super) const ANSWERED_WITHIN: Duration = Duration::from_secs(2);

/// How often processes that were killed and are not gone are looked at again.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// SIGKILL takes effect within microseconds, unless a process hangs in the kernel: then nobody can end it.
const KILL_TAKES: Duration = Duration::from_secs(5);

/// How soon after a daemon took its worker's place it is looked whether it has the worker's listeners.
const LISTENS_WITHIN: Duration = Duration::from_secs(1);

/// Programs that go into the background unless they are told not to, and how they are told.
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

/// A worker whose first process is gone.
#[derive(Debug)]
pub(super) struct Remainder {
    worker: WorkerId,
    /// Whether the worker was to go anyway.
    asked: bool,
    /// Whether the others have the stop signal already.
    had_stop_signal: bool,
    phase: Phase,
    /// What leads its process group, as long as anybody is in it.
    first: OwnedFd,
    first_pid: Pid,
    /// What was known to belong to it when its first process ended.
    hints: Vec<Pid>,
}

#[derive(Debug)]
enum Phase {
    /// It is being found out who is left.
    Asked(Option<Death>),
    /// They were told of, and are to go; since when they have SIGKILL.
    Stopping(Option<Time>),
}

/// All of them, by serial.
pub(super) type Remainders = HashMap<u64, Remainder>;

/// Cgroups for the workers, where they can be had. What an earlier supervisor has left in ours is ended, unless its
/// workers were to live on.
pub(super) fn cgroups(config: &Config) -> Option<Supervisors> {
    let (cgroups, leftovers) = match Supervisors::make() {
        Ok(made) => made?,
        Err(error) => {
            debug!("cgroups unavailable: {error}; telling the processes of workers apart without them");
            return None;
        }
    };
    for leftover in leftovers {
        let (count, supervisor) = (leftover.processes(), leftover.supervisor().to_owned());
        let processes = if count == 1 { "process" } else { "processes" };
        let from = format!("{count} {processes} of an earlier master-process (pid {supervisor})");
        if config.orphans == Orphans::Keep && count > 0 {
            warn!(processes = count, "found {from} in this cgroup: left running (--orphans keep)");
            continue;
        }
        let ended = leftover.end();
        match (count, ended) {
            (0, _) => {}
            (_, true) => warn!(processes = count, "found {from} in this cgroup: killed"),
            (_, false) => warn!(processes = count, "found {from} in this cgroup: cannot kill them"),
        }
    }
    Some(cgroups)
}

impl Driver {
    /// The first process of a worker is gone and reaped. Whether anybody else of it lives, the helper thread finds out,
    /// unless the kernel says that nobody does: then the worker is gone.
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
        let remainder = Remainder {
            worker,
            asked: self.policy.expects_end(worker),
            had_stop_signal: self.stops_trees && self.policy.was_asked_to_stop(worker),
            phase: Phase::Asked(death),
            first,
            first_pid,
            hints: hints.clone(),
        };
        self.remainders.insert(serial, remainder);
        self.trees.look(serial, hints, self.broker.listeners_of_worker(serial));
        self.later_in(ANSWERED_WITHIN, Chore::Remains(serial));
    }

    /// Nobody of a worker is left, its first process included.
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
        self.listeners.forget(serial);
        if !self.listeners.has(serial) {
            self.broker.forget(serial);
        }
    }

    /// Whether anybody of a worker whose first process is gone may live. Its cgroup says so, and its filter: the kernel
    /// keeps that for as long as a process has it, in whatever cgroup that is.
    fn may_have_remains(&self, serial: u64) -> bool {
        let populated = self.trees.is_populated(serial);
        let Some(listener) = self.listeners.get(serial) else {
            return populated.unwrap_or(!self.listeners.has_hung_up(serial));
        };
        let mut state = [PollFd::from_borrowed_fd(listener, PollFlags::IN)];
        let _count = poll(&mut state, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        populated == Some(true) || !state[0].revents().intersects(PollFlags::HUP | PollFlags::NVAL)
    }

    /// What the helper thread has found.
    pub(super) fn read_trees(&mut self) {
        for found in self.trees.take() {
            self.found_tree(&found);
        }
        for (pid, worker) in self.trees.owned() {
            self.meter.adopt(worker, pid);
        }
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
        // Processes that live for a moment only are in no list, and in the cgroup all the same.
        let unseen = found.members.is_empty() && self.trees.is_populated(serial) == Some(true);
        let Some(remainder) = self.remainders.get_mut(&serial) else { return };
        match &mut remainder.phase {
            Phase::Asked(death) => {
                let death = *death;
                if unseen {
                    self.leaves_behind(found.worker, death, &[]);
                } else if found.members.is_empty() {
                    self.none_found(serial, death);
                } else if let Some(main) = self.daemon(found, death) {
                    self.becomes_daemon(found.worker, &main);
                } else {
                    self.leaves_behind(found.worker, death, &found.members);
                }
            }
            Phase::Stopping(_) if found.members.is_empty() && !unseen => self.remains_gone(serial),
            Phase::Stopping(_) => {}
        }
    }

    /// Nobody was found, though the kernel says that somebody has the worker's filter: who cannot be told from the others'.
    /// What is in its process group is certainly its own.
    fn none_found(&mut self, serial: u64, death: Option<Death>) {
        self.trees.kill_cgroup(serial);
        if let Some(remainder) = self.remainders.remove(&serial)
            && pidfd::kill_led_group(remainder.first.as_fd()).is_ok()
        {
            self.dying_groups.push((remainder.first, remainder.first_pid));
        }
        self.worker_gone(serial, death);
    }

    /// The process that is the worker from now on, if its first process has only put it into the background.
    fn daemon(&self, found: &Found, death: Option<Death>) -> Option<Member> {
        let exited_well = death.is_some_and(|death| death.exit == Exit::Code(0));
        let asked = self.remainders.get(&found.worker.serial).is_some_and(|remainder| remainder.asked);
        let may_serve = self.broker.listens(found.worker.serial) || self.policy.is_starting(found.worker);
        if !exited_well || asked || !may_serve {
            return None;
        }
        let adopted = found.members.iter().filter(|member| member.adopted);
        adopted.min_by_key(|member| (!member.listens, member.started, member.pid.as_raw_pid())).cloned()
    }

    /// A daemon takes the place of the process that has started it.
    fn becomes_daemon(&mut self, worker: WorkerId, main: &Member) {
        let serial = worker.serial;
        let handle = pidfd_open(main.pid, PidfdFlags::empty()).ok();
        let Some(handle) = handle.filter(|_| main.is_there()) else {
            // It is gone meanwhile: who is left is asked again.
            return self.trees.look(serial, Vec::new(), self.broker.listeners_of_worker(serial));
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
        // A daemon forks twice: one line for both.
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
        let wait = if starts { self.ready_timeout } else { LISTENS_WITHIN };
        self.later_in(wait, Chore::Background(serial, starts));
    }

    /// A daemon that serves nothing is not the worker.
    pub(super) fn check_daemon(&mut self, serial: u64, was_starting: bool) {
        let Some(entry) = self.workers.get(serial).filter(|entry| entry.end.is_none()) else { return };
        let id = entry.id;
        // One that has become ready since has said so in another way.
        let serves = self.broker.listens(serial) || (was_starting && !self.policy.is_starting(id));
        if serves || self.policy.expects_end(id) {
            return;
        }
        warn!(
            worker = id.slot,
            "{} went into the background and is not listening: stopping it",
            self.name(id)
        );
        self.signal(id, self.stop_signal);
        self.later_in(LISTENS_WITHIN, Chore::KillFirst(serial));
    }

    /// Processes of a worker live on without its first one, and are to go.
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
            // Its end is under way for all of them.
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
        self.broker.first_ended(self.now(), serial);
        self.event(Event::DiedWithRemains(worker));
        self.later_in(LOOK_AGAIN, Chore::Remains(serial));
    }

    /// The policy wants them to go.
    pub(super) fn stop_remains(&mut self, worker: WorkerId) {
        let Some(remainder) = self.remainders.get(&worker.serial) else { return };
        if !remainder.had_stop_signal {
            self.trees.signal(worker.serial, self.stop_signal, remainder.hints.clone());
        }
    }

    /// The policy wants them dead. False where the worker's first process lives.
    pub(super) fn kill_remains(&mut self, worker: WorkerId) -> bool {
        let now = self.now();
        let Some(remainder) = self.remainders.get_mut(&worker.serial) else { return false };
        let since = match remainder.phase {
            Phase::Asked(_) => return false,
            Phase::Stopping(since) => since.unwrap_or(now),
        };
        remainder.phase = Phase::Stopping(Some(since));
        let _nobody_is_in_it = pidfd::kill_led_group(remainder.first.as_fd());
        let hints = remainder.hints.clone();
        self.trees.signal(worker.serial, libc::SIGKILL, hints);
        self.later_in(LOOK_AGAIN, Chore::Remains(worker.serial));
        true
    }

    /// Looks again who is left of a worker.
    pub(super) fn look_at_remains(&mut self, serial: u64) {
        let now = self.now();
        let Some(remainder) = self.remainders.get(&serial) else { return };
        match remainder.phase {
            // No answer came in time.
            Phase::Asked(death) => self.none_found(serial, death),
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
                    // Where there is a filter the kernel tells.
                    if !self.listeners.has(serial) {
                        self.trees.look(serial, hints, Vec::new());
                    }
                    self.later_in(LOOK_AGAIN, Chore::Remains(serial));
                }
            }
        }
    }

    /// The kernel says that nobody of a worker's tree is left.
    pub(super) fn tree_is_empty(&mut self, serial: u64) {
        match self.remainders.get(&serial).map(|remainder| &remainder.phase) {
            Some(Phase::Asked(death)) => {
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
        self.broker.leave(self.now(), serial, remainder.asked);
        self.forget_tree(serial);
        self.event(Event::RemainsGone(remainder.worker));
    }
}
