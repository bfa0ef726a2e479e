//! The sockets of a Unix path: one for each generation, of which clients reach one.

use super::generations::{self, SocketState};
use super::{Core, Scope, Socket, SocketId};
use crate::share::address::Key;

impl Core {
    /// The states of a path's sockets, for the rules about generations.
    pub(in crate::share) fn states_at(&self, key: &Key, at_path: Option<SocketId>) -> Vec<SocketState> {
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
        generations::wanted(self.target, &self.states_at(key, at_path))
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
