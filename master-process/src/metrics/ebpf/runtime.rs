//! The directory in which the supervisors of root keep what they can share.

use std::fs::File;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

/// It is on a file system that a boot empties.
pub(super) const DIRECTORY: &str = "/run/master-process";

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
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = File::from(rustix::fs::open(path, flags, Mode::empty()).ok()?);
    is_trusted(&directory).then_some(directory)
}

/// Whether it belongs to this user or to root, and nobody else can write to it.
pub(super) fn is_trusted(file: &File) -> bool {
    use std::os::unix::fs::MetadataExt;
    let own = rustix::process::geteuid().as_raw();
    file.metadata().is_ok_and(|of| (of.uid() == own || of.uid() == 0) && of.mode() & 0o022 == 0)
}
