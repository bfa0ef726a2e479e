//! Where a worker listens, and where it is to before it can take its predecessor's place.
//!
//! A program may open a side port, for metrics or a debugger, long before the one that it is there for. So a worker that
//! follows another one is complete only when it listens wherever that one does: on what that one had opened when it
//! became ready or soon after, and still has.
//!
//! Some listeners differ each time, or are opened once and for all, and must not be waited for:
//!
//! * A bind to port 0 is nothing that we follow.
//! * A Unix socket may have a name that is made up: with a pid in it (.NET's diagnostics), or a random one. A name on which
//!   two workers have listened is none of these. Of the others the new worker needs as many as the old one had, whatever
//!   they are called.
//! * A daemon that a worker starts if none runs (epmd) is a process in a session of its own. What it listens on counts only
//!   where the worker has nothing else.

use std::collections::VecDeque;

use super::{Core, Socket, SocketId};
use crate::policy::{Time, WorkerId};
use crate::share::address::Key;

/// Names of Unix sockets that are remembered, of either kind. Made-up ones push each other out; those that a program really
/// has are listened on again by its next worker.
const MAX_NAMES: usize = 1024;

/// A socket on which a worker has called `listen`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Listening {
    id: SocketId,
    /// It belongs to what the worker starts with.
    at_start: bool,
    /// A process in a session of its own has called it: a daemon that the worker has started.
    by_daemon: bool,
}

/// Which names of Unix sockets are the program's, and which may be made up.
#[derive(Debug, Clone, Default)]
pub(super) struct Names {
    /// On which one worker has listened, and which.
    once: VecDeque<(Key, u64)>,
    /// On which several have.
    fixed: VecDeque<Key>,
}

impl Names {
    fn listens(&mut self, serial: u64, key: &Key) {
        if key.has_group() || self.is_fixed(key) {
            return;
        }
        match self.once.iter().position(|(name, _)| name.matches(key)) {
            Some(at) if self.once[at].1 != serial => {
                self.once.remove(at);
                push_bounded(&mut self.fixed, key.clone());
            }
            Some(_its_own) => {}
            None => push_bounded(&mut self.once, (key.clone(), serial)),
        }
    }

    /// A name that the user has given.
    pub(super) fn is_the_programs(&mut self, key: &Key) {
        if !self.is_fixed(key) {
            push_bounded(&mut self.fixed, key.clone());
        }
    }

    fn is_fixed(&self, key: &Key) -> bool {
        key.has_group() || self.fixed.iter().any(|name| name.covers(key))
    }
}

fn push_bounded<T>(list: &mut VecDeque<T>, item: T) {
    if list.len() == MAX_NAMES {
        list.pop_front();
    }
    list.push_back(item);
}

impl Core {
    /// A worker has called `listen` on a socket, successfully. `by_daemon`: a process of it in a session of its own has.
    pub(in crate::share) fn listens(&mut self, now: Time, serial: u64, id: SocketId, by_daemon: bool) {
        let is_noted = |worker: &super::workers::Worker| worker.listens.iter().any(|other| other.id == id);
        if self.workers.get(serial).is_some_and(is_noted) {
            return;
        }
        let Some(mut listens) = self.workers.take_listens(serial) else { return };
        // What it has closed meanwhile counts no more; so no worker can make the list longer than what we keep of it.
        listens.retain(|other| self.is_of(serial, other.id));
        if self.is_of(serial, id) {
            let at_start = self.workers.get(serial).is_some_and(|worker| !worker.is_settled(now));
            listens.push(Listening { id, at_start, by_daemon });
        }
        self.workers.set_listens(serial, listens);
        if let Some(key) = self.socket(id).filter(|socket| !socket.permanent).map(|socket| socket.key.clone())
        {
            self.names.listens(serial, &key);
        }
    }

    /// A worker that listened on one socket has another one in the place of it.
    pub(in crate::share) fn exchanged(&mut self, serial: u64, from: SocketId, to: SocketId) {
        let Some(mut listens) = self.workers.take_listens(serial) else { return };
        listens.iter_mut().filter(|listening| listening.id == from).for_each(|listening| listening.id = to);
        self.workers.set_listens(serial, listens);
        self.workers.note_change(serial);
    }

    /// Whether a worker has this socket, or may have it: one that we opened ourselves is every worker's.
    fn is_of(&self, serial: u64, id: SocketId) -> bool {
        self.socket(id).is_some_and(|socket| {
            socket.active && !socket.released && (socket.permanent || socket.users.contains(&serial))
        })
    }

    /// The sockets that a worker listens on, as far as is known.
    pub(in crate::share) fn listening(&self, serial: u64) -> impl Iterator<Item = &Socket> {
        let is_open = |socket: &&Socket| socket.closed.is_none() && !socket.unlinked;
        self.had_by(serial).map(|(socket, _)| socket).filter(is_open)
    }

    /// What a worker serves: who of its tree goes on as the worker has one of these sockets. What a daemon that it has started
    /// listens on counts only where it had no listener of its own.
    pub(in crate::share) fn served_by(&self, serial: u64) -> Vec<SocketId> {
        let has = |socket: &&Socket| socket.active && !socket.permanent && socket.users.contains(&serial);
        let had = || self.had_by(serial).map(|(socket, listening)| (socket.id, listening.by_daemon));
        let own: Vec<SocketId> = had().filter(|(_, by_daemon)| !by_daemon).map(|(id, _)| id).collect();
        if !own.is_empty() {
            return own;
        }
        // Datagram sockets included, on which nobody listens.
        self.sockets.iter().filter(has).map(|socket| socket.id).collect()
    }

    /// The same, with those that were seen as closed a moment ago.
    fn had_by(&self, serial: u64) -> impl Iterator<Item = (&Socket, Listening)> {
        let listens = self.workers.get(serial).map(|worker| worker.listens.as_slice()).unwrap_or_default();
        let of_worker = move |listening: &&Listening| self.is_of(serial, listening.id);
        listens
            .iter()
            .filter(of_worker)
            .filter_map(|listening| Some((self.socket(listening.id)?, *listening)))
    }

    /// What the successor of a worker is waited for, of those of its sockets that `counts` chooses.
    fn started_with(&self, serial: u64, counts: impl Fn(&Socket) -> bool) -> Vec<Key> {
        let had = || self.had_by(serial).filter(|(socket, listening)| listening.at_start && counts(socket));
        let has_own = had().any(|(_, listening)| !listening.by_daemon);
        let counted = had().filter(|(_, listening)| !(has_own && listening.by_daemon));
        counted.map(|(socket, _)| socket.key.clone()).collect()
    }

    /// Where the slot of a worker is served, or was when its last worker ended, and this one does not listen.
    pub(in crate::share) fn missing(&self, serial: u64) -> Vec<Key> {
        let Some(slot) = self.workers.slot_of(serial) else { return Vec::new() };
        let served = match self.workers.serving(slot) {
            Some(serving) if serving == serial => return Vec::new(),
            Some(serving) => self.started_with(serving, |socket| socket.closed.is_none() && !socket.unlinked),
            None => self.workers.left_in(slot).to_vec(),
        };
        let listens: Vec<&Key> = self.listening(serial).map(|socket| &socket.key).collect();
        let mut missing: Vec<Key> = served.iter().filter(|key| !is_covered(key, &listens)).cloned().collect();
        let made_up = missing.iter().filter(|key| !self.names.is_fixed(key)).count();
        let is_new = |key: &&&Key| !self.names.is_fixed(key) && !served.iter().any(|other| key.covers(other));
        if made_up <= listens.iter().filter(is_new).count() {
            missing.retain(|key| self.names.is_fixed(key));
        }
        missing
    }

    /// A worker that served has ended, and nobody had asked it to: its successor is waited for where it listened. One of its
    /// sockets may have been seen as closed just because it was dying.
    pub(super) fn leave_addresses(&mut self, serial: u64) {
        let Some(worker) = self.workers.get(serial).filter(|worker| worker.in_rotation) else { return };
        let slot = worker.id.slot;
        let keys = self.started_with(serial, |socket| !socket.unlinked);
        self.workers.leave(slot, keys);
    }

    /// Whether the slot of a worker has one that new connections come to.
    pub(in crate::share) fn is_slot_served(&self, serial: u64) -> bool {
        self.workers.slot_of(serial).is_some_and(|slot| self.workers.serving(slot).is_some())
    }

    /// A worker listens, and not yet wherever it is to: what changes in its slot may complete it.
    pub(in crate::share) fn set_incomplete(&mut self, serial: u64, incomplete: bool) {
        self.workers.set_incomplete(serial, incomplete);
    }

    /// Incomplete workers of slots in which something has changed since this was asked last.
    pub(in crate::share) fn take_changed(&mut self) -> Vec<WorkerId> {
        self.workers.take_changed()
    }

    /// Something has become of a socket: who has it may listen elsewhere than before.
    pub(super) fn note_change(&mut self, id: SocketId) {
        let users = self.socket(id).map(|socket| socket.users.clone()).unwrap_or_default();
        users.into_iter().for_each(|user| self.workers.note_change(user));
    }
}

/// Whether who comes to an address reaches one of these, once nobody listens there.
fn is_covered(key: &Key, by: &[&Key]) -> bool {
    let one_covers = |key: &Key| by.iter().any(|one| one.covers(key));
    one_covers(key) || key.families().is_some_and(|families| families.iter().all(one_covers))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::simulation::asked;
    use super::super::{Bind, Migration, SETTLING};
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::new(Duration::from_secs(seconds))
    }

    fn tcp(text: &str) -> Key {
        Key::tcp(text.parse().expect("an address"), false)
    }

    fn v6only(text: &str) -> Key {
        Key::tcp(text.parse().expect("an address"), true)
    }

    /// A core, and workers of slot 0 by their serial.
    struct Slot(Core);

    impl Slot {
        fn new(workers: u64) -> Slot {
            let mut core = Core::new(Migration::Moves);
            for serial in 1..=workers {
                core.started(WorkerId { slot: 0, serial }, u32::try_from(serial).expect("small"));
            }
            Slot(core)
        }

        /// A worker listens on a socket of its own.
        fn listen(&mut self, now: Time, serial: u64, id: SocketId, key: &Key) {
            let bound = self.0.bind(now, asked(serial, id, key, false, true));
            assert!(matches!(bound, Bind::Own { .. }), "{bound:?}");
            assert!(self.0.activated(now, serial, id, key));
            self.0.listens(now, serial, id, false);
        }

        fn missing(&self, serial: u64) -> Vec<Key> {
            self.0.missing(serial)
        }
    }

    /// The first worker serves a side port and its own.
    fn side_and_own(workers: u64) -> (Slot, Key, Key) {
        let (side, own) = (tcp("127.0.0.1:9100"), tcp("0.0.0.0:3000"));
        let mut slot = Slot::new(workers);
        slot.listen(at(1), 1, 10, &side);
        assert_eq!(slot.missing(1), [], "nobody served before it");
        slot.0.set_in_rotation(at(1), 1, true);
        slot.listen(at(3), 1, 11, &own);
        (slot, side, own)
    }

    #[test]
    fn a_successor_is_complete_when_it_listens_wherever_its_predecessor_does() {
        let (mut slot, side, own) = side_and_own(2);
        assert_eq!(slot.missing(2), [side.clone(), own.clone()]);
        slot.listen(at(20), 2, 20, &side);
        assert_eq!(slot.missing(2), std::slice::from_ref(&own));
        slot.listen(at(29), 2, 21, &own);
        assert_eq!(slot.missing(2), []);
    }

    #[test]
    fn the_successor_of_a_crashed_worker_is_waited_for_where_that_listened() {
        let (mut slot, side, own) = side_and_own(2);
        // Found closed a moment before its death: it was dying.
        slot.0.closed(at(20), 1, 11);
        slot.0.died(1, false);
        slot.listen(at(20), 2, 20, &side);
        assert_eq!(slot.missing(2), std::slice::from_ref(&own));
        slot.0.died(2, false);
        slot.0.started(WorkerId { slot: 0, serial: 3 }, 1);
        assert_eq!(slot.missing(3), [side, own], "also after one that never served");
    }

    #[test]
    fn the_successor_of_a_worker_whose_first_process_crashed_is_waited_for_where_that_listened() {
        let (mut slot, side, own) = side_and_own(2);
        slot.0.first_ended(at(20), 1, false);
        slot.listen(at(20), 2, 20, &side);
        assert_eq!(slot.missing(2), std::slice::from_ref(&own));
        // The others of its tree are gone as well.
        slot.0.died(1, false);
        assert_eq!(slot.missing(2), std::slice::from_ref(&own));

        let (mut slot, ..) = side_and_own(2);
        slot.0.first_ended(at(20), 1, true);
        assert_eq!(slot.missing(2), [], "it was asked to stop");
        let (mut slot, ..) = side_and_own(2);
        slot.0.stopping(1);
        slot.0.first_ended(at(20), 1, false);
        assert_eq!(slot.missing(2), [], "it was being stopped");
    }

    #[test]
    fn what_was_opened_long_after_the_worker_was_ready_is_not_waited_for() {
        let (mut slot, side, own) = side_and_own(2);
        let late = tcp("127.0.0.1:30000");
        // As if an earlier one had listened there: else it would not be shared at all.
        slot.0.know(&late);
        slot.listen(at(1).after(SETTLING), 1, 12, &late);
        assert_eq!(slot.missing(2), [side, own]);
    }

    #[test]
    fn what_was_closed_meanwhile_is_not_waited_for() {
        let (mut slot, side, own) = side_and_own(2);
        slot.listen(at(20), 2, 20, &own);
        assert_eq!(slot.missing(2), std::slice::from_ref(&side));
        slot.0.set_incomplete(2, true);
        assert_eq!(slot.0.take_changed(), []);
        slot.0.closed(at(21), 1, 10);
        assert_eq!(slot.missing(2), []);
        let second = WorkerId { slot: 0, serial: 2 };
        assert_eq!(slot.0.take_changed(), [second], "it is to be looked at again");
        assert_eq!(slot.0.take_changed(), [], "once");

        let (mut slot, _, own) = side_and_own(2);
        slot.0.released(1, 10);
        assert_eq!(slot.missing(2), std::slice::from_ref(&own), "wanted for another socket");
        slot.0.shut_down(11);
        assert_eq!(slot.missing(2), [], "shut down");
        slot.0.died(1, false);
        assert_eq!(slot.missing(2), [], "and its death does not bring it back");
        let _none = side;
    }

    #[test]
    fn what_a_successor_closes_again_is_missing_again() {
        let (mut slot, side, own) = side_and_own(2);
        slot.listen(at(20), 2, 20, &side);
        slot.listen(at(20), 2, 21, &own);
        assert_eq!(slot.missing(2), []);
        slot.0.closed(at(21), 2, 21);
        assert_eq!(slot.missing(2), [own]);
    }

    #[test]
    fn one_that_serves_without_an_address_is_the_measure_for_the_next() {
        let (mut slot, side, own) = side_and_own(3);
        slot.listen(at(20), 2, 20, &side);
        // It has said by itself that it is ready.
        slot.0.set_in_rotation(at(20), 2, true);
        slot.0.set_in_rotation(at(20), 1, false);
        assert_eq!(slot.missing(2), []);
        assert_eq!(slot.missing(3), std::slice::from_ref(&side));
        // It dies early, and its predecessor serves again.
        slot.0.died(2, false);
        slot.0.set_in_rotation(at(21), 1, true);
        assert_eq!(slot.missing(3), [side, own]);
    }

    #[test]
    fn a_wider_address_takes_the_place_of_a_narrower_one() {
        for (served, listens, complete) in [
            (vec![tcp("127.0.0.1:80")], vec![tcp("0.0.0.0:80")], true),
            (vec![tcp("127.0.0.1:80")], vec![tcp("[::]:80")], true),
            (vec![tcp("127.0.0.1:80")], vec![v6only("[::]:80")], false),
            (vec![tcp("127.0.0.1:80")], vec![tcp("127.0.0.1:81")], false),
            (vec![tcp("0.0.0.0:80")], vec![tcp("127.0.0.1:80")], false),
            (vec![tcp("0.0.0.0:80"), v6only("[::]:80")], vec![tcp("[::]:80")], true),
            (vec![tcp("[::]:80")], vec![tcp("0.0.0.0:80"), v6only("[::]:80")], true),
            (vec![tcp("[::]:80")], vec![v6only("[::]:80")], false),
            (vec![tcp("[::]:80")], vec![tcp("0.0.0.0:80")], false),
            (vec![tcp("[::1]:80")], vec![v6only("[::]:80")], true),
        ] {
            let mut slot = Slot::new(2);
            for (key, id) in served.iter().zip(10..) {
                slot.listen(at(1), 1, id, key);
            }
            slot.0.set_in_rotation(at(1), 1, true);
            for (key, id) in listens.iter().zip(20..) {
                slot.listen(at(9), 2, id, key);
            }
            assert_eq!(slot.missing(2).is_empty(), complete, "{served:?} {listens:?}");
        }
    }

    #[test]
    fn a_relative_path_means_the_same_address_in_the_folder_of_another_release() {
        let path = |folder: u64, shown: &str| Key::Unix {
            folder: (1, folder),
            name: "app.sock".into(),
            shown: shown.into(),
        };
        assert!(path(2, "run/app.sock").covers(&path(1, "run/app.sock")));
        assert!(path(1, "./app.sock").covers(&path(1, "app.sock")), "one file");
        assert!(!path(2, "/b/app.sock").covers(&path(1, "/a/app.sock")));
    }

    /// A Unix path in a folder of its own.
    fn path(name: &str) -> Key {
        Key::Unix { folder: (1, 1), name: name.into(), shown: format!("/tmp/{name}").into() }
    }

    impl Slot {
        /// A worker listens at a path, or on the socket that its generation has there.
        fn listen_at(&mut self, now: Time, serial: u64, id: SocketId, key: &Key) {
            let bound = self.0.bind_path(now, serial, (id, key), None);
            assert!(matches!(bound, Bind::Own { .. }), "{bound:?}");
            assert!(self.0.activated(now, serial, id, key));
            self.0.listens(now, serial, id, false);
        }
    }

    #[test]
    fn a_socket_whose_name_is_made_up_is_not_waited_for_by_that_name() {
        let own = tcp("127.0.0.1:80");
        let mut slot = Slot::new(3);
        slot.listen_at(at(1), 1, 10, &path("diagnostic-1"));
        slot.listen(at(1), 1, 11, &own);
        slot.0.set_in_rotation(at(1), 1, true);
        assert_eq!(slot.missing(2), [path("diagnostic-1"), own.clone()]);
        slot.listen_at(at(9), 2, 20, &path("diagnostic-2"));
        assert_eq!(slot.missing(2), std::slice::from_ref(&own), "it has one too");
        slot.listen(at(9), 2, 21, &own);
        assert_eq!(slot.missing(2), []);
        slot.listen(at(9), 3, 31, &own);
        assert_eq!(slot.missing(3), [path("diagnostic-1")], "it has none yet");
    }

    #[test]
    fn a_name_on_which_two_workers_have_listened_is_the_programs() {
        let (own, other) = (path("app.sock"), path("other.sock"));
        let mut slot = Slot::new(3);
        slot.listen_at(at(1), 1, 10, &own);
        slot.0.set_in_rotation(at(1), 1, true);
        slot.listen_at(at(9), 2, 20, &own);
        slot.0.set_in_rotation(at(9), 2, true);
        slot.0.set_in_rotation(at(9), 1, false);
        slot.listen_at(at(19), 3, 30, &other);
        assert_eq!(slot.missing(3), [own], "another name is not in its place");
    }

    #[test]
    fn made_up_names_push_each_other_out() {
        let mut names = Names::default();
        for serial in 0..3 * MAX_NAMES as u64 {
            names.listens(serial, &path(&serial.to_string()));
            names.listens(serial, &path("app.sock"));
        }
        assert_eq!((names.once.len(), names.fixed.len()), (MAX_NAMES, 1));
        assert!(names.is_fixed(&path("app.sock")) && !names.is_fixed(&path("1")));
    }

    #[test]
    fn a_daemon_that_a_worker_has_started_is_not_waited_for_beside_what_it_listens_on_itself() {
        let (daemon, own) = (tcp("0.0.0.0:4369"), tcp("127.0.0.1:80"));
        let mut slot = Slot::new(2);
        let _own = slot.0.bind(at(1), asked(1, 10, &daemon, false, true));
        assert!(slot.0.activated(at(1), 1, 10, &daemon));
        slot.0.listens(at(1), 1, 10, true);
        slot.0.set_in_rotation(at(1), 1, true);
        assert_eq!(slot.missing(2), [daemon], "it is all that the worker has");
        slot.listen(at(2), 1, 11, &own);
        assert_eq!(slot.missing(2), [own]);
    }

    #[test]
    fn who_goes_on_as_a_worker_serves_what_that_listened_on_itself() {
        let (daemon, own) = (tcp("0.0.0.0:4369"), tcp("127.0.0.1:80"));
        let mut slot = Slot::new(1);
        assert!(slot.0.served_by(1).is_empty());
        let _own = slot.0.bind(at(1), asked(1, 10, &daemon, false, true));
        assert!(slot.0.activated(at(1), 1, 10, &daemon));
        slot.0.listens(at(1), 1, 10, true);
        assert_eq!(slot.0.served_by(1), [10], "it is all that the worker has");
        slot.listen(at(2), 1, 11, &own);
        assert_eq!(slot.0.served_by(1), [11]);
        slot.0.closed(at(3), 1, 11);
        assert_eq!(slot.0.served_by(1), [11], "it may have been dying");
        slot.0.released(1, 11);
        assert_eq!(slot.0.served_by(1), [10]);
    }

    #[test]
    fn a_socket_that_is_exchanged_for_another_one_keeps_its_place() {
        let mut slot = Slot::new(2);
        let own = path("app.sock");
        slot.listen_at(at(1), 1, 10, &own);
        slot.0.set_in_rotation(at(1), 1, true);
        slot.listen_at(at(9), 2, 20, &path("app.sock.2.tmp"));
        slot.0.set_incomplete(2, true);
        // It moves that to the path, where a sibling of its generation has one.
        slot.0.started(WorkerId { slot: 1, serial: 3 }, 2);
        slot.listen_at(at(9), 3, 30, &own);
        slot.0.released(2, 20);
        slot.0.give(2, 30, false);
        slot.0.exchanged(2, 20, 30);
        assert_eq!(slot.missing(2), []);
        assert_eq!(slot.0.take_changed(), [WorkerId { slot: 0, serial: 2 }]);
    }

    #[test]
    fn a_worker_that_opens_and_closes_for_ever_fills_nothing() {
        let mut slot = Slot::new(1);
        for port in 1..2000u16 {
            let key = Key::tcp(([127, 0, 0, 1], port).into(), false);
            slot.listen(at(1), 1, port.into(), &key);
            slot.0.released(1, port.into());
            let _closed = slot.0.reconcile(at(1));
        }
        let listens = slot.0.workers().get(1).map(|worker| worker.listens.len());
        assert_eq!(listens, Some(1));
    }
}
