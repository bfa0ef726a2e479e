//! The listeners that the service manager keeps for the next supervisor: `FDSTORE` of sd_notify(3).
//!
//! What it keeps is compared with what it should keep, and the difference is sent. A name stands for one socket in one
//! state, so a change of the state is a removal and an addition.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use tracing::warn;

use super::context::{Context, Deferred};
use crate::policy::Time;
use crate::sys::sd_notify::{ManagerSocket, NotSent};

/// The time between two comparisons. A start of a thousand workers changes a thousand listeners, one after the other.
const COMPARE_EVERY: Duration = Duration::from_millis(50);

/// How soon messages are sent again that found the service manager's queue full.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// A socket's name and its inode number.
pub(super) type Named = (String, u64);

/// What the service manager keeps of this service.
#[derive(Debug)]
pub(super) struct FdStore {
    /// The number of descriptors that it keeps at most.
    size: usize,
    /// What it keeps, by name.
    stored: HashMap<String, u64>,
    /// The state of the listeners at the last comparison.
    seen: Option<u64>,
    compared_at: Option<Time>,
    scheduled: bool,
    /// Whether the supervisor stops, and the service manager knows the listeners as the next supervisor is to get them.
    is_final: bool,
    /// Whether it was logged that there is not enough room.
    overflow_logged: bool,
}

impl FdStore {
    /// `kept`: what it keeps since an earlier supervisor.
    pub(super) fn new(size: usize, kept: Vec<Named>) -> FdStore {
        let mut stored = HashMap::new();
        for (name, id) in kept {
            // Two sockets with one name are removed together.
            stored.entry(name).and_modify(|id| *id = 0).or_insert(id);
        }
        FdStore {
            size,
            stored,
            seen: None,
            compared_at: None,
            scheduled: false,
            is_final: false,
            overflow_logged: false,
        }
    }

    /// What it keeps.
    pub(super) fn stored(&self) -> Vec<Named> {
        let mut stored: Vec<Named> = self.stored.iter().map(|(name, id)| (name.clone(), *id)).collect();
        stored.sort();
        stored
    }

    /// A comparison is due.
    pub(super) fn due(&mut self) {
        self.scheduled = false;
    }

    /// Compares, unless nothing has changed or the last comparison was a moment ago. When the supervisor stops, this is
    /// the last state, and it is sent at once.
    pub(super) fn after_round(&mut self, cx: &mut Context, socket: &ManagerSocket) {
        let changes = cx.broker.kept_changes();
        if self.seen == Some(changes) || self.scheduled || self.is_final {
            return;
        }
        let now = cx.now();
        let wait = self.compared_at.map_or(Duration::ZERO, |last| last.after(COMPARE_EVERY).since(now));
        if !wait.is_zero() && !cx.policy.is_stopping() {
            return self.schedule(cx, wait);
        }
        self.compared_at = Some(now);
        self.seen = Some(changes);
        match self.update(cx, socket) {
            Ok(()) => self.is_final = cx.policy.is_stopping(),
            Err(NotSent::Full) => {
                self.seen = None;
                self.schedule(cx, RETRY_AFTER);
            }
            Err(NotSent::Failed(_)) => {}
        }
    }

    fn schedule(&mut self, cx: &mut Context, wait: Duration) {
        self.scheduled = true;
        cx.schedule(wait, Deferred::ManagerStore);
    }

    fn update(&mut self, cx: &Context, socket: &ManagerSocket) -> Result<(), NotSent> {
        let wanted = cx.broker.kept();
        let count = wanted.len();
        let wanted = fitting(wanted, self.size);
        if wanted.len() < count && !std::mem::replace(&mut self.overflow_logged, true) {
            warn!(
                "the service manager keeps {} descriptors, and there are {count} listeners: some of them do not survive a \
                 restart of the supervisor; raise FileDescriptorStoreMax=",
                self.size
            );
        }
        let (removed, added) = difference(&self.stored, wanted);
        for name in removed {
            socket.send(&format!("FDSTOREREMOVE=1\nFDNAME={name}\n"), None)?;
            self.stored.remove(&name);
        }
        for (name, id) in added {
            if let Some(fd) = cx.broker.listener(id) {
                socket.send(&format!("FDSTORE=1\nFDNAME={name}\n"), Some(fd))?;
                self.stored.insert(name, id);
            }
        }
        Ok(())
    }
}

/// The names to remove, and the sockets to add after that.
fn difference(stored: &HashMap<String, u64>, wanted: Vec<Named>) -> (Vec<String>, Vec<Named>) {
    let names: HashMap<&str, u64> = wanted.iter().map(|(name, id)| (name.as_str(), *id)).collect();
    let is_outdated = |(name, id): &(&String, &u64)| names.get(name.as_str()) != Some(*id);
    let mut removed: Vec<String> = stored.iter().filter(is_outdated).map(|(name, _)| name.clone()).collect();
    removed.sort();
    let is_new = |(name, id): &Named| stored.get(name) != Some(id);
    (removed, wanted.into_iter().filter(is_new).collect())
}

/// The sockets for which there is room. Those of one address are kept together, because the numbers in their group are
/// known only if all of them are there.
fn fitting(wanted: Vec<Named>, size: usize) -> Vec<Named> {
    if wanted.len() <= size {
        return wanted;
    }
    let mut by_address: BTreeMap<String, Vec<Named>> = BTreeMap::new();
    for (name, id) in wanted {
        let address = name.splitn(4, '/').last().unwrap_or_default().to_owned();
        by_address.entry(address).or_default().push((name, id));
    }
    let mut fitting = Vec::new();
    for of_address in by_address.into_values() {
        if fitting.len() + of_address.len() <= size {
            fitting.extend(of_address);
        }
    }
    fitting
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(sockets: &[(&str, u64)]) -> Vec<Named> {
        sockets.iter().map(|(name, id)| ((*name).to_owned(), *id)).collect()
    }

    fn compared(stored: &[(&str, u64)], wanted: &[(&str, u64)]) -> (Vec<String>, Vec<Named>) {
        difference(&FdStore::new(9, named(stored)).stored, named(wanted))
    }

    #[test]
    fn what_is_kept_already_is_not_sent_again() {
        assert_eq!(compared(&[("a", 1), ("b", 2)], &[("a", 1), ("b", 2)]), (vec![], vec![]));
        assert_eq!(compared(&[("a", 1)], &[("a", 1), ("b", 2)]), (vec![], named(&[("b", 2)])));
        assert_eq!(compared(&[("a", 1), ("b", 2)], &[("b", 2)]), (vec!["a".to_owned()], vec![]));
    }

    #[test]
    fn a_name_of_another_socket_is_removed_first() {
        let (removed, added) = compared(&[("a", 1)], &[("a", 2)]);
        assert_eq!((removed, added), (vec!["a".to_owned()], named(&[("a", 2)])));
        let (removed, added) = compared(&[("n/1", 1)], &[("n/0", 1)]);
        assert_eq!((removed, added), (vec!["n/1".to_owned()], named(&[("n/0", 1)])), "renumbered");
    }

    #[test]
    fn sockets_with_the_same_name_are_sent_anew() {
        let (removed, added) = compared(&[("a", 1), ("a", 2)], &[("a", 1)]);
        assert_eq!((removed, added), (vec!["a".to_owned()], named(&[("a", 1)])));
    }

    #[test]
    fn an_address_is_kept_whole_or_not_at_all() {
        let wanted = [
            ("mp-shard/0/0/tcp/x/80", 1),
            ("mp-shard/0/0/tcp/y/81", 2),
            ("mp-shard/1/1/tcp/x/80", 3),
            ("mp-shard/1/1/tcp/y/81", 4),
        ];
        assert_eq!(fitting(named(&wanted), 4).len(), 4);
        let fitting: Vec<u64> = fitting(named(&wanted), 3).into_iter().map(|(_, id)| id).collect();
        assert_eq!(fitting, [1, 3]);
    }
}
