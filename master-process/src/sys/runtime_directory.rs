//! The directory in which the supervisors of one user keep what they share.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, mkdirat};
use rustix::io::Errno;

/// That of root. It is on a file system that a boot empties.
pub const ROOT: &str = "/run/master-process";

/// Creates the directory, if it is not there. Other users can search and read it.
///
/// # Errors
/// Those of mkdir(2) and chmod(2).
pub fn create(path: &Path) -> io::Result<()> {
    match mkdirat(CWD, path, Mode::RWXU) {
        Ok(()) => Ok(rustix::fs::chmod(path, Mode::from_raw_mode(0o755))?),
        Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Opens the directory.
///
/// # Errors
/// Those of open(2), and `PermissionDenied` if another user can write to it.
pub fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if is_trusted(&directory) {
        Ok(directory)
    } else {
        Err(io::Error::new(io::ErrorKind::PermissionDenied, "other users can write to it"))
    }
}

/// Whether the file belongs to this user or to root, and nobody else can write to it.
pub fn is_trusted(file: &File) -> bool {
    use std::os::unix::fs::MetadataExt;
    let own = rustix::process::geteuid().as_raw();
    file.metadata().is_ok_and(|of| (of.uid() == own || of.uid() == 0) && of.mode() & 0o022 == 0)
}
