//! The ends of processes: of workers, by their pidfds, and of adopted processes.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::process::Pid;
use tracing::{debug, warn};

use super::deferred::Deferred;
use super::{Driver, Token};
use crate::policy::Event;
use crate::report::Span;
use crate::sys::{children, pidfd};

/// SIGKILL takes effect within microseconds, unless a process is blocked in the kernel.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// The number of ended processes that are reaped in one round of the loop: about a millisecond.
const MAX_REAPED: usize = 256;

impl Driver {
    /// Handles the end of a worker's first process, which its pidfd reports.
    pub(super) fn worker_ended(&mut self, serial: u64) {
        let Some(entry) = self.workers.get(serial).filter(|entry| !entry.reaped) else {
            // The process was killed before it became a worker.
            return self.look_at_start(serial, 0);
        };
        let (id, pidfd) = (entry.id, entry.pidfd.as_fd());
        let exit = match pidfd::try_wait(pidfd) {
            Ok(Some(exit)) => Some(exit),
            // A tracer must be notified first. Until then the process counts as ended, and the check is deferred so
            // that the loop does not spin.
            Ok(None) => return self.schedule(Deferred::Exit(serial)),
            Err(error) => {
                warn!(
                    "cannot read the exit status of {}: waitid: {error}; treating it as ended",
                    self.name(id)
                );
                None
            }
        };
        let interrupted = self.take_terminal_back(serial, exit);
        let death = pidfd::wait(pidfd).ok().flatten();
        if entry.ready_pipe.is_some() {
            // A descendant may keep the other end open forever. The ring must not keep this one.
            self.poller.forget(Token::ReadyPipe(serial).encode());
        }
        if interrupted {
            self.stop_cause = format!("{} was interrupted from the terminal", self.name(id));
            self.event(Event::Stop);
        }
        self.first_process_ended(serial, death);
    }

    /// Before the exit, kills the processes that workers left behind, including daemons that left their process groups,
    /// and waits until all of them are gone. Until then they hold resources that the next supervisor needs, for example
    /// an address. The wait is limited, because the kernel cannot end every process at once.
    pub(super) fn end_remaining_processes(&mut self) {
        let until = self.now().after(LAST_WAIT);
        while let Some(left) = Some(until.since(self.now())).filter(|left| !left.is_zero()) {
            self.reap_orphans();
            let orphans = self.adopted();
            if self.dying_groups.is_empty() && orphans.is_empty() && !self.trees.remove_cgroups() {
                return;
            }
            for orphan in orphans {
                // A process that has ended meanwhile is reaped in the next round.
                let _gone = pidfd::kill_child(orphan);
            }
            // The watch of the signals wakes the supervisor, or this short timeout does: a grandchild can have another
            // parent, which gets its SIGCHLD.
            let (mut ready, pause) = (Vec::new(), left.min(Duration::from_millis(10)));
            if self.poller.wait(Some(pause), &mut ready).is_err() {
                return;
            }
            if ready.contains(&Token::Signals.encode()) {
                self.read_signals();
            }
        }
        warn!("processes of workers are still there {} after SIGKILL: exiting without them", Span(LAST_WAIT));
    }

    /// The children that the supervisor adopted because their parents ended, without those that it had before it was
    /// exec'ed.
    fn adopted(&self) -> Vec<Pid> {
        children::ours().into_iter().filter(|child| !self.trees.inherited().contains(child)).collect()
    }

    /// Reaps the adopted processes that have ended. A worker among them is handled first: otherwise waitid(2) would
    /// return it again before the adopted processes behind it.
    pub(super) fn reap_orphans(&mut self) {
        self.reap_zombies();
        self.dying_groups.retain(|(group, pid)| pidfd::has_group(group.as_fd(), *pid));
    }

    /// Reaps the processes that have ended, up to a limit: a worker that forks without end creates zombies as fast as
    /// they are reaped. The rest follows after the other events.
    fn reap_zombies(&mut self) {
        for _ in 0..MAX_REAPED {
            let Ok(Some(pid)) = pidfd::any_zombie() else { return };
            if let Some(serial) = self.workers.serial_of(pid) {
                self.worker_ended(serial);
                if self.workers.get(serial).is_some_and(|entry| entry.pid == pid && !entry.reaped) {
                    return;
                }
            } else if let Some(serial) = self.starts.serial_of(pid) {
                // The start reaps its process there, or the next round reaps it as a worker.
                self.look_at_start(serial, 0);
                if self.starts.serial_of(pid).is_some() {
                    return;
                }
            } else if let Err(error) = pidfd::reap_child(pid) {
                warn!("cannot reap adopted process {}: waitid: {error}", pid.as_raw_pid());
                return;
            } else {
                debug!(pid = pid.as_raw_pid(), "reaped adopted process {}", pid.as_raw_pid());
            }
        }
        if !std::mem::replace(&mut self.reap_scheduled, true) {
            self.schedule(Deferred::Reap);
        }
    }
}
