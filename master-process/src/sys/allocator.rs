//! Giving memory back to the kernel, and taking less of it.

use std::hint::black_box;

use rustix::mm::{Advice, madvise};

/// Sets the allocator up: it has one heap, and keeps some memory.
///
/// All threads allocate from one heap. glibc gives each thread one of its own, of which some pages stay in use for good;
/// the helper threads allocate little, and one of them runs at a time as a rule. mallopt(3), `M_ARENA_MAX`.
///
/// The memory of an answer about a thousand workers is kept for the next one, until [`release_unused`]: to take it from the kernel
/// anew is a fifth of the time of such an answer. `M_MMAP_THRESHOLD`, `M_TRIM_THRESHOLD`.
pub fn set_up() {
    #[cfg(target_env = "gnu")]
    // SAFETY: calls with numbers.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, KEPT);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
    }
}

/// The most unused memory at the end of the heap, in bytes: an answer about a thousand workers takes some 1.2 MB.
#[cfg(target_env = "gnu")]
const KEPT: libc::c_int = 4 << 20;

/// Returns memory to the kernel that is no longer in use: after the start, that is most of what the start has needed. To be
/// called by the first thread, from a function that is near the start of its stack.
pub fn release_unused() {
    #[cfg(target_env = "gnu")]
    // SAFETY: a call with a number. It takes the locks of the heap as malloc does; malloc_trim(3).
    unsafe {
        libc::malloc_trim(0);
    }
    release_stack();
}

/// How deep earlier calls of the first thread may have been. Nothing else is mapped there: the kernel keeps 1 MiB free below
/// a stack, `stack_guard_gap` in its command line.
const DEEPEST: usize = 512 * 1024;

/// Frees the pages of the first thread's stack below the calls that are in progress.
#[inline(never)]
fn release_stack() {
    let here = 0u8;
    let (page, here) = (rustix::param::page_size(), black_box(&raw const here));
    let end = here.wrapping_sub(here.addr() % page).wrapping_sub(page);
    let start = end.wrapping_sub(DEEPEST).cast_mut().cast();
    // SAFETY: the range is a page or more below the newest frame, on the stack of this thread, or where nothing is mapped; the
    // system call itself has no frame there. Later calls find zeroes there, which they cannot tell from what earlier ones
    // have left.
    let _beyond_the_stack_nothing_is_mapped = unsafe { madvise(start, DEEPEST, Advice::LinuxDontNeed) };
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOUCHED: usize = 256 * 1024;

    /// Touches some pages of the stack.
    #[inline(never)]
    fn deep() -> u8 {
        let room = [1u8; TOUCHED];
        black_box(&room)[room.len() / 2]
    }

    fn anonymous() -> usize {
        let text = std::fs::read_to_string("/proc/self/smaps_rollup").expect("every Linux since 4.14");
        let line = text.lines().find(|line| line.starts_with("Anonymous:")).expect("the anonymous memory");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<usize>().ok()).expect("a number") * 1024
    }

    /// What `release` frees after a deep call. Another deep call is possible then.
    fn freed_by(release: fn()) -> usize {
        let value = deep();
        let before = anonymous();
        release();
        let after = anonymous();
        assert_eq!(deep(), value);
        before.saturating_sub(after)
    }

    #[test]
    fn what_a_deep_call_has_touched_is_released_and_can_be_used_again() {
        assert!(freed_by(release_unused) >= TOUCHED / 2);
    }
}
