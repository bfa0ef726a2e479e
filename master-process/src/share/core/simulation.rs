//! A simulation of an `SO_REUSEPORT` group and its workers. It carries out every effect of the core as the kernel
//! does, and checks the invariants after each.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Bind, BindRequest, Core, Effect, Migration, Scope, SocketId};
use crate::policy::{Time, WorkerId};
use crate::share::address::Key;

/// A `bind` of a worker.
pub(super) fn request(
    serial: u64,
    id: SocketId,
    key: &Key,
    requested_reuseport: bool,
    checked: bool,
) -> BindRequest<'_> {
    BindRequest { serial, id, key, inner: 0, requested_reuseport, checked }
}

/// An action of a worker, the policy or the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// A worker of this slot starts, binds and listens.
    Listen(u32),
    /// The slot's newest worker enters the rotation, and the others leave it.
    EnterRotation(u32),
    /// The slot's oldest worker is sent the stop signal.
    Stop(u32),
    /// The slot's oldest worker dies.
    Die(u32),
    /// The slot's newest worker dies.
    Crash(u32),
    /// The slot's newest worker closes its listener and lives on.
    Close(u32),
    /// The slot's newest worker shuts its listener down.
    ShutDown(u32),
    /// A client connects.
    Connect,
    /// The workers accept the connections in their queues.
    Accept,
    /// Two seconds pass.
    Pass,
}

#[derive(Debug, Clone)]
struct SimSocket {
    worker: u64,
    /// Whether the worker has it open.
    open: bool,
    listening: bool,
    waiting: usize,
}

#[derive(Debug, Clone)]
struct SimWorker {
    id: WorkerId,
    in_rotation: bool,
    stopping: bool,
}

/// The kernel, the workers and the core.
#[derive(Debug, Clone)]
pub(super) struct Simulation {
    core: Core,
    migration: Migration,
    key: Key,
    now: Time,
    /// The sockets in the kernel's order.
    group: Vec<SocketId>,
    /// The attached selection: sockets (an eBPF program) or numbers (a classic one).
    selected: Option<Vec<(SocketId, usize)>>,
    sockets: BTreeMap<SocketId, SimSocket>,
    workers: Vec<SimWorker>,
    serials: u64,
    /// Connections that were reset although a worker served or was to start.
    pub(super) lost: usize,
}

impl Simulation {
    pub(super) fn new(migration: Migration) -> Simulation {
        Simulation {
            core: Core::new(migration),
            migration,
            key: Key::tcp(([127, 0, 0, 1], 80).into(), false),
            now: Time::new(Duration::from_secs(1)),
            group: Vec::new(),
            selected: None,
            sockets: BTreeMap::new(),
            workers: Vec::new(),
            serials: 0,
            lost: 0,
        }
    }

    /// After a restart of the supervisor: a kept listener for each of these slots, of which the first one is selected. Their
    /// inode numbers are 1000 and the following.
    pub(super) fn restored(migration: Migration, slots: &[u32]) -> Simulation {
        let mut simulation = Simulation::new(migration);
        let key = simulation.key.clone();
        for (slot, id) in slots.iter().zip(1000..) {
            let socket = SimSocket { worker: 0, open: false, listening: true, waiting: 0 };
            simulation.sockets.insert(id, socket);
            simulation.group.push(id);
            simulation.core.add_restored(id, &key, Scope::Shard, vec![*slot], true);
        }
        simulation.selected = Some(vec![(1000, 0)]);
        simulation.core.restore_order(&key, simulation.group.clone());
        simulation.reconcile();
        simulation
    }

    /// The sockets to which a new connection may go.
    pub(super) fn selected(&self) -> Vec<SocketId> {
        self.destinations()
    }

    fn of_slot(&self, slot: u32) -> impl DoubleEndedIterator<Item = &SimWorker> {
        self.workers.iter().filter(move |worker| worker.id.slot == slot)
    }

    fn socket_of(&self, serial: u64) -> Option<SocketId> {
        self.sockets.iter().find(|(_, socket)| socket.worker == serial && socket.open).map(|(id, _)| *id)
    }

    /// Takes one step; `false`: the step is not possible now.
    pub(super) fn step(&mut self, step: Step) -> bool {
        match step {
            Step::Listen(slot) => {
                if self.of_slot(slot).count() >= 2 {
                    return false;
                }
                self.listen(slot);
            }
            Step::EnterRotation(slot) => {
                let Some(newest) =
                    self.of_slot(slot).next_back().filter(|worker| !worker.stopping && !worker.in_rotation)
                else {
                    return false;
                };
                let newest = newest.id.serial;
                let all: Vec<u64> = self.of_slot(slot).map(|worker| worker.id.serial).collect();
                for serial in all {
                    self.set_in_rotation(serial, serial == newest);
                }
            }
            Step::Stop(slot) => {
                let Some(oldest) =
                    self.of_slot(slot).next().filter(|worker| !worker.stopping && !worker.in_rotation)
                else {
                    return false;
                };
                let serial = oldest.id.serial;
                self.worker_mut(serial).stopping = true;
                self.core.stopping(serial);
            }
            Step::Die(slot) => {
                let Some(serial) = self.of_slot(slot).next().map(|worker| worker.id.serial) else {
                    return false;
                };
                self.die(serial);
            }
            Step::Crash(slot) => {
                let newest = self.of_slot(slot).next_back().filter(|_| self.of_slot(slot).count() > 1);
                let Some(serial) = newest.map(|worker| worker.id.serial) else { return false };
                self.die(serial);
            }
            Step::Close(slot) => {
                let newest = self.of_slot(slot).next_back().map(|worker| worker.id.serial);
                let Some((serial, id)) = newest.and_then(|serial| Some((serial, self.socket_of(serial)?)))
                else {
                    return false;
                };
                self.socket_mut(id).open = false;
                self.core.closed(self.now, serial, id);
            }
            Step::ShutDown(slot) => {
                let newest = self.of_slot(slot).next_back().map(|worker| worker.id.serial);
                let Some(id) = newest.and_then(|serial| self.socket_of(serial)) else { return false };
                if !self.sockets[&id].listening {
                    return false;
                }
                self.detach(id);
                self.core.shut_down(id);
            }
            Step::Connect => return self.connect(),
            Step::Accept => {
                for socket in self.sockets.values_mut() {
                    let alive = self.workers.iter().any(|worker| worker.id.serial == socket.worker);
                    if alive && socket.open {
                        socket.waiting = 0;
                    }
                }
            }
            Step::Pass => self.now = self.now.after(Duration::from_secs(2)),
        }
        self.reconcile();
        true
    }

    fn worker_mut(&mut self, serial: u64) -> &mut SimWorker {
        self.workers.iter_mut().find(|worker| worker.id.serial == serial).expect("it lives")
    }

    fn socket_mut(&mut self, id: SocketId) -> &mut SimSocket {
        self.sockets.get_mut(&id).expect("it is there")
    }

    fn set_in_rotation(&mut self, serial: u64, in_rotation: bool) {
        self.worker_mut(serial).in_rotation = in_rotation;
        self.core.set_in_rotation(self.now, serial, in_rotation);
    }

    fn listen(&mut self, slot: u32) {
        self.serials += 1;
        let (serial, own) = (self.serials, self.serials * 10);
        let id = WorkerId { slot, serial };
        self.core.started(id, 0);
        self.workers.push(SimWorker { id, in_rotation: false, stopping: false });
        self.note_queues();
        let bind = self.core.bind(self.now, request(serial, own, &self.key.clone(), false, false));
        let listener = match bind {
            Bind::Own { reuseport, .. } => {
                assert_eq!(reuseport, !self.group.is_empty(), "it joins an existing group");
                self.sockets
                    .insert(own, SimSocket { worker: serial, open: true, listening: true, waiting: 0 });
                self.group.push(own);
                own
            }
            Bind::Give(other) => {
                assert_eq!(self.migration, Migration::Resets);
                let given = self.socket_mut(other);
                given.worker = serial;
                given.open = true;
                self.core.give(serial, other, false);
                other
            }
            Bind::Private | Bind::Refuse(_) | Bind::Check(_) => panic!("{bind:?}"),
        };
        assert!(self.core.activated(self.now, serial, listener, &self.key.clone()));
        self.reconcile();
    }

    fn die(&mut self, serial: u64) {
        self.note_queues();
        self.core.died(serial, false);
        self.workers.retain(|worker| worker.id.serial != serial);
        if let Some(id) = self.socket_of(serial) {
            self.socket_mut(id).open = false;
        }
    }

    fn note_queues(&mut self) {
        for (id, socket) in &self.sockets {
            self.core.set_waiting(*id, socket.waiting > 0);
        }
    }

    /// As in the kernel, the last socket takes the free place.
    fn detach(&mut self, id: SocketId) {
        let at = self.group.iter().position(|member| *member == id);
        if let Some(at) = at {
            self.group.swap_remove(at);
        }
        let waiting = std::mem::take(&mut self.socket_mut(id).waiting);
        self.socket_mut(id).listening = false;
        if waiting > 0 && !self.group.is_empty() && self.migration == Migration::Moves {
            let to = self.destinations()[0];
            self.socket_mut(to).waiting += waiting;
        } else {
            self.lost += waiting;
        }
        if self.group.is_empty() {
            self.selected = None;
        }
    }

    /// The sockets to which a new connection may go.
    fn destinations(&self) -> Vec<SocketId> {
        let Some(selected) = &self.selected else { return self.group.clone() };
        match self.migration {
            Migration::Moves => {
                let live: Vec<SocketId> =
                    selected.iter().map(|(id, _)| *id).filter(|id| self.group.contains(id)).collect();
                if live.is_empty() { self.group.clone() } else { live }
            }
            // With an invalid number the kernel chooses among all.
            Migration::Resets if selected.iter().any(|(_, number)| *number >= self.group.len()) => {
                self.group.clone()
            }
            Migration::Resets => selected.iter().map(|(_, number)| self.group[*number]).collect(),
        }
    }

    fn connect(&mut self) -> bool {
        let Some(first) = self.destinations().first().copied() else { return false };
        self.socket_mut(first).waiting += 1;
        true
    }

    fn reconcile(&mut self) {
        // The effects of a round may cause another round.
        for _ in 0..4 {
            self.note_queues();
            let effects = self.core.reconcile(self.now);
            if effects.is_empty() {
                self.check_reconciled();
                return;
            }
            for effect in effects {
                self.apply(&effect);
                self.check_between();
            }
        }
        panic!("it does not come to rest");
    }

    fn apply(&mut self, effect: &Effect) {
        match effect {
            Effect::Select { targets, .. } => {
                assert!(!targets.is_empty());
                for (id, number) in targets {
                    assert_eq!(self.group.get(*number), Some(id), "the numbers are the kernel's");
                }
                self.selected = Some(targets.clone());
            }
            Effect::Close(id) => {
                let socket = &self.sockets[id];
                assert!(!socket.open || !socket.listening, "a worker's own listener is closed under it");
                if socket.listening {
                    self.detach(*id);
                }
                self.sockets.remove(id);
            }
            Effect::Released(_) => assert!(self.group.is_empty()),
            Effect::Arrange(_) | Effect::Unshared(..) => panic!("{effect:?}"),
        }
    }

    /// Whether a worker in rotation has this socket.
    fn is_served(&self, id: SocketId) -> bool {
        let socket = &self.sockets[&id];
        let of_socket = |worker: &&SimWorker| worker.id.serial == socket.worker;
        socket.open
            && self
                .workers
                .iter()
                .find(of_socket)
                .is_some_and(|worker| worker.in_rotation && !worker.stopping)
    }

    /// No connection goes to a socket without a serving worker while another has one.
    fn check_reconciled(&self) {
        if !self.group.iter().any(|id| self.is_served(*id)) {
            return;
        }
        for id in self.destinations() {
            assert!(self.is_served(id), "{id} is not served, and others are: {self:#?}");
        }
    }

    /// The same between effects, if there are enough sockets: the last socket gets the number of one that is closed,
    /// and for that moment neither is chosen.
    fn check_between(&self) {
        let served = self.group.iter().filter(|id| self.is_served(**id)).count();
        if served < 2 {
            return;
        }
        for id in self.destinations() {
            let socket = &self.sockets[&id];
            let alive = self.workers.iter().any(|worker| worker.id.serial == socket.worker);
            assert!(alive && socket.open, "{id} has no worker, and {served} sockets are served: {self:#?}");
        }
    }

    /// Ends all workers, and checks that nothing is left.
    pub(super) fn finish(mut self) {
        for slot in 0..4 {
            while self.step(Step::Die(slot)) {}
            self.core.abandon(slot, |_| false);
            self.reconcile();
        }
        self.step(Step::Pass);
        self.reconcile();
        assert!(self.sockets.values().all(|socket| !socket.listening), "{self:#?}");
        assert!(self.core.sockets().is_empty(), "{self:#?}");
        assert_eq!(self.core.deadline(), None, "no timer is left");
    }

    pub(super) fn waiting(&self) -> usize {
        self.sockets.values().map(|socket| socket.waiting).sum()
    }

    pub(super) fn members(&self) -> usize {
        self.group.len()
    }
}
