//! What of the shared types may lie in shared memory, or go to the kernel as it is.

use master_process_common::{Account, Control, Cpu, Layout, Process, Setup};

use crate::sys::bpf::{Plain, Shared};

// SAFETY: atomics and nothing else.
unsafe impl Shared for Account {}
// SAFETY: as above.
unsafe impl Shared for Control {}
// SAFETY: as above.
unsafe impl Shared for Cpu {}
// SAFETY: as above.
unsafe impl Shared for Process {}

// SAFETY: twelve numbers of 32 bits; the size that is asserted beside the type leaves no room for padding.
unsafe impl Plain for Layout {}
// SAFETY: two numbers of 64 bits and four of 32, as above.
unsafe impl Plain for Setup {}
