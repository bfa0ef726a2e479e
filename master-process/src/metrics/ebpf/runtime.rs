//! The directory in which the supervisors of root keep what they can share.

use std::fs::File;
use std::path::Path;

use crate::sys::runtime_directory;
pub(super) use crate::sys::runtime_directory::{ROOT as DIRECTORY, is_trusted};

/// The id of this boot: random(4).
pub(super) fn boot_id() -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim().to_owned())
}

/// Distinguishes the programs of different releases. This is FNV-1a: it does not protect from forgery.
pub(super) fn hash(programs: &[u8]) -> u64 {
    programs
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The directory, if only its owner can write to it.
pub(super) fn open_directory(path: &Path) -> Option<File> {
    runtime_directory::open(path).ok()
}
