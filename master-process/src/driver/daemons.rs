//! Workers that go into the background: the first process ends, and a daemon that it has started becomes the worker.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::process::{PidfdFlags, pidfd_open};
use tracing::{info, warn};

use super::context::{Context, Deferred, Token};
use crate::config::Config;
use crate::policy::{Event, WorkerId};
use crate::sys::holders::Holds;
use crate::tree::{Found, Member};

/// How soon after a daemon became the worker its listeners are checked again, if the first check had no clear result.
const LISTENS_WITHIN: Duration = Duration::from_secs(1);

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

/// The workers that went into the background.
pub(super) struct Daemons {
    stop_signal: i32,
    ready_timeout: Duration,
    /// The serials of those whose listeners are being checked.
    checking: HashSet<u64>,
}

impl Daemons {
    pub(super) fn new(config: &Config) -> Daemons {
        Daemons {
            stop_signal: config.stop_signal.0,
            ready_timeout: config.ready_timeout,
            checking: HashSet::new(),
        }
    }

    /// The serials of those whose listeners are being checked.
    pub(super) fn checking(&self) -> Vec<u64> {
        self.checking.iter().copied().collect()
    }

    pub(super) fn forget(&mut self, serial: u64) {
        self.checking.remove(&serial);
    }

    /// Makes a daemon the process of the worker, in place of the process that started it. Returns false if the daemon
    /// has ended meanwhile.
    pub(super) fn replace_first(
        &self,
        cx: &mut Context,
        worker: WorkerId,
        main: &Member,
        holds: Holds,
    ) -> bool {
        let serial = worker.serial;
        let handle = pidfd_open(main.pid, PidfdFlags::empty()).ok();
        let Some(handle) = handle.filter(|_| main.is_there()) else {
            return false;
        };
        let before = cx.workers.name(worker);
        cx.watch(handle.as_fd(), Token::Exit(serial));
        cx.trees.replaced(serial, main.pid, main.started);
        cx.broker.launched(worker, main.pid);
        cx.meter.moved(worker, main.pid);
        let (name, pid) = (&main.name, main.pid.as_raw_pid());
        let known = FOREGROUND.iter().find(|(program, _)| name.starts_with(program));
        let hint = known.map_or_else(String::new, |(_, flag)| format!("; {flag} keeps it in the foreground"));
        // A daemon forks twice, and is logged once.
        let first = !cx.workers.get(serial).is_some_and(|entry| entry.in_background);
        if first {
            info!(
                worker = worker.slot,
                pid, "{before} went into the background: {name} (pid {pid}) is now the worker{hint}"
            );
        }
        cx.workers.replace_process(serial, main.pid, handle);
        cx.event(Event::WentIntoBackground(worker));
        let starts = cx.policy.is_starting(worker);
        if starts {
            cx.schedule(self.ready_timeout, Deferred::Background(serial, starts));
        } else if holds == Holds::Unknown {
            cx.schedule(LISTENS_WITHIN, Deferred::Background(serial, starts));
        }
        true
    }

    /// Checks whether a daemon listens. A daemon without a listener is not the worker. The helper thread looks
    /// for the listener.
    pub(super) fn check(&mut self, cx: &mut Context, serial: u64, was_starting: bool) {
        let Some(entry) = cx.workers.get(serial).filter(|entry| !entry.reaped) else { return };
        let id = entry.id;
        // A worker that has become ready since then has listened, or has sent a notification.
        let is_ready = was_starting && !cx.policy.is_starting(id);
        if is_ready || cx.policy.expects_end(id) {
            return;
        }
        if cx.broker.listeners(serial).is_empty() {
            return self.stop(cx, id);
        }
        self.check_again(cx, serial);
    }

    /// Asks the helper thread whether a daemon listens.
    pub(super) fn check_again(&mut self, cx: &mut Context, serial: u64) {
        self.checking.insert(serial);
        let (own, listeners) = (cx.broker.listeners_of_worker(serial), cx.broker.listeners(serial));
        cx.trees.look(serial, Vec::new(), own, listeners);
    }

    /// Handles the answer of the helper thread about a daemon.
    pub(super) fn checked(&mut self, cx: &mut Context, found: &Found) {
        let serial = found.worker.serial;
        let lives = cx.workers.get(serial).is_some_and(|entry| !entry.reaped);
        let none_listens = found.members.iter().all(|member| member.holds == Holds::No);
        let is_checked = self.checking.remove(&serial);
        if is_checked && lives && none_listens && !cx.policy.expects_end(found.worker) {
            self.stop(cx, found.worker);
        }
    }

    fn stop(&self, cx: &mut Context, worker: WorkerId) {
        warn!(
            worker = worker.slot,
            "{} went into the background and is not listening: stopping it",
            cx.workers.name(worker)
        );
        cx.workers.signal(worker, self.stop_signal);
        cx.schedule(LISTENS_WITHIN, Deferred::KillFirst(worker.serial));
    }
}
