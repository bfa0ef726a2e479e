//! Work after a call: carrying out decisions, and detecting listeners that workers have closed.

use std::sync::Arc;
use std::time::Duration;

use super::address::Key;
use super::broker::{Broker, PathUse};
use super::caller::bound_key;
use super::core::{Effect, Socket, SocketId};
use super::looks::{Found, Owners, Question};
use super::queues::Watch;
use super::report::Report;
use crate::config::Share;
use crate::policy::Time;
use crate::sys::holders::Holder;
use crate::sys::seccomp::Notification;
use crate::sys::sockets;

/// The number of sockets that one round checks. Each check takes some microseconds, in which the loop waits.
const CHECKS_AT_ONCE: usize = 256;

/// How long after a connection, a `listen` or a start the listeners are checked periodically. Later they are checked
/// with each sample, and with each connection.
const CHECKED_FOR: Duration = Duration::from_secs(10);

impl Broker {
    /// Tells the core whether the kernel moves queues, which decides how to treat the queues of ended workers.
    pub(super) fn choose_migration(&mut self) {
        let migration = self.selection.migration();
        self.core.set_migration(migration);
    }

    /// Carries out the core's effects.
    pub fn reconcile(&mut self, now: Time) {
        self.removals.forget_old(now);
        self.note_queues_of_awaited();
        for effect in self.core.reconcile(now) {
            match effect {
                Effect::Select { key, targets } => {
                    if let Err(error) = self.selection.select(&key, &targets, &self.copies) {
                        self.reports.push(Report::NotSelected { address: key.to_string(), error });
                    }
                }
                Effect::Arrange(key) => self.arrange(&key),
                Effect::Close(id) => {
                    self.selection.remove(id);
                    if let Some(open) = self.copies.get(id) {
                        self.queues.forget(open.fd());
                    }
                    self.copies.close(id);
                }
                Effect::Released(key) => {
                    self.selection.forget(&key);
                    self.reports.push(Report::Closed { address: key.to_string() });
                }
                Effect::Unshared(worker, key) => {
                    self.reports.push(Report::Unshared { worker, address: key.to_string() });
                }
            }
        }
    }

    /// Takes the results of the helper thread. Returns the waiting calls that must be tried again.
    pub fn take_scans(&mut self, now: Time) -> Vec<(u64, Notification)> {
        let mut calls = Vec::new();
        for found in self.looks.take() {
            let serial = found.look.serial;
            self.met_orphan |= matches!(found.found, Found::Holder(_, Holder::Orphan));
            match (found.found, found.look.call) {
                (Found::Holder(id, holder), Some((caller, call))) => {
                    self.found.push((caller, call, id, holder));
                    calls.push((caller, call));
                }
                (Found::Holder(id, Holder::Nobody), None) => {
                    self.choose_migration();
                    self.note_queues(serial);
                    if self.processes.get(&serial).is_some_and(|process| process.remains) {
                        self.core.left(serial, id);
                    } else {
                        self.core.closed(now, serial, id);
                    }
                    let has_others = self.core.socket(id).is_some_and(|socket| {
                        !socket.users.is_empty() || !socket.awaited_by.is_empty() || socket.permanent
                    });
                    if !has_others && let Some(file) = self.copies.file_mut(id) {
                        file.disown();
                    }
                    self.reconcile(now);
                }
                (Found::Holder(id, Holder::Found(thread, fd)), None) => {
                    self.copies.locate(serial, id, thread, fd)
                }
                (Found::Holder(_, Holder::Orphan | Holder::Unknown), None) => {}
                (Found::Epoll(entries), Some((caller, call))) => {
                    self.registered.push((caller, call, entries));
                    calls.push((caller, call));
                }
                (Found::Epoll(_), None) => {}
                (Found::Unaccepted(id, waiting), _) => self.confirm_stall(now, id, waiting),
                (Found::Listeners(listeners), _) => self.report_bypasses(serial, &listeners),
            }
        }
        let (reports, waiting) = self.occupants.take();
        self.reports.extend(reports);
        calls.extend(waiting);
        calls
    }

    /// Whether, since the last call, a scan found a socket in an adopted process whose worker is unknown. Until the
    /// worker is known, the socket counts as open.
    pub fn has_met_orphan(&mut self) -> bool {
        std::mem::take(&mut self.met_orphan)
    }

    /// Sets the known workers of adopted processes.
    pub fn set_owners(&mut self, owners: Owners) {
        self.owners = Arc::new(owners);
    }

    /// Requests a scan for a process of a worker's tree that has a socket open, unless one is in progress.
    pub(super) fn ask_whether_open(&mut self, serial: u64, id: SocketId) {
        let question = Question::Holder(id);
        if !self.looks.is_asked(serial, question, None) {
            self.ask(serial, question, None);
        }
    }

    /// Whether to check soon if workers still have their listeners open. A worker that does not run closes nothing.
    /// So checks follow its visible activity, and an idle host is not disturbed.
    pub fn wants_check(&self, now: Time) -> bool {
        let active = self.active_at.is_some_and(|active| now.since(active) < CHECKED_FOR);
        active && self.core.sockets().iter().any(may_be_closed)
    }

    /// Records an event of a listener.
    pub(super) fn note_activity(&mut self, now: Time) {
        self.active_at = Some(now);
    }

    /// Checks whether workers still have their listeners at the known descriptors. If not, a scan of their
    /// descriptors is requested.
    pub fn check_listeners(&mut self) {
        let candidates: Vec<(u64, SocketId)> = self
            .core
            .sockets()
            .iter()
            .filter(|socket| may_be_closed(socket))
            .flat_map(|socket| socket.users.iter().map(|user| (*user, socket.id)))
            .collect();
        let from = if self.checked < candidates.len() { self.checked } else { 0 };
        let round = candidates.iter().skip(from).take(CHECKS_AT_ONCE);
        self.checked = from + round.len();
        let gone: Vec<(u64, SocketId)> = round
            .filter(|(serial, id)| !self.copies.location(*serial, *id).is_some_and(|at| at.has(*id)))
            .copied()
            .collect();
        for (serial, id) in gone {
            self.ask_whether_open(serial, id);
        }
    }

    /// A worker has served for a moment. Releases what earlier workers of its slot had and it has not, and requests a
    /// scan for listeners that bypass its filter.
    pub fn sweep(&mut self, now: Time, serial: u64) {
        let Some(worker) = self.core.workers().get(serial).filter(|worker| worker.in_rotation) else {
            return;
        };
        let slot = worker.id.slot;
        let listens: Vec<Key> = self.core.listening(serial).map(|socket| socket.key.clone()).collect();
        self.core.abandon(slot, |key: &Key| listens.iter().any(|listened| listened.matches(key)));
        self.core.swept(serial);
        if self.share != Share::Off && self.can_copy {
            self.ask(serial, Question::Listeners, None);
        }
        self.reconcile(now);
    }

    /// Reports listeners of a worker or of a descendant that were opened without a call that the filter sees. Each is
    /// reported once.
    fn report_bypasses(&mut self, serial: u64, listeners: &[(SocketId, std::net::SocketAddr)]) {
        let Some(worker) = self.core.workers().get(serial).map(|worker| worker.id) else { return };
        for (id, address) in listeners {
            let is_ours =
                self.core.socket(*id).is_some() || self.permanent.iter().any(|permanent| permanent.id == *id);
            let Some(process) = self.processes.get_mut(&serial).filter(|_| !is_ours) else { continue };
            if process.alone.insert(*id) {
                self.reports.push(Report::Bypassed { worker, address: address.to_string() });
            }
        }
    }

    /// Releases the sockets that wait for slots without a next worker. `is_needed` tells whether a slot gets a
    /// worker, or may need again what its last one served.
    pub fn abandon_slots(&mut self, now: Time, is_needed: impl Fn(u32) -> bool) {
        let slots = self.core.awaited_slots();
        for slot in slots {
            let may_take =
                self.core.workers().iter().any(|worker| worker.id.slot == slot && worker.may_take_over());
            if !is_needed(slot) && !may_take {
                self.core.abandon(slot, |_| false);
            }
        }
        self.reconcile(now);
    }

    /// The sockets to check a moment later: those about to be bound, or not listening yet.
    pub fn take_unsettled(&mut self) -> Vec<u64> {
        let fresh: Vec<u64> = self.unsettled.iter().filter(|(_, asked)| !asked).map(|(id, _)| *id).collect();
        self.unsettled.iter_mut().for_each(|(_, asked)| *asked = true);
        fresh
    }

    /// Checks a UDP socket that is about to be bound, or a stand-in socket that does not listen yet. If the
    /// program connects the latter instead, our copy would keep the connection open after the worker closes it.
    /// `last`: this is the last check; a socket that is not in use by then is released.
    pub fn check_unsettled(&mut self, now: Time, id: u64, last: bool) -> Watch {
        let Some(open) = self.copies.get(id) else {
            self.unsettled.retain(|(other, _)| *other != id);
            return Watch::Over;
        };
        let Some(socket) = self.core.socket(id) else {
            self.unsettled.retain(|(other, _)| *other != id);
            self.copies.close(id);
            return Watch::Over;
        };
        let (user, datagram) = (socket.users.first().copied(), socket.key.is_datagram());
        let (active, grouped) = (socket.active, socket.key.has_group());
        let done = if datagram {
            match (bound_key(open.fd()), user) {
                (Some(key), Some(user)) => self.core.activated(now, user, id, &key),
                _not_bound_yet => false,
            }
        } else {
            active
        };
        let used_up = !datagram && !done && grouped && !sockets::is_closed(open.fd());
        if !done
            && (used_up || last)
            && let Some(user) = user
        {
            self.core.released(user, id);
        }
        if done || used_up || last {
            self.unsettled.retain(|(other, _)| *other != id);
            self.reconcile(now);
            return Watch::Over;
        }
        Watch::Soon
    }

    /// Records whether the program uses a Unix path.
    pub(super) fn note_path_use(&mut self, in_rotation: bool) {
        let has_path = self.core.sockets().iter().any(|socket| matches!(socket.key, Key::Unix { .. }));
        if in_rotation && self.paths == PathUse::Unknown && !has_path {
            self.paths = PathUse::Unused;
        }
    }
}

fn may_be_closed(socket: &Socket) -> bool {
    socket.active && !socket.permanent && socket.closed.is_none() && !socket.users.is_empty()
}
