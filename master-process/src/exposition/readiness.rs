//! Whether an instance is ready, for load balancers and the like.

use crate::control::{Snapshot, State};

/// Why it is not ready; `None`: every slot has a ready worker, and each accept queue has room.
pub fn not_ready(snapshot: &Snapshot) -> Option<String> {
    let Snapshot { workers_ready, slots_wanted, .. } = snapshot;
    match snapshot.state {
        State::Stopping => Some("stopping".to_owned()),
        State::Degraded => Some(format!("{workers_ready} of {slots_wanted} slots are ready")),
        State::Ready if snapshot.queue_full => Some("an accept queue is full".to_owned()),
        State::Ready => None,
    }
}
