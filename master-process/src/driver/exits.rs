//! Deaths: of workers, through their pidfds, and of orphans that were handed to us.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::process::Pid;
use tracing::{debug, warn};

use super::deferred::Deferred;
use super::{Driver, Token};
use crate::policy::Event;
use crate::report::Span;
use crate::sys::{children, pidfd};

/// SIGKILL takes effect within microseconds, unless a process hangs in the kernel.
const LAST_WAIT: Duration = Duration::from_secs(1);

impl Driver {
    /// The pidfd of a worker's first process says that it is gone.
    pub(super) fn worker_ended(&mut self, serial: u64) {
        let Some(entry) = self.workers.get(serial).filter(|entry| !entry.reaped) else {
            // One that was killed before it was a worker.
            return self.look_at_start(serial, 0);
        };
        let (id, pidfd) = (entry.id, entry.pidfd.as_fd());
        let exit = match pidfd::try_wait(pidfd) {
            Ok(Some(exit)) => Some(exit),
            // Its tracer has to be told first. Until then it is as good as gone, and we must not spin.
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
            // A descendant may hold the other end for ever; the ring must not.
            self.poller.forget(Token::ReadyPipe(serial).encode());
        }
        if interrupted {
            self.stop_cause = format!("{} was interrupted from the terminal", self.name(id));
            self.event(Event::Stop);
        }
        self.first_process_ended(serial, death);
    }

    /// Before the end: kills what workers have left behind, daemons that left their groups included, and waits until
    /// all of it is gone. Until then it holds what the next one needs, an address for example. What the kernel
    /// cannot end now is not waited for.
    pub(super) fn outlive_all(&mut self) {
        let until = self.now().after(LAST_WAIT);
        while let Some(left) = Some(until.since(self.now())).filter(|left| !left.is_zero()) {
            self.reap_orphans();
            let orphans = self.adopted();
            if self.dying_groups.is_empty() && orphans.is_empty() && !self.trees.remove_cgroups() {
                return;
            }
            for orphan in orphans {
                // One that is gone meanwhile is reaped in the next round.
                let _gone = pidfd::kill_child(orphan);
            }
            // The signals' watch is what wakes us, or this short while: a grandchild may have another parent.
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

    /// Children that came to us because their parents died; not those that we had before we were who we are.
    fn adopted(&self) -> Vec<Pid> {
        children::ours().into_iter().filter(|child| !self.trees.inherited().contains(child)).collect()
    }

    /// Reaps what nobody else will. A worker among the dead is dealt with on the way: it would otherwise
    /// stand before the orphans behind it.
    pub(super) fn reap_orphans(&mut self) {
        self.reap_zombies();
        self.dying_groups.retain(|(group, pid)| pidfd::has_group(group.as_fd(), *pid));
    }

    fn reap_zombies(&mut self) {
        while let Ok(Some(pid)) = pidfd::any_zombie() {
            if let Some(serial) = self.workers.serial_of(pid) {
                self.worker_ended(serial);
            } else if let Some(serial) = self.starts.serial_of(pid) {
                // What became of it is reaped there, or as a worker in the next round.
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
    }
}
