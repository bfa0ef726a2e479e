//! Runs preload commands, and keeps the output of the current generation's command for its workers.
//!
//! The standard output of the command is a file in memory. When the command has succeeded, what is left of its processes is
//! killed, a helper thread seals the file, and every worker that is started from then on gets a descriptor of it.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Pid;
use serde::{Deserialize, Serialize};
use tracing::{debug, error, info, warn};

use super::context::{Context, Deferred, RETRY_AFTER, Token};
use crate::control::{FailedReload, What};
use crate::policy::{AfterPreload, Event, PreloadFailure, Time, WorkerId};
use crate::report::{ExitReport, Size, Span};
use crate::sys::handover::{Fd, Incoming, Outgoing};
use crate::sys::helper::{Helper, Wake};
use crate::sys::memfd;
use crate::sys::pidfd::{self, Death, Exit};
use crate::tree::Found;

/// How soon the supervisor looks again for processes that were killed.
const CHECK_AGAIN: Duration = Duration::from_millis(50);

/// The time that the helper thread has to kill all processes of a command. Then the first one is killed alone.
const TREE_KILLED_WITHIN: Duration = Duration::from_millis(250);

/// SIGKILL takes effect within microseconds, unless a process is blocked in the kernel: then it cannot be ended.
const KILL_TAKES: Duration = Duration::from_secs(5);

/// The stack of the thread that seals, which makes three system calls.
const STACK: usize = 64 * 1024;

/// A command that runs, or whose processes are being ended.
#[derive(Debug)]
struct Running {
    id: WorkerId,
    pid: Pid,
    pidfd: OwnedFd,
    since: Time,
    output: OwnedFd,
    state: State,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum State {
    /// Its first process lives. `killed`: since when it is being killed.
    Alive { killed: Option<Time> },
    /// Its first process has ended at this time, and other processes may live.
    Ended { at: Time, death: Option<Death> },
    /// No process is left, and its output is being sealed.
    Sealing,
}

/// The result of a command: the size of its output, or why it failed.
type Outcome = Result<u64, String>;

/// The thread that seals, which is asked for one file.
type Sealer = Helper<(OwnedFd, u64), (OwnedFd, Outcome)>;

/// The commands, as a supervisor hands them over.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct SavedPreloads {
    running: Option<SavedRunning>,
    complete: Option<(WorkerId, Fd)>,
    last: Option<(WorkerId, Outcome)>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct SavedRunning {
    id: WorkerId,
    #[serde(with = "crate::forms::pid")]
    pid: Pid,
    pidfd: Fd,
    since: Time,
    output: Fd,
    state: State,
}

/// The preload commands of a supervisor. All are `None` in a supervisor without one.
#[derive(Debug, Default)]
pub(super) struct Preloads {
    /// The largest output, in bytes.
    most: u64,
    /// The time that a command may take.
    timeout: Duration,
    /// The output of a command that is being started.
    starting: Option<(WorkerId, OwnedFd)>,
    running: Option<Running>,
    sealer: Option<Sealer>,
    /// The output of a command that is complete, until the policy decides that it is used.
    complete: Option<(WorkerId, OwnedFd)>,
    /// The last command: its size or failure, for the report of it.
    last: Option<(WorkerId, Outcome)>,
}

impl Preloads {
    pub(super) fn new(most: u64, timeout: Duration) -> Preloads {
        Preloads { most, timeout, ..Preloads::default() }
    }

    /// Whether no thread is at work.
    pub(super) fn is_idle(&self) -> bool {
        self.sealer.is_none()
    }

    pub(super) fn save(&self, out: &mut Outgoing) -> SavedPreloads {
        let running = self.running.as_ref().map(|running| SavedRunning {
            id: running.id,
            pid: running.pid,
            pidfd: out.keep(running.pidfd.as_fd()),
            since: running.since,
            output: out.keep(running.output.as_fd()),
            state: running.state,
        });
        let complete = self.complete.as_ref().map(|(id, output)| (*id, out.keep(output.as_fd())));
        SavedPreloads { running, complete, last: self.last.clone() }
    }

    /// Goes on with them.
    pub(super) fn resume(&mut self, cx: &mut Context, saved: SavedPreloads, from: &mut Incoming) {
        self.complete = saved.complete.map(|(id, output)| (id, from.take(output)));
        self.last = saved.last;
        let Some(SavedRunning { id, pid, pidfd, since, output, state }) = saved.running else { return };
        let (pidfd, output) = (from.take(pidfd), from.take(output));
        if let State::Alive { .. } = state {
            cx.watch(pidfd.as_fd(), Token::Exit(id.serial));
            cx.preload_pid = Some(pid.as_raw_pid());
        }
        self.running = Some(Running { id, pid, pidfd, since, output, state });
        // What is left of one that has ended, or is being killed, is looked for again.
        cx.schedule(Duration::ZERO, Deferred::Start(id.serial, 0));
    }

    /// Makes the output of a command that is about to be started. Returns a second descriptor of it.
    pub(super) fn make_output(&mut self, id: WorkerId) -> std::io::Result<OwnedFd> {
        (self.complete, self.last) = (None, None);
        let output = memfd::create("preload")?;
        let of_child = output.try_clone()?;
        self.starting = Some((id, output));
        Ok(of_child)
    }

    /// The command could not be started.
    pub(super) fn not_launched(&mut self, id: WorkerId, why: String) {
        self.starting = None;
        self.last = Some((id, Err(why)));
    }

    /// The command runs.
    pub(super) fn launched(&mut self, cx: &mut Context, id: WorkerId, pid: Pid, pidfd: OwnedFd) {
        let Some((_, output)) = self.starting.take().filter(|(of, _)| *of == id) else { return };
        cx.watch(pidfd.as_fd(), Token::Exit(id.serial));
        debug!(pid = pid.as_raw_pid(), "preload command (pid {}) started", pid.as_raw_pid());
        let state = State::Alive { killed: None };
        cx.preload_pid = Some(pid.as_raw_pid());
        self.running = Some(Running { id, pid, pidfd, since: cx.now(), output, state });
        cx.event(Event::PreloadLaunched(id));
    }

    /// Whether this child is the first process of a command, and is not reaped.
    pub(super) fn is_first(&self, pid: Pid) -> Option<u64> {
        let running = self.running.as_ref().filter(|running| running.pid == pid);
        let running = running.filter(|running| matches!(running.state, State::Alive { .. }));
        running.map(|running| running.id.serial)
    }

    /// Sends all processes of a command the stop signal.
    pub(super) fn stop(&mut self, cx: &mut Context, id: WorkerId) {
        let Some(running) = self.running.as_ref().filter(|running| running.id == id) else { return };
        if let State::Alive { .. } = running.state {
            running.signal(libc::SIGTERM);
            running.signal(libc::SIGCONT);
            cx.trees.signal(id.serial, libc::SIGTERM, Vec::new());
        }
    }

    /// Kills all processes of a command.
    pub(super) fn kill(&mut self, cx: &mut Context, id: WorkerId) {
        let now = cx.now();
        let Some(running) = self.running.as_mut().filter(|running| running.id == id) else { return };
        if let State::Alive { killed } = &mut running.state {
            killed.get_or_insert(now);
            cx.trees.signal(id.serial, libc::SIGKILL, Vec::new());
            cx.schedule(TREE_KILLED_WITHIN, Deferred::Start(id.serial, 0));
        }
    }

    /// Checks a command: whether its first process has ended, and whether others are left. Returns false if there is no
    /// command with this serial.
    pub(super) fn check(&mut self, cx: &mut Context, serial: u64) -> bool {
        let now = cx.now();
        let Some(running) = self.running.as_mut().filter(|running| running.id.serial == serial) else {
            return false;
        };
        match &running.state {
            State::Alive { killed } => match pidfd::try_wait(running.pidfd.as_fd()) {
                Ok(None) => {
                    if killed.is_some_and(|killed| now.since(killed) >= TREE_KILLED_WITHIN) {
                        let _gone = pidfd::kill_group(running.pidfd.as_fd(), running.pid);
                        running.signal(libc::SIGKILL);
                    }
                    // A tracer must be notified first.
                    if running.has_ended() {
                        cx.schedule(RETRY_AFTER, Deferred::Start(serial, 0));
                    }
                }
                Ok(Some(_)) | Err(_) => {
                    let death = pidfd::wait(running.pidfd.as_fd()).ok().flatten();
                    running.state = State::Ended { at: now, death };
                    cx.preload_pid = None;
                    cx.trees.first_ended(serial);
                    let _group_is_empty = pidfd::kill_led_group(running.pidfd.as_fd());
                    cx.trees.signal(serial, libc::SIGKILL, Vec::new());
                    cx.schedule(CHECK_AGAIN, Deferred::Start(serial, 0));
                }
            },
            State::Ended { at, .. } if now.since(*at) > KILL_TAKES => {
                warn!("cannot kill the processes that the preload command left behind: leaving them");
                self.gone(cx);
            }
            State::Ended { .. } => {
                cx.trees.signal(serial, libc::SIGKILL, Vec::new());
                cx.schedule(CHECK_AGAIN, Deferred::Start(serial, 0));
            }
            State::Sealing => {}
        }
        true
    }

    /// The helper thread has looked for the processes of a command.
    pub(super) fn found(&mut self, cx: &mut Context, found: &Found) {
        let serial = found.worker.serial;
        let Some(running) = self.running.as_ref().filter(|running| running.id.serial == serial) else {
            return;
        };
        let is_populated = cx.trees.is_populated(serial) == Some(true);
        if matches!(running.state, State::Ended { .. }) && found.members.is_empty() && !is_populated {
            self.gone(cx);
        }
    }

    /// No process of the command is left.
    fn gone(&mut self, cx: &mut Context) {
        let Some(running) = &mut self.running else { return };
        let id = running.id;
        let State::Ended { death, .. } = std::mem::replace(&mut running.state, State::Sealing) else {
            return;
        };
        cx.trees.gone(id.serial, cx.policy.wanted());
        cx.schedule_cgroup_removal();
        if cx.policy.expects_end(id) {
            return self.end(cx, Err("stopped".to_owned()));
        }
        let took = cx.now().since(running.since);
        match death.map(|death| death.exit) {
            Some(Exit::Code(0)) => self.seal(cx),
            exit => {
                let report = ExitReport::new(death, crate::metrics::ExitDetails::default());
                let too_large = matches!(exit, Some(Exit::Signal { number: libc::SIGXFSZ, .. }));
                let most = if too_large {
                    format!(": it wrote more than {} (--preload-max)", Size(self.most))
                } else {
                    String::new()
                };
                self.end(cx, Err(format!("{report} after {}{most}", Span(took))));
            }
        }
    }

    fn seal(&mut self, cx: &mut Context) {
        let Some(running) = self.running.as_ref() else { return };
        let output = running.output.try_clone();
        let asked = output.and_then(|output| {
            let mut sealer: Sealer = Helper::new("preload", STACK, 1, Wake::new()?, seal);
            cx.watch(sealer.wake().fd(), Token::Sealed);
            let is_asked = sealer.ask((output, self.most));
            self.sealer = Some(sealer);
            if is_asked { Ok(()) } else { Err(std::io::Error::other("the thread cannot be started")) }
        });
        if let Err(error) = asked {
            self.sealer = None;
            self.end(cx, Err(format!("left an output that cannot be sealed: {error}")));
        }
    }

    /// The helper thread has sealed an output, or failed.
    pub(super) fn read_sealed(&mut self, cx: &mut Context) {
        let answers = self.sealer.as_mut().map(Helper::take).unwrap_or_default();
        let Some((output, outcome)) = answers.into_iter().next() else { return };
        self.sealer = None;
        if let (Ok(_), Some(running)) = (&outcome, &self.running) {
            self.complete = Some((running.id, output));
        }
        self.end(cx, outcome);
    }

    fn end(&mut self, cx: &mut Context, outcome: Outcome) {
        let Some(running) = self.running.take() else { return };
        let is_complete = outcome.is_ok();
        self.last = Some((running.id, outcome));
        cx.event(Event::PreloadEnded(running.id, is_complete));
    }

    /// Takes the output of a command that is complete.
    pub(super) fn take_complete(&mut self, id: WorkerId) -> Option<OwnedFd> {
        self.complete.take().filter(|(of, _)| *of == id).map(|(_, output)| output)
    }

    /// Reports a complete command.
    pub(super) fn report_complete(&self, cx: &mut Context, id: WorkerId, generation: u32, took: Duration) {
        let outcome = self.last.as_ref().filter(|(of, _)| *of == id).map(|(_, outcome)| outcome);
        let bytes = outcome.and_then(|outcome| outcome.as_ref().ok()).copied().unwrap_or_default();
        let took_ms = u32::try_from(took.as_millis()).unwrap_or(u32::MAX);
        info!(
            generation,
            bytes,
            took_ms,
            "preload {generation} complete after {}: {}",
            Span(took),
            Size(bytes)
        );
        cx.journal.record(What::Preloaded { generation, bytes, took_ms });
    }

    /// Reports a failed command.
    pub(super) fn report_failure(
        &self,
        cx: &mut Context,
        id: WorkerId,
        generation: u32,
        (cause, next): (PreloadFailure, AfterPreload),
    ) -> FailedReload {
        let last =
            self.last.as_ref().filter(|(of, _)| *of == id).and_then(|(_, outcome)| outcome.as_ref().err());
        let (code, why) = match cause {
            PreloadFailure::NotLaunched => ("preload_failed", last.cloned().unwrap_or_default()),
            PreloadFailure::Ended => ("preload_failed", last.cloned().unwrap_or_else(|| "failed".to_owned())),
            PreloadFailure::Late => {
                ("preload_late", format!("did not end within {} (--ready-timeout)", Span(self.timeout)))
            }
        };
        let message = format!("the preload command {why}");
        match next {
            AfterPreload::Keep(kept) => {
                let old = if kept == 1 {
                    "1 old worker keeps".to_owned()
                } else {
                    format!("{kept} old workers keep")
                };
                error!(generation, kept, "reload {generation} failed: {message}; {old} serving");
            }
            AfterPreload::Retry(wait) => {
                let restart_in_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
                let wait = if wait.is_zero() { "now".to_owned() } else { format!("in {}", Span(wait)) };
                error!(generation, restart_in_ms, "preload {generation} failed: {message}; retrying {wait}");
            }
            AfterPreload::Nothing => error!(generation, "preload {generation} failed: {message}"),
        }
        cx.journal.record(What::PreloadFailed { generation, message: message.as_str().into() });
        FailedReload { code: code.to_owned(), slot: None, attempts: 1, message, output: Vec::new() }
    }
}

impl Running {
    fn has_ended(&self) -> bool {
        let mut state = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let count = poll(&mut state, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        count.is_ok_and(|count| count > 0)
    }

    fn signal(&self, number: i32) {
        // If it is gone, the event of its end follows.
        let _gone = pidfd::signal(self.pidfd.as_fd(), number);
    }
}

/// Seals an output of `most` bytes at most.
fn seal((output, most): (OwnedFd, u64)) -> (OwnedFd, Outcome) {
    let sealed = memfd::seal(output.as_fd());
    let outcome = match sealed {
        Ok(size) if size > most => {
            Err(format!("wrote {}, more than {} (--preload-max)", Size(size), Size(most)))
        }
        Ok(size) => Ok(size),
        Err(error) => Err(format!("left an output that cannot be sealed: {error}")),
    };
    (output, outcome)
}
