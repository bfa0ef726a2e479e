//! Access to numbers in shared memory.
//!
//! The compiler has no atomic loads and stores for the BPF target, but each aligned 64-bit access is atomic. The accesses
//! are volatile, so that the compiler neither splits nor moves them.

use core::sync::atomic::AtomicU64;

/// Reads a number that another CPU may be writing.
#[inline(always)]
pub(crate) fn get(word: &AtomicU64) -> u64 {
    // SAFETY: the reference keeps the address valid and aligned; the machine reads 64 bits at once.
    unsafe { word.as_ptr().read_volatile() }
}

/// Sets a number that another CPU may be reading.
#[inline(always)]
pub(crate) fn set(word: &AtomicU64, value: u64) {
    // SAFETY: as above, and the type allows for shared writing.
    unsafe { word.as_ptr().write_volatile(value) }
}
