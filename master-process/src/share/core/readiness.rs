//! Where a worker listens, and where it must listen before it can replace its predecessor.
//!
//! A program may open a secondary port, for metrics or a debugger, long before its main port. So the successor of a
//! worker is complete only when it listens on all addresses of its predecessor: those that the predecessor opened
//! before it became ready or soon after, and still has open.
//!
//! Some listeners differ in each worker, or are opened only once, and must not be waited for:
//!
//! * A bind to port 0 is not tracked.
//! * The name of a Unix socket may be generated: with a pid in it (.NET's diagnostics), or at random. A name on which
//!   two workers have listened is not generated. Of the others the new worker needs as many as the old one had, under
//!   any name.
//! * A daemon that a worker starts if none runs (epmd) is a process in a session of its own. Its listeners count only
//!   if the worker has no others.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::workers::Listening;
use super::{Core, Socket, SocketId};
use crate::policy::{Time, WorkerId};
use crate::share::address::Key;

/// The number of names of Unix sockets to remember, of either kind. Generated names displace each other; the
/// program's next worker listens on its real names again.
const MAX_NAMES: usize = 1024;

/// Which names of Unix sockets are fixed in the program, and which may be generated.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Names {
    /// Names on which one worker has listened, with its serial.
    once: VecDeque<(Key, u64)>,
    /// Names on which several workers have listened.
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

    /// Adds a name that the user has configured.
    pub(super) fn add_fixed(&mut self, key: &Key) {
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
    /// A worker has called `listen` on a socket with success. `by_daemon`: a process of it in a session of its own
    /// made the call.
    pub(in crate::share) fn listens(&mut self, now: Time, serial: u64, id: SocketId, by_daemon: bool) {
        let is_noted = |worker: &super::workers::Worker| worker.listens.iter().any(|other| other.id == id);
        if self.workers.get(serial).is_some_and(is_noted) {
            return;
        }
        let Some(mut listens) = self.workers.take_listens(serial) else { return };
        // Sockets that it has closed no longer count, so the list is never longer than the worker's kept sockets.
        listens.retain(|other| self.is_of(serial, other.id));
        if self.is_of(serial, id) {
            let at_start = self.workers.get(serial).is_some_and(|worker| !worker.is_past_startup(now));
            listens.push(Listening { id, at_start, by_daemon });
        }
        self.workers.set_listens(serial, listens);
        if let Some(key) = self.socket(id).filter(|socket| !socket.permanent).map(|socket| socket.key.clone())
        {
            self.names.listens(serial, &key);
        }
    }

    /// Another socket has replaced a listener of a worker.
    pub(in crate::share) fn exchanged(&mut self, serial: u64, from: SocketId, to: SocketId) {
        let Some(mut listens) = self.workers.take_listens(serial) else { return };
        listens.iter_mut().filter(|listening| listening.id == from).for_each(|listening| listening.id = to);
        self.workers.set_listens(serial, listens);
        self.workers.note_change(serial);
    }

    /// Whether a worker has this socket, or may have it: all workers have those that the supervisor opened.
    fn is_of(&self, serial: u64, id: SocketId) -> bool {
        self.socket(id).is_some_and(|socket| {
            socket.active && !socket.released && (socket.permanent || socket.users.contains(&serial))
        })
    }

    /// The sockets on which a worker listens, as far as is known.
    pub(in crate::share) fn listening(&self, serial: u64) -> impl Iterator<Item = &Socket> {
        let is_open = |socket: &&Socket| socket.closed.is_none() && !socket.unlinked;
        self.had_by(serial).map(|(socket, _)| socket).filter(is_open)
    }

    /// What a worker serves: a process of its tree that has one of these sockets continues the worker. Listeners of a
    /// daemon that it has started count only if the worker has none of its own.
    pub(in crate::share) fn served_by(&self, serial: u64) -> Vec<SocketId> {
        let has = |socket: &&Socket| socket.active && !socket.permanent && socket.users.contains(&serial);
        let had = || self.had_by(serial).map(|(socket, listening)| (socket.id, listening.by_daemon));
        let own: Vec<SocketId> = had().filter(|(_, by_daemon)| !by_daemon).map(|(id, _)| id).collect();
        if !own.is_empty() {
            return own;
        }
        // Including datagram sockets, which have no `listen`.
        self.sockets.iter().filter(has).map(|socket| socket.id).collect()
    }

    /// The same, including sockets that were found closed a moment ago.
    fn had_by(&self, serial: u64) -> impl Iterator<Item = (&Socket, Listening)> {
        let listens = self.workers.get(serial).map(|worker| worker.listens.as_slice()).unwrap_or_default();
        let of_worker = move |listening: &&Listening| self.is_of(serial, listening.id);
        listens
            .iter()
            .filter(of_worker)
            .filter_map(|listening| Some((self.socket(listening.id)?, *listening)))
    }

    /// The addresses that a worker's successor must have, of those of its sockets for which `counts` is true.
    fn started_with(&self, serial: u64, counts: impl Fn(&Socket) -> bool) -> Vec<Key> {
        let had = || self.had_by(serial).filter(|(socket, listening)| listening.at_start && counts(socket));
        let has_own = had().any(|(_, listening)| !listening.by_daemon);
        let counted = had().filter(|(_, listening)| !(has_own && listening.by_daemon));
        counted.map(|(socket, _)| socket.key.clone()).collect()
    }

    /// The addresses that the slot of a worker serves, or served when its last worker ended, and on which this worker
    /// does not listen.
    pub(in crate::share) fn missing(&self, serial: u64) -> Vec<Key> {
        let Some(slot) = self.workers.slot_of(serial) else { return Vec::new() };
        let served = match self.workers.serving(slot) {
            Some(serving) if serving == serial => return Vec::new(),
            Some(serving) => self.started_with(serving, |socket| socket.closed.is_none() && !socket.unlinked),
            None => self.workers.left_in(slot).to_vec(),
        };
        let listens: Vec<&Key> = self.listening(serial).map(|socket| &socket.key).collect();
        let mut missing: Vec<Key> = served.iter().filter(|key| !is_covered(key, &listens)).cloned().collect();
        let generated = missing.iter().filter(|key| !self.names.is_fixed(key)).count();
        let is_new = |key: &&&Key| !self.names.is_fixed(key) && !served.iter().any(|other| key.covers(other));
        if generated <= listens.iter().filter(is_new).count() {
            missing.retain(|key| self.names.is_fixed(key));
        }
        missing
    }

    /// A worker that served has ended without a stop signal: its successor must listen on its addresses. One of its
    /// sockets may have been found closed only because it was dying.
    pub(super) fn leave_addresses(&mut self, serial: u64) {
        let Some(worker) = self.workers.get(serial).filter(|worker| worker.in_rotation) else { return };
        let slot = worker.id.slot;
        let keys = self.started_with(serial, |socket| !socket.unlinked);
        self.workers.leave(slot, keys);
    }

    /// Whether the slot of a worker has one in rotation.
    pub(in crate::share) fn is_slot_served(&self, serial: u64) -> bool {
        self.workers.slot_of(serial).is_some_and(|slot| self.workers.serving(slot).is_some())
    }

    /// Sets whether a worker listens, but not yet on all expected addresses. A change in its slot may complete it.
    pub(in crate::share) fn set_incomplete(&mut self, serial: u64, incomplete: bool) {
        self.workers.set_incomplete(serial, incomplete);
    }

    /// Takes the incomplete workers of slots in which a listener has changed.
    pub(in crate::share) fn take_changed(&mut self) -> Vec<WorkerId> {
        self.workers.take_changed()
    }

    /// A socket has changed, so its workers may listen on other addresses than before.
    pub(super) fn note_change(&mut self, id: SocketId) {
        let users = self.socket(id).map(|socket| socket.users.clone()).unwrap_or_default();
        users.into_iter().for_each(|user| self.workers.note_change(user));
    }
}

/// Whether connections to an address reach one of these listeners, if it has none of its own.
fn is_covered(key: &Key, by: &[&Key]) -> bool {
    let one_covers = |key: &Key| by.iter().any(|one| one.covers(key));
    one_covers(key) || key.families().is_some_and(|families| families.iter().all(one_covers))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::simulation::request;
    use super::super::{Bind, Migration, STARTUP};
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
            let bound = self.0.bind(now, request(serial, id, key, false, true));
            assert!(matches!(bound, Bind::Own { .. }), "{bound:?}");
            assert!(self.0.activated(now, serial, id, key));
            self.0.listens(now, serial, id, false);
        }

        fn missing(&self, serial: u64) -> Vec<Key> {
            self.0.missing(serial)
        }
    }

    /// The first worker serves a secondary port and its main port.
    fn side_and_own(workers: u64) -> (Slot, Key, Key) {
        let (side, own) = (tcp("127.0.0.1:9100"), tcp("0.0.0.0:3000"));
        let mut slot = Slot::new(workers);
        slot.listen(at(1), 1, 10, &side);
        assert_eq!(slot.missing(1), [], "no worker served before it");
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
        // It was found closed a moment before the worker ended, because the worker was dying.
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
        // The rest of its process tree has ended too.
        slot.0.died(1, false);
        assert_eq!(slot.missing(2), std::slice::from_ref(&own));

        let (mut slot, ..) = side_and_own(2);
        slot.0.first_ended(at(20), 1, true);
        assert_eq!(slot.missing(2), [], "it was sent the stop signal");
        let (mut slot, ..) = side_and_own(2);
        slot.0.stopping(1);
        slot.0.first_ended(at(20), 1, false);
        assert_eq!(slot.missing(2), [], "it was being stopped");
    }

    #[test]
    fn what_was_opened_long_after_the_worker_was_ready_is_not_waited_for() {
        let (mut slot, side, own) = side_and_own(2);
        let late = tcp("127.0.0.1:30000");
        // As if an earlier worker had listened there; otherwise it would not be shared.
        slot.0.know(&late);
        slot.listen(at(1).after(STARTUP), 1, 12, &late);
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
        assert_eq!(slot.0.take_changed(), [second], "it is to be checked again");
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
    fn a_successor_is_compared_with_the_worker_that_serves_now() {
        let (mut slot, side, own) = side_and_own(3);
        slot.listen(at(20), 2, 20, &side);
        // It has reported its readiness by itself.
        slot.0.set_in_rotation(at(20), 2, true);
        slot.0.set_in_rotation(at(20), 1, false);
        assert_eq!(slot.missing(2), []);
        assert_eq!(slot.missing(3), std::slice::from_ref(&side));
        // It ends early, and its predecessor serves again.
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
        /// A worker listens at a path.
        fn listen_at(&mut self, now: Time, serial: u64, id: SocketId, key: &Key) {
            let bound = self.0.bind_path(now, serial, (id, key), None);
            assert!(matches!(bound, Bind::Own { .. }), "{bound:?}");
            assert!(self.0.activated(now, serial, id, key));
            self.0.listens(now, serial, id, false);
        }
    }

    #[test]
    fn a_socket_with_a_generated_name_is_not_expected_by_that_name() {
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
    fn a_name_on_which_two_workers_have_listened_is_fixed() {
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
    fn generated_names_displace_each_other() {
        let mut names = Names::default();
        for serial in 0..3 * MAX_NAMES as u64 {
            names.listens(serial, &path(&serial.to_string()));
            names.listens(serial, &path("app.sock"));
        }
        assert_eq!((names.once.len(), names.fixed.len()), (MAX_NAMES, 1));
        assert!(names.is_fixed(&path("app.sock")) && !names.is_fixed(&path("1")));
    }

    #[test]
    fn listeners_of_a_daemon_are_expected_only_without_others() {
        let (daemon, own) = (tcp("0.0.0.0:4369"), tcp("127.0.0.1:80"));
        let mut slot = Slot::new(2);
        let _own = slot.0.bind(at(1), request(1, 10, &daemon, false, true));
        assert!(slot.0.activated(at(1), 1, 10, &daemon));
        slot.0.listens(at(1), 1, 10, true);
        slot.0.set_in_rotation(at(1), 1, true);
        assert_eq!(slot.missing(2), [daemon], "it is all that the worker has");
        slot.listen(at(2), 1, 11, &own);
        assert_eq!(slot.missing(2), [own]);
    }

    #[test]
    fn listeners_of_a_daemon_are_served_only_without_others() {
        let (daemon, own) = (tcp("0.0.0.0:4369"), tcp("127.0.0.1:80"));
        let mut slot = Slot::new(1);
        assert!(slot.0.served_by(1).is_empty());
        let _own = slot.0.bind(at(1), request(1, 10, &daemon, false, true));
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
        // It renames that to the path, where a sibling of its generation has a socket.
        slot.0.started(WorkerId { slot: 1, serial: 3 }, 2);
        slot.listen_at(at(9), 3, 30, &own);
        slot.0.released(2, 20);
        slot.0.give(2, 30, false);
        slot.0.exchanged(2, 20, 30);
        assert_eq!(slot.missing(2), []);
        assert_eq!(slot.0.take_changed(), [WorkerId { slot: 0, serial: 2 }]);
    }

    #[test]
    fn a_worker_that_opens_and_closes_forever_uses_bounded_memory() {
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
