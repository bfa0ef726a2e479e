//! Which of the common types may be in shared memory, or be passed to the kernel as bytes.

use master_process_common::{Account, Control, Death, KernelOffsets, Listener, Owner, Params};

use crate::sys::bpf::{Plain, Shared};

// SAFETY: atomics and nothing else.
unsafe impl Shared for Account {}
// SAFETY: as above.
unsafe impl Shared for Control {}
// SAFETY: as above.
unsafe impl Shared for Listener {}
// SAFETY: as above.
unsafe impl Shared for Owner {}

// SAFETY: twenty-five 32-bit numbers; the assertion of the type's size leaves no room for padding.
unsafe impl Plain for KernelOffsets {}
// SAFETY: a 32-bit number, as above.
unsafe impl Plain for Params {}
// SAFETY: two 64-bit numbers, sixteen bytes and four 32-bit numbers, as above.
unsafe impl Plain for Death {}
