//! The stop and the end of workers: of the first process, which its pidfd reports, of the processes that remain of the
//! worker, and of adopted processes.
//!
//! When the first process ends, a helper thread looks for the worker's other processes. A daemon among them becomes the
//! worker ([`Daemons`]). Otherwise they are stopped, and the worker is gone once the last of them has ended.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Pid;
use serde::{Deserialize, Serialize};
use tracing::{debug, info, warn};

use super::context::{Context, Deferred, RETRY_AFTER, Token};
use super::daemons::Daemons;
use super::signals::Tty;
use super::starts::Starts;
use crate::config::{Config, Orphans, StopGroup};
use crate::policy::{Event, Time, WorkerId};
use crate::sys::cgroup::{self, Leftover, Supervisors, Unusable};
use crate::sys::children;
use crate::sys::handover::{Fd, Incoming, Outgoing};
use crate::sys::holders::Holds;
use crate::sys::pidfd::{self, Death, Exit};
use crate::tree::{self, Exited, Found, Member};

/// The number of ended processes that are reaped in one round of the loop: about a millisecond.
const MAX_REAPED: usize = 256;

/// The number of processes that one log line names.
const NAMED: usize = 5;

/// The time that the helper thread has to kill a worker with its process tree.
const TREE_KILLED_WITHIN: Duration = Duration::from_millis(250);

/// How long the supervisor waits for the list of the remaining processes. The helper thread needs milliseconds, unless
/// the workers have tens of thousands of processes.
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);

/// The interval at which killed processes that are not gone yet are checked again.
const CHECK_AGAIN: Duration = Duration::from_millis(50);

/// SIGKILL takes effect within microseconds, unless a process is blocked in the kernel: then it cannot be ended.
const KILL_TAKES: Duration = Duration::from_secs(5);

/// A worker whose first process has ended.
#[derive(Debug)]
struct Remainder {
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
    /// How often it was looked for them again.
    repeats: u8,
}

/// How often the remaining processes are looked for again when none is found and the kernel says that there is one. One that was
/// listed can end before it is looked at, and leave a child that was not in the list.
const MOST_REPEATS: u8 = 3;

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
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

/// The workers and processes whose ends are being handled.
pub(super) struct Exits {
    stop_signal: i32,
    /// Whether the stop signal goes to all processes of a worker.
    stops_trees: bool,
    /// Workers whose first process has ended while other processes of them live, by serial.
    remainders: HashMap<u64, Remainder>,
    /// Workers that went into the background.
    pub(super) daemons: Daemons,
    /// Process groups that were killed because no process of the worker was found, and that are not empty yet.
    dying_groups: Vec<(OwnedFd, Pid)>,
    /// Whether [`Deferred::Reap`] is scheduled for more of the processes that have ended.
    reap_scheduled: bool,
    /// Whether processes that have ended are to be reaped after the next actions of the policy.
    reap_due: bool,
}

/// The ends that are being handled, as a supervisor hands them over.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct SavedExits {
    remainders: Vec<SavedRemainder>,
    /// The workers that went into the background whose listeners are being checked.
    checking: Vec<u64>,
    dying_groups: Vec<(Fd, i32)>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct SavedRemainder {
    worker: WorkerId,
    end_expected: bool,
    was_starting: bool,
    had_stop_signal: bool,
    phase: Phase,
    due: Time,
    first: Fd,
    #[serde(with = "crate::forms::pid")]
    first_pid: Pid,
    hints: Vec<i32>,
}

impl Exits {
    pub(super) fn save(&self, out: &mut Outgoing) -> SavedExits {
        let remainders = self.remainders.values().map(|remainder| SavedRemainder {
            worker: remainder.worker,
            end_expected: remainder.end_expected,
            was_starting: remainder.was_starting,
            had_stop_signal: remainder.had_stop_signal,
            phase: remainder.phase,
            due: remainder.due,
            first: out.keep(remainder.first.as_fd()),
            first_pid: remainder.first_pid,
            hints: remainder.hints.iter().map(|pid| pid.as_raw_pid()).collect(),
        });
        let remainders = remainders.collect();
        let groups = self.dying_groups.iter().map(|(group, pid)| (out.keep(group.as_fd()), pid.as_raw_pid()));
        SavedExits { remainders, dying_groups: groups.collect(), checking: self.daemons.checking() }
    }

    /// Goes on with them: what no helper thread has answered is asked again.
    pub(super) fn resume(&mut self, cx: &mut Context, saved: SavedExits, from: &mut Incoming) {
        for of in saved.remainders {
            let (serial, first) = (of.worker.serial, from.take(of.first));
            let remainder = Remainder {
                worker: of.worker,
                end_expected: of.end_expected,
                was_starting: of.was_starting,
                had_stop_signal: of.had_stop_signal,
                phase: of.phase,
                question: 0,
                due: of.due,
                first,
                first_pid: of.first_pid,
                hints: of.hints.into_iter().filter_map(Pid::from_raw).collect(),
                repeats: 0,
            };
            let question = match remainder.phase {
                Phase::Searching(death) => look(cx, &remainder, death),
                Phase::Stopping(_) => 0,
            };
            self.remainders.insert(serial, Remainder { question, ..remainder });
        }
        for (group, pid) in saved.dying_groups {
            self.dying_groups.push((from.take(group), Pid::from_raw(pid).unwrap_or(Pid::INIT)));
        }
        saved.checking.into_iter().for_each(|serial| self.daemons.check_again(cx, serial));
        // Some may have ended meanwhile.
        self.reap_scheduled = true;
        cx.schedule(Duration::ZERO, Deferred::Reap);
    }

    pub(super) fn new(config: &Config) -> Exits {
        Exits {
            stop_signal: config.stop_signal.0,
            stops_trees: config.stop_group == StopGroup::Tree,
            remainders: HashMap::new(),
            daemons: Daemons::new(config),
            dying_groups: Vec::new(),
            reap_scheduled: false,
            reap_due: false,
        }
    }

    /// Sends a worker the stop signal, and SIGCONT: a worker that is stopped, by a terminal for example, must run to
    /// receive the signal.
    pub(super) fn request_stop(&self, cx: &mut Context, worker: WorkerId) {
        cx.workers.signal(worker, self.stop_signal);
        cx.workers.signal(worker, libc::SIGCONT);
        if self.stops_trees {
            let hints = cx.meter.processes_of(worker);
            cx.trees.signal(worker.serial, self.stop_signal, hints);
        }
    }

    /// Kills all processes of a worker. Their descent is known only while the first process lives, so the helper thread
    /// kills the first process together with the others. If that takes too long, the first process is killed alone.
    pub(super) fn kill(&mut self, cx: &mut Context, worker: WorkerId) {
        if self.kill_remains(cx, worker) || cx.workers.get(worker.serial).is_none() {
            return;
        }
        let hints = cx.meter.processes_of(worker);
        cx.trees.signal(worker.serial, libc::SIGKILL, hints);
        cx.schedule(TREE_KILLED_WITHIN, Deferred::KillFirst(worker.serial));
    }

    /// Handles the end of a worker's first process, which its pidfd reports.
    pub(super) fn worker_ended(&mut self, cx: &mut Context, starts: &mut Starts, tty: &Tty, serial: u64) {
        let Some(entry) = cx.workers.get(serial).filter(|entry| !entry.reaped) else {
            // The process was killed before it became a worker.
            return starts.check(cx, serial, 0);
        };
        let (id, pidfd) = (entry.id, entry.pidfd.as_fd());
        let exit = match pidfd::try_wait(pidfd) {
            Ok(Some(exit)) => Some(exit),
            // A tracer must be notified first. Until then the process counts as ended, and the check is deferred so
            // that the loop does not spin.
            Ok(None) => return cx.schedule(RETRY_AFTER, Deferred::Exit(serial)),
            Err(error) => {
                warn!(
                    "cannot read the exit status of {}: waitid: {error}; treating it as ended",
                    cx.workers.name(id)
                );
                None
            }
        };
        let interrupted = tty.take_back_from(&cx.workers, serial, exit);
        let death = pidfd::wait(pidfd).ok().flatten();
        if entry.ready_pipe.is_some() {
            // A descendant may keep the other end open forever. The ring must not keep this one.
            cx.poller.forget(Token::ReadyPipe(serial).encode());
        }
        if interrupted {
            let cause = format!("{} was interrupted from the terminal", cx.workers.name(id));
            cx.request(Event::Stop, cause);
        }
        self.first_process_ended(cx, serial, death);
    }

    /// Handles the end of a worker's first process, which is reaped. The helper thread looks for remaining processes,
    /// unless the kernel reports that none is left: then the worker is gone.
    fn first_process_ended(&mut self, cx: &mut Context, serial: u64, death: Option<Death>) {
        let Some(entry) = cx.workers.get(serial) else { return };
        let (worker, first_pid) = (entry.id, entry.pid);
        let first = entry.pidfd.try_clone();
        cx.trees.first_ended(serial);
        cx.workers.reaped(serial);
        let Ok(first) = first else { return self.worker_gone(cx, serial, death) };
        if !may_have_remains(cx, serial) {
            return self.worker_gone(cx, serial, death);
        }
        let remainder = Remainder {
            worker,
            end_expected: cx.policy.expects_end(worker),
            was_starting: cx.policy.is_starting(worker),
            had_stop_signal: self.stops_trees && cx.policy.was_asked_to_stop(worker),
            phase: Phase::Searching(death),
            question: 0,
            due: cx.now(),
            first,
            first_pid,
            hints: cx.meter.processes_of(worker),
            repeats: 0,
        };
        let question = look(cx, &remainder, death);
        self.remainders.insert(serial, Remainder { question, ..remainder });
        self.check_remains_in(cx, ANSWERED_WITHIN, serial);
    }

    fn check_remains_in(&mut self, cx: &mut Context, wait: Duration, serial: u64) {
        let due = cx.now().after(wait);
        if let Some(remainder) = self.remainders.get_mut(&serial) {
            remainder.due = due;
            cx.schedule(wait, Deferred::Remains(serial));
        }
    }

    /// Handles the end of the last process of a worker.
    fn worker_gone(&mut self, cx: &mut Context, serial: u64, death: Option<Death>) {
        let Some(entry) = cx.workers.get(serial) else { return };
        let id = entry.id;
        cx.record_end(id, death);
        cx.broker.leave(cx.now(), serial, cx.policy.expects_end(id));
        self.forget_tree(cx, serial);
        cx.event(Event::Died(id));
    }

    fn forget_tree(&mut self, cx: &mut Context, serial: u64) {
        cx.trees.gone(serial, cx.policy.wanted());
        self.daemons.forget(serial);
        cx.schedule_cgroup_removal();
        cx.call_listeners.forget(serial);
        if !cx.call_listeners.has(serial) {
            cx.broker.forget(serial);
        }
    }

    /// Reads the results of the helper thread.
    pub(super) fn read_trees(&mut self, cx: &mut Context, starts: &mut Starts) {
        for found in cx.trees.take() {
            if found.worker.is_preload() {
                starts.preloads.found(cx, &found);
            } else {
                self.found_tree(cx, &found);
            }
        }
        for (pid, started, worker) in cx.trees.owned() {
            cx.meter.adopt(worker, pid, started);
        }
        cx.broker.set_owners(cx.trees.owners().clone());
        watch_trees(cx);
    }

    fn found_tree(&mut self, cx: &mut Context, found: &Found) {
        let serial = found.worker.serial;
        // Processes that live only for a moment are in no list, but the cgroup counts them.
        let unseen = found.members.is_empty() && cx.trees.is_populated(serial) == Some(true);
        let Some(remainder) = self.remainders.get(&serial) else { return self.daemons.checked(cx, found) };
        match &remainder.phase {
            Phase::Searching(_) if !remainder.is_answered_by(found) => {}
            Phase::Searching(death) => {
                let death = *death;
                if unseen {
                    self.leaves_behind(cx, found.worker, death, &[]);
                } else if found.members.is_empty() {
                    if !self.look_again(cx, serial, death) {
                        self.none_found(cx, serial, death);
                    }
                } else if let Some((main, holds)) = find_daemon(cx, remainder, found, death) {
                    self.becomes_daemon(cx, found.worker, main, holds);
                } else {
                    self.leaves_behind(cx, found.worker, death, &found.members);
                }
            }
            Phase::Stopping(_) if found.members.is_empty() && !unseen => self.remains_gone(cx, serial),
            Phase::Stopping(None) if found.unheeded => cx.event(Event::RemainsUnheeding(found.worker)),
            Phase::Stopping(_) => {}
        }
    }

    /// Looks again for remaining processes, if there may be some; `false` if that was done often enough.
    fn look_again(&mut self, cx: &mut Context, serial: u64, death: Option<Death>) -> bool {
        let may_have_remains = may_have_remains(cx, serial);
        let remainder = self.remainders.get_mut(&serial);
        let Some(remainder) = remainder.filter(|of| may_have_remains && of.repeats < MOST_REPEATS) else {
            return false;
        };
        remainder.repeats += 1;
        remainder.question = look(cx, remainder, death);
        true
    }

    /// Handles an answer without processes although, according to the kernel, a process still has the worker's filter.
    /// That process cannot be told apart from those of other workers. The processes of the first process's group
    /// certainly belong to the worker, so they are killed.
    fn none_found(&mut self, cx: &mut Context, serial: u64, death: Option<Death>) {
        cx.trees.kill_cgroup(serial);
        if let Some(remainder) = self.remainders.remove(&serial)
            && pidfd::kill_led_group(remainder.first.as_fd()).is_ok()
        {
            self.dying_groups.push((remainder.first, remainder.first_pid));
        }
        self.worker_gone(cx, serial, death);
    }

    /// Makes a daemon the process of the worker. If it has ended meanwhile, the helper thread looks again for the
    /// remaining processes.
    fn becomes_daemon(&mut self, cx: &mut Context, worker: WorkerId, main: &Member, holds: Holds) {
        let serial = worker.serial;
        if self.daemons.replace_first(cx, worker, main, holds) {
            self.remainders.remove(&serial);
            return;
        }
        let (own, listeners) = (cx.broker.listeners_of_worker(serial), cx.broker.listeners(serial));
        let question = cx.trees.look(serial, Vec::new(), own, listeners);
        if let Some(remainder) = self.remainders.get_mut(&serial) {
            remainder.question = question;
        }
    }

    /// Reports processes that remain of a worker, and begins to stop them.
    fn leaves_behind(
        &mut self,
        cx: &mut Context,
        worker: WorkerId,
        death: Option<Death>,
        members: &[Member],
    ) {
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
        if cx.policy.was_killed(worker) || cx.trees.limits_met(serial).oom {
            // All of its processes are already being killed, by the supervisor or by the kernel.
            debug!(worker = slot, processes = count, "{line}");
        } else {
            info!(worker = slot, processes = count, "{line}");
        }
        if let Some(remainder) = self.remainders.get_mut(&serial) {
            remainder.phase = Phase::Stopping(None);
        }
        cx.record_end(worker, death);
        let end_expected = self.remainders.get(&serial).is_some_and(|remainder| remainder.end_expected);
        cx.broker.first_ended(cx.now(), serial, end_expected);
        cx.event(Event::DiedWithRemains(worker));
        self.check_remains_in(cx, CHECK_AGAIN, serial);
    }

    /// Sends the remaining processes the stop signal.
    pub(super) fn stop_remains(&self, cx: &mut Context, worker: WorkerId) {
        let Some(remainder) = self.remainders.get(&worker.serial) else { return };
        if !remainder.had_stop_signal {
            cx.trees.signal(worker.serial, self.stop_signal, remainder.hints.clone());
        }
    }

    /// Kills the remaining processes. Returns false if the worker's first process lives.
    fn kill_remains(&mut self, cx: &mut Context, worker: WorkerId) -> bool {
        let now = cx.now();
        let Some(remainder) = self.remainders.get_mut(&worker.serial) else { return false };
        let since = match remainder.phase {
            Phase::Searching(_) => return false,
            Phase::Stopping(since) => since.unwrap_or(now),
        };
        remainder.phase = Phase::Stopping(Some(since));
        let _group_is_empty = pidfd::kill_led_group(remainder.first.as_fd());
        let hints = remainder.hints.clone();
        cx.trees.signal(worker.serial, libc::SIGKILL, hints);
        self.check_remains_in(cx, CHECK_AGAIN, worker.serial);
        true
    }

    /// Checks again which processes of a worker remain.
    pub(super) fn check_remains(&mut self, cx: &mut Context, serial: u64) {
        let now = cx.now();
        let Some(remainder) = self.remainders.get(&serial).filter(|left| left.is_due(now)) else { return };
        match remainder.phase {
            // The helper thread did not answer in time.
            Phase::Searching(death) => self.none_found(cx, serial, death),
            Phase::Stopping(Some(since)) if now.since(since) > KILL_TAKES => {
                warn!(
                    worker = remainder.worker.slot,
                    "cannot kill the processes that worker {} left behind: leaving them",
                    remainder.worker.slot
                );
                self.remains_gone(cx, serial);
            }
            Phase::Stopping(killed) => {
                let (worker, hints) = (remainder.worker, remainder.hints.clone());
                if killed.is_some() {
                    self.kill_remains(cx, worker);
                } else {
                    // With a filter, the kernel reports the end of the last process.
                    if !cx.call_listeners.has(serial) {
                        cx.trees.look(serial, hints, Vec::new(), Vec::new());
                    }
                    self.check_remains_in(cx, CHECK_AGAIN, serial);
                }
            }
        }
    }

    /// Handles the kernel's report that the process tree of a worker is empty.
    pub(super) fn tree_is_empty(&mut self, cx: &mut Context, serial: u64) {
        match self.remainders.get(&serial).map(|remainder| &remainder.phase) {
            Some(Phase::Searching(death)) => {
                let death = *death;
                self.remainders.remove(&serial);
                self.worker_gone(cx, serial, death);
            }
            Some(Phase::Stopping(_)) => self.remains_gone(cx, serial),
            None => {}
        }
    }

    fn remains_gone(&mut self, cx: &mut Context, serial: u64) {
        let Some(remainder) = self.remainders.remove(&serial) else { return };
        debug!(
            worker = remainder.worker.slot,
            "all processes of worker {} have ended", remainder.worker.slot
        );
        cx.broker.leave(cx.now(), serial, remainder.end_expected);
        self.forget_tree(cx, serial);
        cx.event(Event::RemainsGone(remainder.worker));
    }

    /// Reaps the adopted processes that have ended. A worker among them is handled first: otherwise waitid(2) would
    /// return it again before the adopted processes behind it. Returns whether there were any.
    pub(super) fn reap(&mut self, cx: &mut Context, starts: &mut Starts, tty: &Tty) -> bool {
        let found = self.reap_zombies(cx, starts, tty);
        self.dying_groups.retain(|(group, pid)| pidfd::has_group(group.as_fd(), *pid));
        found
    }

    /// Reaps the processes that have ended, up to a limit: a worker that forks without end creates zombies as fast as
    /// they are reaped. The rest follows after the other events. Returns whether there were any.
    fn reap_zombies(&mut self, cx: &mut Context, starts: &mut Starts, tty: &Tty) -> bool {
        for count in 0..MAX_REAPED {
            let Ok(Some(pid)) = pidfd::any_zombie() else { return count > 0 };
            if let Some(serial) = cx.workers.serial_of(pid) {
                self.worker_ended(cx, starts, tty, serial);
                if cx.workers.get(serial).is_some_and(|entry| entry.pid == pid && !entry.reaped) {
                    return true;
                }
            } else if let Some(serial) = starts.serial_of(pid) {
                // The start reaps its process there, or the next round reaps it as a worker.
                starts.check(cx, serial, 0);
                if starts.serial_of(pid).is_some() {
                    return true;
                }
            } else if let Err(error) = pidfd::reap_child(pid) {
                warn!("cannot reap adopted process {}: waitid: {error}", pid.as_raw_pid());
                return true;
            } else {
                debug!(pid = pid.as_raw_pid(), "reaped adopted process {}", pid.as_raw_pid());
            }
        }
        if !std::mem::replace(&mut self.reap_scheduled, true) {
            cx.schedule(Duration::ZERO, Deferred::Reap);
        }
        true
    }

    /// Has the processes that have ended reaped after the next actions of the policy.
    pub(super) fn reap_soon(&mut self) {
        self.reap_scheduled = false;
        self.reap_due = true;
    }

    /// Reaps the processes that have ended, if that is due. Returns whether there were any.
    pub(super) fn reap_if_due(&mut self, cx: &mut Context, starts: &mut Starts, tty: &Tty) -> bool {
        std::mem::take(&mut self.reap_due) && self.reap(cx, starts, tty)
    }

    /// Kills the processes that workers left behind, including daemons that left their process groups. Returns false if
    /// there are none.
    pub(super) fn kill_adopted(&self, cx: &mut Context) -> bool {
        let adopted = adopted(cx);
        if self.dying_groups.is_empty() && adopted.is_empty() && !cx.trees.remove_cgroups() {
            return false;
        }
        for process in adopted {
            // A process that has ended meanwhile is reaped in the next round.
            let _gone = pidfd::kill_child(process);
        }
        true
    }
}

/// Asks the helper thread for the remaining processes of a worker. Returns the number of the question.
fn look(cx: &mut Context, remainder: &Remainder, death: Option<Death>) -> u64 {
    let serial = remainder.worker.serial;
    // The listeners, if one of the remaining processes may become the worker.
    let has_succeeded = death.is_some_and(|death| death.exit == Exit::Code(0));
    let listeners =
        if !remainder.end_expected && has_succeeded { cx.broker.listeners(serial) } else { Vec::new() };
    let own = cx.broker.listeners_of_worker(serial);
    cx.trees.look(serial, remainder.hints.clone(), own, listeners)
}

/// Whether processes of a worker whose first process has ended may live. Three sources tell: the worker's cgroup; its
/// filter, which the kernel keeps while a process has it, whatever cgroup that process is in; and without both of them the
/// children of the supervisor, which has adopted what is left.
fn may_have_remains(cx: &Context, serial: u64) -> bool {
    let populated = cx.trees.is_populated(serial);
    let Some((_, listener)) = cx.call_listeners.get(serial) else {
        let by_children = || !cx.call_listeners.has_hung_up(serial) && cx.trees.may_have_adopted();
        return populated.unwrap_or_else(by_children);
    };
    let mut state = [PollFd::from_borrowed_fd(listener, PollFlags::IN)];
    let _count = poll(&mut state, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    populated == Some(true) || !state[0].revents().intersects(PollFlags::HUP | PollFlags::NVAL)
}

pub(super) fn watch_trees(cx: &mut Context) {
    if let Err(error) = cx.poller.watch(cx.trees.fd(), Token::Trees.encode()) {
        warn!("cannot watch the helper thread: {error}; processes that workers leave behind are found late");
    }
}

/// The process that becomes the worker, if the first process only put the program into the background.
fn find_daemon<'found>(
    cx: &Context,
    remainder: &Remainder,
    found: &'found Found,
    death: Option<Death>,
) -> Option<(&'found Member, Holds)> {
    let exited_successfully = death.is_some_and(|death| death.exit == Exit::Code(0));
    if !exited_successfully || remainder.end_expected {
        return None;
    }
    let notifier = cx.workers.get(found.worker.serial).and_then(|entry| entry.notifier);
    tree::daemon(&found.members, Exited { was_starting: remainder.was_starting, notifier })
}

/// The children that the supervisor adopted because their parents ended, without those that it had before it was
/// exec'ed.
fn adopted(cx: &Context) -> Vec<Pid> {
    children::ours().into_iter().filter(|child| !cx.trees.inherited().contains(child)).collect()
}

/// Makes the cgroup for the workers' cgroups, if one is delegated. Processes that an earlier supervisor left there are killed,
/// unless its workers were to keep running.
///
/// # Errors
/// The user asks for limits, or names a cgroup, and that is not possible here.
pub fn cgroups(config: &Config) -> anyhow::Result<Option<Supervisors>> {
    let (cgroups, leftovers) = match Supervisors::make(config.cgroup.as_deref(), config.cgroup_limits) {
        Ok(made) => made,
        Err(error) => {
            if let Some(option) = asks_for_cgroup(config, &error) {
                anyhow::bail!("{option}: {error}");
            }
            if !matches!(error, Unusable::Undelegated(_)) {
                debug!("cgroups unavailable: {error}; telling the processes of workers apart without them");
            }
            return Ok(None);
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
    Ok(Some(cgroups))
}

/// The option that cannot be applied because of this error.
fn asks_for_cgroup(config: &Config, error: &Unusable) -> Option<&'static str> {
    let options = config.cgroup_limits.options();
    let of_limit = options.iter().find(|(_, controller)| match error {
        Unusable::NoController(missing, _) => missing == controller,
        Unusable::Undelegated(_) | Unusable::NotCgroup(_) | Unusable::Occupied(..) | Unusable::Failed(..) => {
            config.cgroup.is_none()
        }
    });
    of_limit.map(|(option, _)| *option).or(config.cgroup.as_ref().map(|_| "--cgroup"))
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
            repeats: 0,
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
