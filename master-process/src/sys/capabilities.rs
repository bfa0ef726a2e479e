//! The capabilities of this process, and the ones that a worker starts with: capabilities(7).
//!
//! The permitted set of a program after `execve` follows from its user, its file, and the inheritable and ambient sets of
//! its caller. A start empties the last two or sets them to what was requested, so a worker does not get what a service
//! manager gave to the supervisor.

use std::io;

use rustix::thread::{CapabilitySet, capabilities, capability_is_in_bounding_set};

use crate::config::{Capabilities, Identity};

/// The capability sets of the calling thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnCapabilities {
    /// What the thread may use.
    pub permitted: Capabilities,
    /// What the kernel checks.
    pub effective: Capabilities,
    /// The set that a program can get through the inheritable set of its file; a superset of the ambient set.
    pub inheritable: Capabilities,
}

impl OwnCapabilities {
    /// Reads the sets: capget(2).
    ///
    /// # Errors
    /// None of capget(2) apply to the calling thread; a seccomp filter can deny the call.
    pub fn read() -> io::Result<OwnCapabilities> {
        let sets = capabilities(None)?;
        let convert = |set: CapabilitySet| Capabilities(set.bits());
        Ok(OwnCapabilities {
            permitted: convert(sets.permitted),
            effective: convert(sets.effective),
            inheritable: convert(sets.inheritable),
        })
    }

    /// The capabilities of `wanted` that this process cannot give to a child, because they are not permitted or not in
    /// the bounding set.
    #[must_use]
    pub fn lacks(&self, wanted: Capabilities) -> Capabilities {
        let bounded = wanted.numbers().filter(|number| {
            let capability = CapabilitySet::from_bits_retain(1 << number);
            !capability_is_in_bounding_set(capability).unwrap_or(false)
        });
        let unbounded = bounded.fold(Capabilities::NONE, |set, number| set.union(Capabilities(1 << number)));
        wanted.without(self.permitted).union(unbounded)
    }
}

/// The capability sets that a worker has between the change of user and `execve`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerCapabilities {
    /// Permitted and effective set until `execve`, which computes both anew.
    pub(in crate::sys) permitted: Capabilities,
    pub(in crate::sys) effective: Capabilities,
    /// Inheritable and ambient set. The program of an ordinary user has these capabilities after `execve`.
    pub(in crate::sys) ambient: Capabilities,
    /// Whether the change of user must preserve the permitted set: `PR_SET_KEEPCAPS`.
    pub(in crate::sys) keep: bool,
}

impl WorkerCapabilities {
    /// The sets of a worker with the ambient set `ambient`; `None` if nothing has to change. The ambient set is a
    /// subset of the inheritable set, so if the latter is empty, both are.
    #[must_use]
    pub fn new(
        own: &OwnCapabilities,
        ambient: Capabilities,
        identity: Option<&Identity>,
    ) -> Option<WorkerCapabilities> {
        if ambient.is_empty() && own.inheritable.is_empty() {
            return None;
        }
        let becomes_another = identity.is_some_and(|identity| identity.uid.is_some_and(|uid| uid != 0));
        let (permitted, effective) = if becomes_another {
            // The child resolves the command with that user's rights.
            (ambient, ambient)
        } else {
            (own.permitted, own.effective)
        };
        let keep = becomes_another && !ambient.is_empty();
        Some(WorkerCapabilities { permitted, effective, ambient, keep })
    }

    /// The argument of capset(2).
    pub(in crate::sys) fn data(&self) -> [CapData; 2] {
        let [effective, permitted, inheritable] = [self.effective, self.permitted, self.ambient].map(halves);
        [0, 1].map(|half| CapData {
            effective: effective[half],
            permitted: permitted[half],
            inheritable: inheritable[half],
        })
    }
}

/// `struct __user_cap_header_struct` of linux/capability.h.
#[repr(C)]
pub(in crate::sys) struct CapHeader {
    version: u32,
    pid: i32,
}

/// `struct __user_cap_data_struct` of linux/capability.h: one half of each set.
#[repr(C)]
pub(in crate::sys) struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

impl CapHeader {
    /// Version 3: 64 capabilities, the lower 32 in the first [`CapData`]. Pid 0 is the calling thread.
    pub(in crate::sys) const VERSION_3: CapHeader = CapHeader { version: 0x2008_0522, pid: 0 };
}

/// The lower and the upper 32 bits.
fn halves(set: Capabilities) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = set.0.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capability_that_is_not_permitted_is_lacking() {
        let none = Capabilities::NONE;
        let own = own(none, none);
        assert_eq!(own.lacks(Capabilities(1 << 10)), Capabilities(1 << 10));
        assert_eq!(own.lacks(none), none);
    }

    #[test]
    fn a_capability_that_the_kernel_does_not_know_is_lacking() {
        let own = OwnCapabilities {
            permitted: Capabilities(u64::MAX),
            effective: Capabilities::NONE,
            inheritable: Capabilities::NONE,
        };
        assert_eq!(own.lacks(Capabilities(1 << 62)), Capabilities(1 << 62));
    }

    const BIND: Capabilities = Capabilities(1 << 10);
    const BPF: Capabilities = Capabilities(1 << 39);

    fn own(permitted: Capabilities, inheritable: Capabilities) -> OwnCapabilities {
        OwnCapabilities { permitted, effective: permitted, inheritable }
    }

    fn user(uid: u32) -> Identity {
        Identity { uid: Some(uid), gid: 1, groups: Vec::new() }
    }

    #[test]
    fn nothing_is_done_where_there_is_nothing_to_inherit() {
        let none = Capabilities::NONE;
        assert_eq!(WorkerCapabilities::new(&own(BPF, none), none, Some(&user(7))), None);
    }

    #[test]
    fn what_the_supervisor_could_pass_on_is_taken_away() {
        let sets = WorkerCapabilities::new(&own(BPF, BPF), Capabilities::NONE, None);
        let expected =
            WorkerCapabilities { permitted: BPF, effective: BPF, ambient: Capabilities::NONE, keep: false };
        assert_eq!(sets, Some(expected));
    }

    #[test]
    fn another_user_has_what_was_asked_for_and_no_more() {
        let all = Capabilities(u64::MAX);
        let sets = WorkerCapabilities::new(&own(all, Capabilities::NONE), BIND, Some(&user(7)));
        let expected = WorkerCapabilities { permitted: BIND, effective: BIND, ambient: BIND, keep: true };
        assert_eq!(sets, Some(expected));
    }

    #[test]
    fn root_stays_what_it_is_until_it_is_the_program() {
        let all = Capabilities(u64::MAX);
        for identity in [None, Some(user(0)), Some(Identity { uid: None, gid: 1, groups: Vec::new() })] {
            let sets = WorkerCapabilities::new(&own(all, BPF), BIND, identity.as_ref());
            let expected = WorkerCapabilities { permitted: all, effective: all, ambient: BIND, keep: false };
            assert_eq!(sets, Some(expected), "{identity:?}");
        }
    }

    #[test]
    fn each_half_of_a_set_goes_to_its_place() {
        let sets =
            WorkerCapabilities { permitted: BPF, effective: BIND, ambient: BPF.union(BIND), keep: false };
        let data = sets.data().map(|half| (half.permitted, half.effective, half.inheritable));
        assert_eq!(data, [(0, 1 << 10, 1 << 10), (1 << 7, 0, 1 << 7)]);
    }
}
