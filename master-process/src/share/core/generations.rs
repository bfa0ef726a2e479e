//! The sockets of a Unix path, one for each generation: which of them a worker gets, and which of them clients reach.
//!
//! A worker keeps the socket that it has bound for as long as it lives, and clients reach only one socket. So a
//! worker must bind the socket that will be at the path, and the reload in progress decides which one that is:
//!
//! * No reload, or a failed one: the path stays as it is. A worker of any generation that fills a gap joins the
//!   workers that serve there.
//! * A reload: the path will lead to the socket of its target generation. A worker of that generation joins this
//!   socket or creates it, even if it replaces no worker, because all workers of the socket at the path will stop.
//! * A reload, and no worker accepts at the path any more: the socket there becomes the target's, with its queue.
//!
//! The path moves to the target's socket with the first worker that serves there, so that draining workers get no new
//! connections. It moves away only when no worker serves there. After a reload that failed half-way, workers of
//! several sockets are left. Then the path leads to the socket with most workers, once no worker drains there.

use super::{Core, Scope, Socket, SocketId};
use crate::share::address::Key;

/// A socket of one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SocketState {
    inode: u64,
    generation: u32,
    /// Whether clients reach it at the path.
    at_path: bool,
    listening: bool,
    /// The number of workers that have it and serve.
    serving: usize,
    /// The number of workers that have it, do not serve and were not sent the stop signal: they start, stand by or
    /// drain.
    staying: usize,
}

/// Which socket a worker gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SocketChoice {
    /// Its generation's; the worker creates it if there is none.
    Own,
    /// That of another generation, which stays that generation's.
    Share(u32),
    /// That of another generation, which becomes its own generation's.
    TakeOver(u32),
}

/// Which of a path's sockets a worker of generation `own` gets. `target` is the generation to which the reload in
/// progress leads.
pub(super) fn choose(own: u32, target: Option<u32>, sockets: &[SocketState]) -> SocketChoice {
    let Some(found) = sockets.iter().find(|socket| socket.at_path) else {
        return SocketChoice::Own;
    };
    let other = found.generation;
    if other == own {
        return SocketChoice::Own;
    }
    let has_own = sockets.iter().any(|socket| socket.generation == own);
    match target {
        None => SocketChoice::Share(other),
        Some(_) if has_own => SocketChoice::Own,
        Some(target) if target == own && found.serving + found.staying > 0 => SocketChoice::Own,
        Some(target) if target == own => SocketChoice::TakeOver(other),
        // A worker of an old generation binds late.
        Some(_) => SocketChoice::Share(other),
    }
}

/// Which of a path's sockets must be at the path; `None`: the one that is there.
fn wanted(target: Option<u32>, sockets: &[SocketState]) -> Option<u64> {
    let served = || sockets.iter().filter(|socket| socket.listening && socket.serving > 0);
    let most = |from: &mut dyn Iterator<Item = &SocketState>| {
        from.max_by_key(|socket| (socket.serving, socket.at_path, socket.generation))
            .map(|socket| socket.inode)
    };
    let of_target = served().find(|socket| target == Some(socket.generation));
    let current = served().find(|socket| socket.at_path);
    match (of_target, current, target) {
        (Some(of_target), _, _) => Some(of_target.inode),
        (None, Some(current), Some(_)) => Some(current.inode),
        (None, Some(_), None) => most(&mut served().filter(|socket| socket.at_path || socket.staying == 0)),
        (None, None, _) => most(&mut served()),
    }
}

impl Core {
    /// The states of a path's sockets, for the rules about generations.
    pub(super) fn states_at(&self, key: &Key, at_path: Option<SocketId>) -> Vec<SocketState> {
        let state = |socket: &Socket| {
            let Scope::Generation(generation) = socket.scope else { return None };
            let users = || socket.users.iter().filter_map(|serial| self.workers.get(*serial));
            Some(SocketState {
                inode: socket.id,
                generation,
                at_path: at_path == Some(socket.id),
                listening: socket.active,
                serving: users().filter(|worker| worker.in_rotation).count(),
                staying: users().filter(|worker| !worker.in_rotation && !worker.stopping).count(),
            })
        };
        self.sockets
            .iter()
            .filter(|socket| socket.key.matches(key) && !socket.unlinked)
            .filter_map(state)
            .collect()
    }

    /// Which socket must be at a path; `None`: the one that is there.
    pub(in crate::share) fn wanted_at(&self, key: &Key, at_path: Option<SocketId>) -> Option<SocketId> {
        wanted(self.target, &self.states_at(key, at_path))
    }

    /// Sets the generation to which the reload in progress leads; `None`: there is no reload.
    pub(in crate::share) fn set_target(&mut self, target: Option<u32>) {
        if std::mem::replace(&mut self.target, target) != target {
            let of_path = |socket: &&Socket| matches!(socket.scope, Scope::Generation(_));
            let keys: Vec<Key> =
                self.sockets.iter().filter(of_path).map(|socket| socket.key.clone()).collect();
            keys.iter().for_each(|key| self.touch(key));
        }
    }

    /// The file of a socket is no longer at its path. The next bind there creates another socket.
    pub(in crate::share) fn unlinked(&mut self, id: SocketId) {
        self.note_change(id);
        if let Some(socket) = self.socket_mut(id) {
            socket.unlinked = true;
        }
    }

    /// A worker has removed its path. The file stays, because other workers need it. The worker may bind there again.
    pub(in crate::share) fn leaves_path(&mut self, serial: u64, id: SocketId) {
        if let Some(socket) = self.socket_mut(id) {
            socket.users.retain(|user| *user != serial);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The socket of a generation, whose inode number is ten times the generation's.
    fn socket(generation: u32, serving: usize, staying: usize) -> SocketState {
        let inode = u64::from(generation) * 10;
        SocketState { inode, generation, at_path: false, listening: true, serving, staying }
    }

    fn found(generation: u32, serving: usize, staying: usize) -> SocketState {
        SocketState { at_path: true, ..socket(generation, serving, staying) }
    }

    #[test]
    fn the_first_workers_share_their_generations_socket() {
        assert_eq!(choose(0, None, &[]), SocketChoice::Own);
        assert_eq!(choose(0, None, &[found(0, 0, 1)]), SocketChoice::Own);
    }

    #[test]
    fn a_replacement_of_a_crashed_worker_joins_the_serving_workers() {
        assert_eq!(choose(0, None, &[found(0, 3, 0)]), SocketChoice::Own);
        assert_eq!(choose(2, None, &[found(0, 3, 0)]), SocketChoice::Share(0), "two reloads were given up");
        assert_eq!(
            choose(1, None, &[found(0, 3, 0), socket(1, 1, 0)]),
            SocketChoice::Share(0),
            "one, half-way"
        );
    }

    #[test]
    fn a_replacement_takes_the_queue_when_all_workers_have_crashed() {
        assert_eq!(choose(0, None, &[found(0, 0, 0)]), SocketChoice::Own);
        assert_eq!(choose(1, None, &[found(0, 0, 0)]), SocketChoice::Share(0));
    }

    #[test]
    fn in_a_reload_every_new_worker_gets_its_generations_socket() {
        assert_eq!(choose(1, Some(1), &[found(0, 4, 0)]), SocketChoice::Own, "the first one makes it");
        assert_eq!(
            choose(1, Some(1), &[found(0, 1, 0)]),
            SocketChoice::Own,
            "with most of the old ones not there yet"
        );
        assert_eq!(choose(1, Some(1), &[found(0, 4, 0), socket(1, 0, 1)]), SocketChoice::Own);
        assert_eq!(choose(1, Some(1), &[socket(0, 3, 1), found(1, 1, 0)]), SocketChoice::Own);
        assert_eq!(choose(1, Some(1), &[found(0, 0, 4)]), SocketChoice::Own, "all the old ones drain");
    }

    #[test]
    fn in_a_reload_a_path_without_accepting_workers_is_taken_over_with_its_queue() {
        assert_eq!(choose(1, Some(1), &[found(0, 0, 0)]), SocketChoice::TakeOver(0));
        assert_eq!(
            choose(1, Some(1), &[found(0, 0, 0), socket(1, 0, 1)]),
            SocketChoice::Own,
            "the others have theirs"
        );
    }

    #[test]
    fn an_old_worker_that_binds_late_in_a_reload_makes_no_socket() {
        assert_eq!(choose(0, Some(1), &[found(1, 2, 0)]), SocketChoice::Share(1));
        assert_eq!(
            choose(0, Some(1), &[found(1, 2, 0), socket(0, 1, 0)]),
            SocketChoice::Own,
            "and keeps what it has"
        );
        assert_eq!(choose(0, Some(2), &[found(1, 0, 0)]), SocketChoice::Share(1), "it takes nothing over");
    }

    #[test]
    fn in_a_reload_the_path_moves_to_the_target_with_its_first_serving_worker() {
        assert_eq!(wanted(Some(1), &[found(0, 4, 0), socket(1, 0, 4)]), Some(0));
        assert_eq!(wanted(Some(1), &[found(0, 3, 1), socket(1, 1, 3)]), Some(10));
    }

    #[test]
    fn in_a_reload_the_path_moves_back_when_no_worker_of_the_target_serves() {
        assert_eq!(wanted(Some(1), &[socket(0, 4, 0), found(1, 0, 1)]), Some(0));
        assert_eq!(
            wanted(Some(2), &[socket(0, 3, 1), found(1, 1, 0)]),
            Some(10),
            "and stays where it is served"
        );
    }

    #[test]
    fn after_a_failed_reload_the_path_leads_to_the_socket_with_most_workers() {
        assert_eq!(wanted(None, &[socket(0, 3, 0), found(1, 1, 0)]), Some(0));
        assert_eq!(wanted(None, &[socket(0, 1, 0), found(1, 3, 0)]), Some(10));
        assert_eq!(wanted(None, &[socket(0, 2, 0), found(1, 2, 0)]), Some(10), "and stays in a draw");
        assert_eq!(wanted(None, &[socket(0, 3, 1), found(1, 1, 0)]), Some(10), "as long as one drains there");
    }

    #[test]
    fn the_path_leads_to_a_socket_with_a_serving_worker() {
        assert_eq!(wanted(None, &[socket(0, 1, 3), found(1, 0, 0)]), Some(0));
        assert_eq!(wanted(None, &[socket(0, 0, 2), found(1, 0, 0)]), None);
        let bound = SocketState { listening: false, ..socket(1, 1, 0) };
        assert_eq!(wanted(Some(1), &[found(0, 1, 0), bound]), Some(0), "which takes a listener");
        assert_eq!(wanted(None, &[]), None);
    }
}
