//! Bounded records of a worker's sockets that are not kept.

use std::collections::VecDeque;

use super::core::SocketId;
use crate::sys::seccomp::SocketOption;

/// The number of options to remember of sockets that are not bound yet. The bound protects the supervisor's memory
/// from a worker that sets options on every outgoing connection. The socket that it binds next is among the latest.
const REMEMBERED_OPTIONS: usize = 32;

/// The number of unshared sockets of a worker to remember. The log names a forgotten one again.
const REMEMBERED_SOCKETS: usize = 256;

/// The options that belong to the identity of an address, as a worker set them.
#[derive(Debug, Default)]
pub(super) struct NotedOptions(VecDeque<(SocketId, SocketOption, bool)>);

impl NotedOptions {
    pub(super) fn set(&mut self, id: SocketId, option: SocketOption, on: bool) {
        self.0.retain(|(at, which, _)| (*at, *which) != (id, option));
        if self.0.len() >= REMEMBERED_OPTIONS {
            self.0.pop_front();
        }
        self.0.push_back((id, option, on));
    }

    pub(super) fn get(&self, id: SocketId, option: SocketOption) -> Option<bool> {
        self.0.iter().find(|(at, which, _)| (*at, *which) == (id, option)).map(|(_, _, on)| *on)
    }
}

/// The latest sockets of some kind.
#[derive(Debug, Default)]
pub(super) struct Recent(VecDeque<SocketId>);

impl Recent {
    pub(super) fn iter(&self) -> impl Iterator<Item = SocketId> {
        self.0.iter().copied()
    }

    /// Returns `false` if the socket was there already.
    pub(super) fn insert(&mut self, id: SocketId) -> bool {
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
}
