//! Files in memory: memfd_create(2). One is written by a process, sealed, and then passed on for reading.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, fchmod, fcntl_add_seals, fstat, memfd_create, open};

/// What a sealed file does not allow: any change, by any descriptor or mapping, and any further seal.
const SEALED: SealFlags =
    SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::WRITE).union(SealFlags::SEAL);

/// Makes an empty file that can be sealed later.
///
/// # Errors
/// Those of memfd_create(2).
pub fn create(name: &str) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        // Before Linux 6.3.
        Err(rustix::io::Errno::INVAL) => Ok(memfd_create(name, flags)?),
        made => Ok(made?),
    }
}

/// Seals a file against every change, and returns its size.
///
/// The kernel waits for a fraction of a second while another process reads or writes the file directly, so this belongs
/// into a helper thread.
///
/// # Errors
/// EBUSY if a process has mapped it for writing.
pub fn seal(file: BorrowedFd<'_>) -> io::Result<u64> {
    fchmod(file, Mode::RUSR | Mode::RGRP | Mode::ROTH)?;
    fcntl_add_seals(file, SEALED)?;
    Ok(u64::try_from(fstat(file)?.st_size).unwrap_or(0))
}

/// Opens a file once more, for reading only, with a position of its own. A mapping of a sealed file needs this before Linux
/// 6.7: what is open for writing could be mapped for that.
///
/// # Errors
/// Those of open(2), without `/proc` for example.
pub fn open_for_reading(file: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(open(path(file.as_raw_fd()), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// The path by which a process opens its descriptor with this number.
#[must_use]
pub fn path(number: RawFd) -> String {
    format!("/proc/self/fd/{number}")
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_sealed_file_is_read_by_each_from_its_start_and_written_by_none() {
        let mut file = File::from(create("test").expect("memfd_create"));
        file.write_all(b"what all share").expect("it can be written");
        assert_eq!(seal(file.as_fd()).expect("nobody has mapped it"), 14);
        assert!(file.write_all(b"more").is_err() && file.set_len(0).is_err(), "it is sealed");
        for _ in 0..2 {
            let mut read = File::from(open_for_reading(file.as_fd()).expect("/proc"));
            let mut text = String::new();
            read.read_to_string(&mut text).expect("it can be read");
            assert_eq!(text, "what all share");
            assert!(read.write_all(b"more").is_err());
        }
    }
}
