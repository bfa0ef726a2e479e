//! Numbers in shared memory.
//!
//! The compiler has no instruction for an atomic load or store on this machine, but every aligned access of 64 bits
//! is one; volatile, so that it stays one, in its place.

use core::arch::asm;
use core::sync::atomic::AtomicU64;

/// A number that others may be writing.
#[inline(always)]
pub(crate) fn get(word: &AtomicU64) -> u64 {
    // SAFETY: the reference keeps the address valid and aligned; the machine reads 64 bits at once.
    unsafe { word.as_ptr().read_volatile() }
}

/// Sets a number that others may be reading.
#[inline(always)]
pub(crate) fn set(word: &AtomicU64, value: u64) {
    // SAFETY: as above, and the type allows for shared writing.
    unsafe { word.as_ptr().write_volatile(value) }
}

/// Adds to a number that other CPUs may be adding to.
#[inline(always)]
pub(crate) fn add(word: &AtomicU64, amount: u64) {
    // SAFETY: one atomic addition to memory that the reference keeps valid, and that allows for shared writing.
    unsafe {
        asm!("lock *(u64 *)({word} + 0) += {amount}", word = in(reg) word.as_ptr(), amount = in(reg) amount);
    }
}
