//! Selection of the sockets of an address that get new connections. An eBPF program selects them where it can be
//! loaded; it also moves the queue of a socket that closes. Elsewhere a classic BPF program selects them.

use std::collections::HashMap;
use std::io;

use serde::{Deserialize, Serialize};

use super::address::Key;
use super::copies::Copies;
use super::core::{Migration, SocketId};
use crate::sys::handover::{Fd, Incoming, Outgoing};
use crate::sys::reuseport::{self, Selector, Spread};

/// The initial capacity of a selector, in sockets; each takes a word of kernel memory. A larger selector replaces it
/// when more sockets join.
const FIRST_CAPACITY: u32 = 16;

/// The selection method of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Method {
    /// `SO_ATTACH_REUSEPORT_EBPF`.
    Program,
    /// `SO_ATTACH_REUSEPORT_CBPF`; a sysctl decides whether queues move.
    Classic(Migration),
}

/// How this host selects the socket of a new connection.
#[derive(Debug)]
pub struct HostSelection {
    /// Why no eBPF program does; `None`: one does.
    pub program_refused: Option<io::Error>,
    /// Whether the queue of a listener that closes moves to its siblings.
    pub moves_queues: bool,
}

impl HostSelection {
    /// Probes the host.
    #[must_use]
    pub fn probe() -> HostSelection {
        match Selector::new(1, Spread::Random) {
            Ok(_loads) => HostSelection { program_refused: None, moves_queues: true },
            Err(error) => HostSelection {
                program_refused: Some(error),
                moves_queues: reuseport::migrates_without_program().unwrap_or(false),
            },
        }
    }

    fn method(&self) -> Method {
        match (&self.program_refused, self.moves_queues) {
            (None, _) => Method::Program,
            (Some(_), true) => Method::Classic(Migration::Moves),
            (Some(_), false) => Method::Classic(Migration::Resets),
        }
    }
}

/// The selectors of all addresses.
#[derive(Debug, Default)]
pub(super) struct Selection {
    method: Option<Method>,
    groups: Vec<Group>,
    /// The addresses for which the eBPF program could not be used, although this host has it, with their targets. After a
    /// restart the kernel needs a moment to forget the one of the earlier supervisor.
    refused: Vec<(Key, Vec<SocketId>)>,
}

/// The selector of one address.
#[derive(Debug)]
struct Group {
    key: Key,
    selector: Selector,
    members: HashMap<SocketId, u32>,
}

/// The selectors as a supervisor hands them over: a socket can be in one array at a time, so another one could not have
/// the members.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct SavedSelection {
    method: Option<Method>,
    groups: Vec<SavedGroup>,
    #[serde(default)]
    refused: Vec<(Key, Vec<SocketId>)>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct SavedGroup {
    key: Key,
    selector: [Fd; 3],
    members: HashMap<SocketId, u32>,
}

impl Selection {
    pub(super) fn save(&self, out: &mut Outgoing) -> SavedSelection {
        let groups = self.groups.iter().map(|group| SavedGroup {
            key: group.key.clone(),
            selector: group.selector.descriptors().map(|fd| out.keep(fd)),
            members: group.members.clone(),
        });
        SavedSelection { method: self.method, groups: groups.collect(), refused: self.refused.clone() }
    }

    pub(super) fn resume(saved: SavedSelection, from: &mut Incoming) -> Selection {
        let mut groups = Vec::new();
        for SavedGroup { key, selector: [sockets, selection, program], members } in saved.groups {
            let descriptors = [from.take(sockets), from.take(selection), from.take(program)];
            let selector = from.need(Selector::from_descriptors(descriptors), "the selector of an address");
            groups.push(Group { key, selector, members });
        }
        Selection { method: saved.method, groups, refused: saved.refused }
    }

    /// What the kernel does with the queue of a closed listener. The host is probed at the first call.
    pub(super) fn migration(&mut self) -> Migration {
        match self.method() {
            Method::Program if self.refused.is_empty() => Migration::Moves,
            Method::Program => Migration::Resets,
            Method::Classic(migration) => migration,
        }
    }

    /// Tries the eBPF program again where it could not be used.
    pub(super) fn retry(&mut self, copies: &Copies) {
        for (key, ids) in std::mem::take(&mut self.refused) {
            if self.select_by_program(&key, &ids, copies).is_err() {
                self.refused.push((key, ids));
            }
        }
    }

    fn method(&mut self) -> Method {
        *self.method.get_or_insert_with(|| HostSelection::probe().method())
    }

    /// Routes new connections of the address to these sockets, each with its number in the kernel's group.
    pub(super) fn select(
        &mut self,
        key: &Key,
        targets: &[(SocketId, usize)],
        copies: &Copies,
    ) -> io::Result<()> {
        let ids: Vec<SocketId> = targets.iter().map(|(id, _)| *id).collect();
        self.refused.retain(|(refused, _)| !refused.matches(key));
        if self.method() == Method::Program {
            if self.select_by_program(key, &ids, copies).is_ok() {
                return Ok(());
            }
            self.refused.push((key.clone(), ids.clone()));
        }
        let Some(any) = ids.iter().find_map(|id| copies.get(*id)) else { return Ok(()) };
        let numbers: Vec<u32> =
            targets.iter().filter_map(|(_, number)| u32::try_from(*number).ok()).collect();
        reuseport::attach_selector(any.fd(), &numbers, spread(key))
    }

    fn select_by_program(&mut self, key: &Key, ids: &[SocketId], copies: &Copies) -> io::Result<()> {
        let at = self.groups.iter().position(|group| group.key.matches(key));
        let at = match at {
            Some(at) if self.groups[at].has_room(ids) => at,
            Some(at) => {
                let capacity = self.groups[at].selector.capacity();
                // A socket can be in only one array at a time.
                self.groups.swap_remove(at);
                self.add_group(key, capacity.saturating_mul(2), ids.len())?
            }
            None => self.add_group(key, FIRST_CAPACITY, ids.len())?,
        };
        self.groups[at].select(ids, copies)
    }

    fn add_group(&mut self, key: &Key, capacity: u32, targets: usize) -> io::Result<usize> {
        let wanted = u32::try_from(targets).unwrap_or(u32::MAX).saturating_mul(2);
        let capacity = capacity.max(wanted).min(reuseport::MAX_CAPACITY);
        let selector = Selector::new(capacity, spread(key))?;
        self.groups.push(Group { key: key.clone(), selector, members: HashMap::new() });
        Ok(self.groups.len() - 1)
    }

    /// Removes a socket that is about to be closed.
    pub(super) fn remove(&mut self, id: SocketId) {
        for group in &mut self.groups {
            if let Some(index) = group.members.remove(&id) {
                // The kernel removes it by itself when it is closed, but not while other processes have it open.
                let _gone_already = group.selector.remove(index);
            }
        }
    }

    /// Forgets an address without sockets. Its next sockets form a new group.
    pub(super) fn forget(&mut self, key: &Key) {
        self.groups.retain(|group| !group.key.matches(key));
        self.refused.retain(|(refused, _)| !refused.matches(key));
    }
}

impl Group {
    fn has_room(&self, ids: &[SocketId]) -> bool {
        let new = ids.iter().filter(|id| !self.members.contains_key(*id)).count();
        self.members.len() + new <= self.selector.capacity() as usize
    }

    fn select(&mut self, ids: &[SocketId], copies: &Copies) -> io::Result<()> {
        let mut indexes = Vec::with_capacity(ids.len());
        for id in ids {
            if let Some(index) = self.members.get(id) {
                indexes.push(*index);
                continue;
            }
            let Some(open) = copies.get(*id) else { continue };
            let free = (0..).find(|index| !self.members.values().any(|used| used == index)).unwrap_or(0);
            self.selector.insert(free, open.fd())?;
            self.members.insert(*id, free);
            indexes.push(free);
        }
        let Some(any) = ids.iter().find_map(|id| copies.get(*id)) else { return Ok(()) };
        self.selector.set_targets(&indexes)?;
        self.selector.attach(any.fd())
    }
}

/// Connections are spread at random; the datagrams of one peer go to the same socket.
fn spread(key: &Key) -> Spread {
    if key.is_datagram() { Spread::Flow } else { Spread::Random }
}
