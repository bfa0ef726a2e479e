//! What is remembered of the calls that each worker has made. All of it is bounded, because a worker decides how many
//! calls it makes.

use std::collections::{HashMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::address::Address;
use super::core::SocketId;
use crate::sys::seccomp::SocketOption;

/// The number of options to remember of sockets that are not bound yet. The bound protects the supervisor's memory
/// from a worker that sets options on every outgoing connection. The socket that it binds next is among the latest.
const REMEMBERED_OPTIONS: usize = 32;

/// The number of unshared sockets of a worker to remember. The log names a forgotten one again.
const REMEMBERED_SOCKETS: usize = 256;

/// What is remembered of the calls of one worker.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Caller {
    /// The socket with which its last call replaced its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    given: Option<(SocketId, Address)>,
    /// The sockets given by calls that were interrupted before they returned.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    undelivered: Vec<(SocketId, Address)>,
    /// Pairs of a socket of its own and the socket that replaces it when the worker listens.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    substitutes: Vec<(SocketId, SocketId)>,
    /// `IPV6_V6ONLY` and `SO_REUSEPORT` as it set them, where its sockets cannot be inspected.
    #[serde(skip_serializing_if = "crate::forms::is_default")]
    options: NotedOptions,
    /// Its listeners that are not shared, and need no report.
    #[serde(skip_serializing_if = "crate::forms::is_default")]
    unshared: Recent,
    /// Whether the log says that further sockets of it are not kept.
    #[serde(skip_serializing_if = "crate::forms::is_default")]
    is_full: bool,
    /// The indexes of the `--ready` addresses on which it listens by sockets that are not kept.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    named: Vec<usize>,
}

/// What is remembered of the calls of all workers, by serial.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Callers(HashMap<u64, Caller>);

impl Callers {
    /// A worker is about to start.
    pub(super) fn enter(&mut self, serial: u64) {
        self.0.insert(serial, Caller::default());
    }

    /// A worker's whole process tree has ended.
    pub(super) fn forget(&mut self, serial: u64) {
        self.0.remove(&serial);
    }

    pub(super) fn get(&self, serial: u64) -> Option<&Caller> {
        self.0.get(&serial)
    }

    pub(super) fn get_mut(&mut self, serial: u64) -> Option<&mut Caller> {
        self.0.get_mut(&serial)
    }
}

impl Caller {
    /// Its next call begins.
    pub(super) fn begin_call(&mut self) {
        self.given = None;
    }

    /// Its call replaces its own socket by this one, which it bound to this address.
    pub(super) fn give(&mut self, id: SocketId, address: Address) {
        self.given = Some((id, address));
    }

    /// Its last call was interrupted, so it has not received the answer.
    pub(super) fn interrupted(&mut self) {
        if let Some(given) = self.given.take()
            && !self.undelivered.contains(&given)
        {
            self.undelivered.push(given);
        }
    }

    /// Whether an interrupted call gave it this socket for this address. The entry is removed: if this answer does
    /// not arrive either, it is added again.
    pub(super) fn take_undelivered(&mut self, id: SocketId, address: &Address) -> bool {
        let known = self.undelivered.iter().position(|(at, named)| (*at, named) == (id, address));
        known.map(|at| self.undelivered.swap_remove(at)).is_some()
    }

    /// Sets the socket that replaces its own when it listens.
    pub(super) fn add_substitute(&mut self, own: SocketId, there: SocketId) {
        self.substitutes.push((own, there));
    }

    pub(super) fn substitute(&self, own: SocketId) -> Option<SocketId> {
        self.substitutes.iter().find(|(id, _)| *id == own).map(|(_, there)| *there)
    }

    pub(super) fn forget_substitute(&mut self, own: SocketId) {
        self.substitutes.retain(|(id, _)| *id != own);
    }

    /// Records an option that it sets on a socket.
    pub(super) fn set_option(&mut self, id: SocketId, option: SocketOption, on: bool) {
        self.options.set(id, option, on);
    }

    pub(super) fn option(&self, id: SocketId, option: SocketOption) -> Option<bool> {
        self.options.get(id, option)
    }

    /// Records a listener that is not shared. Returns `false` if it is recorded already.
    pub(super) fn add_unshared(&mut self, id: SocketId) -> bool {
        self.unshared.insert(id)
    }

    pub(super) fn unshared(&self) -> impl Iterator<Item = SocketId> {
        self.unshared.iter()
    }

    /// Records that further sockets of it are not kept. Returns true at the first call.
    pub(super) fn set_full(&mut self) -> bool {
        !std::mem::replace(&mut self.is_full, true)
    }

    /// Records that it listens on these of the `--ready` addresses by sockets that are not kept.
    pub(super) fn add_named(&mut self, named: impl Iterator<Item = usize>) {
        for at in named {
            if !self.named.contains(&at) {
                self.named.push(at);
            }
        }
    }

    /// Whether it listens on this one of the `--ready` addresses by a socket that is not kept.
    pub(super) fn has_named(&self, at: usize) -> bool {
        self.named.contains(&at)
    }
}

/// The options that belong to the identity of an address, as a worker set them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct NotedOptions(VecDeque<(SocketId, SocketOption, bool)>);

impl NotedOptions {
    fn set(&mut self, id: SocketId, option: SocketOption, on: bool) {
        self.0.retain(|(at, which, _)| (*at, *which) != (id, option));
        if self.0.len() >= REMEMBERED_OPTIONS {
            self.0.pop_front();
        }
        self.0.push_back((id, option, on));
    }

    fn get(&self, id: SocketId, option: SocketOption) -> Option<bool> {
        self.0.iter().find(|(at, which, _)| (*at, *which) == (id, option)).map(|(_, _, on)| *on)
    }
}

/// The latest sockets of some kind.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Recent(VecDeque<SocketId>);

impl Recent {
    fn iter(&self) -> impl Iterator<Item = SocketId> {
        self.0.iter().copied()
    }

    /// Returns `false` if the socket was there already.
    fn insert(&mut self, id: SocketId) -> bool {
        if self.0.contains(&id) {
            return false;
        }
        if self.0.len() >= REMEMBERED_SOCKETS {
            self.0.pop_front();
        }
        self.0.push_back(id);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_bounded_and_the_latest_is_kept() {
        let (mut options, mut sockets) = (NotedOptions::default(), Recent::default());
        for id in 0..10_000 {
            options.set(id, SocketOption::V6Only, true);
            assert!(sockets.insert(id));
        }
        assert_eq!((options.0.len(), sockets.0.len()), (REMEMBERED_OPTIONS, REMEMBERED_SOCKETS));
        assert_eq!(options.get(9_999, SocketOption::V6Only), Some(true));
        assert!(!sockets.insert(9_999));
        options.set(9_999, SocketOption::V6Only, false);
        assert_eq!(options.get(9_999, SocketOption::V6Only), Some(false));
    }

    #[test]
    fn a_bind_that_was_interrupted_is_recognised_once_by_its_socket_and_address() {
        let address = |name: &[u8]| Address::Abstract(name.to_vec());
        let mut caller = Caller::default();
        caller.give(7, address(b"a"));
        caller.interrupted();
        assert!(!caller.take_undelivered(8, &address(b"a")));
        assert!(!caller.take_undelivered(7, &address(b"b")));
        assert!(caller.take_undelivered(7, &address(b"a")));
        assert!(!caller.take_undelivered(7, &address(b"a")));
    }
}
