//! The capabilities of this process, see capabilities(7).

use std::io;

use rustix::thread::{CapabilitySet, capabilities, capability_is_in_bounding_set};

use crate::config::Capabilities;

/// The capability sets of the calling thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnCapabilities {
    /// What the thread may use.
    pub permitted: Capabilities,
    /// What the kernel checks.
    pub effective: Capabilities,
    /// What may become a program's by its file; never less than the ambient set.
    pub inheritable: Capabilities,
}

impl OwnCapabilities {
    /// Reads the sets: capget(2).
    ///
    /// # Errors
    /// None that capget(2) has for the calling thread; a seccomp filter may deny the call.
    pub fn read() -> io::Result<OwnCapabilities> {
        let sets = capabilities(None)?;
        let convert = |set: CapabilitySet| Capabilities(set.bits());
        Ok(OwnCapabilities {
            permitted: convert(sets.permitted),
            effective: convert(sets.effective),
            inheritable: convert(sets.inheritable),
        })
    }

    /// What of `wanted` this process cannot give to a child: it is not permitted, or not in the bounding set.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capability_that_is_not_permitted_is_lacking() {
        let none = Capabilities::NONE;
        let own = OwnCapabilities { permitted: none, effective: none, inheritable: none };
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
}
