//! Messages of workers: on the notify socket, and on the pipe of `notify:fd=N`.

use std::os::fd::AsFd;

use rustix::process::Pid;
use tracing::{debug, info, warn};

use super::{Driver, Token};
use crate::config::Identity;
use crate::policy::{Event, ReadySignal};
use crate::sys::notify::{self, NotifySocket, WorkerUser};
use crate::sys::proc_stat;

/// The number of messages that are read in one round of the loop. A worker that floods the socket must not block the
/// loop.
const MAX_MESSAGES: usize = 64;

/// The number of ancestors of a sender that are searched for a worker.
const MAX_ANCESTORS: usize = 16;

/// Opens the socket that the workers send notifications to.
pub(super) fn open_notify_socket(identity: Option<&Identity>) -> std::io::Result<NotifySocket> {
    let user = WorkerUser {
        uid: identity
            .and_then(|identity| identity.uid)
            .unwrap_or_else(|| rustix::process::geteuid().as_raw()),
        gid: identity.map(|identity| identity.gid),
        groups: identity.map_or(&[], |identity| &identity.groups),
    };
    let opened = notify::open(user)?;
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

impl Driver {
    pub(super) fn read_messages(&mut self) {
        for _ in 0..MAX_MESSAGES {
            let Some(message) = self.notify.receive() else {
                break;
            };
            let serial = message.sender.and_then(|sender| self.worker_of(sender)).or_else(|| {
                self.catch_up_with_starts();
                message.sender.and_then(|sender| self.worker_of(sender))
            });
            let Some(serial) = serial.filter(|_| !message.is_sender_gone()) else {
                let pid = message.sender.map(Pid::as_raw_pid);
                debug!("ignored a notification of process {pid:?}: it belongs to no worker");
                continue;
            };
            let parsed = notify::parse(&message.text);
            let Some(id) = self.workers.get(serial).map(|entry| entry.id) else {
                continue;
            };
            if let Some(status) = parsed.status {
                debug!(worker = id.slot, status, "{} status: {status}", self.name(id));
            }
            if let Some(paused) = parsed.pauses_monitor {
                self.event(Event::WatchesItself(id, paused));
            }
            if parsed.ready {
                self.workers.notified(serial, message.sender);
                self.event(Event::ReadySignal(id, ReadySignal::Notify));
            }
        }
        if let Err(error) = self.poller.watch(self.notify.watched(), Token::Messages.encode()) {
            warn!("cannot watch the notify socket: {error}; notifications are not read");
        }
    }

    /// The worker that a process is or descends from. For example, a shell script of a worker runs `systemd-notify`.
    fn worker_of(&self, sender: Pid) -> Option<u64> {
        let group = proc_stat::of(sender).ok().and_then(|stat| stat.group);
        if let Some(serial) = [Some(sender), group]
            .into_iter()
            .flatten()
            .find_map(|pid| self.workers.serial_of(pid))
            .or_else(|| self.trees.owner(sender))
        {
            return Some(serial);
        }
        let mut pid = sender;
        for _ in 0..MAX_ANCESTORS {
            pid = parent_of(pid)?;
            if let Some(serial) = self.workers.serial_of(pid).or_else(|| self.trees.owner(pid)) {
                return Some(serial);
            }
        }
        None
    }

    pub(super) fn read_ready_pipe(&mut self, serial: u64) {
        let Some(entry) = self.workers.get_mut(serial) else {
            return;
        };
        let Some(pipe) = &entry.ready_pipe else { return };
        let id = entry.id;
        let mut text = [0u8; 256];
        match rustix::io::read(pipe, &mut text) {
            Ok(0) => entry.ready_pipe = None,
            Ok(length) if text[..length].contains(&b'\n') => {
                entry.ready_pipe = None;
                self.event(Event::ReadySignal(id, ReadySignal::Notify));
            }
            Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {
                if let Err(error) = self.poller.watch(pipe.as_fd(), Token::ReadyPipe(serial).encode()) {
                    warn!("cannot watch the readiness pipe of {}: {error}; it is not read", self.name(id));
                }
            }
            Err(error) => {
                entry.ready_pipe = None;
                warn!("cannot read the readiness pipe of {}: {error}; closed it", self.name(id));
            }
        }
    }
}

fn parent_of(pid: Pid) -> Option<Pid> {
    proc_stat::of(pid).ok()?.parent
}
