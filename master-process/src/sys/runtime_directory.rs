//! The directory in which the supervisors of one user keep what they share.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, mkdirat};
use rustix::io::Errno;

/// That of root. It is on a file system that a boot empties.
pub const ROOT: &str = "/run/master-process";

/// The name of that of another user, in `$XDG_RUNTIME_DIR`.
pub const NAME: &str = "master-process";

/// That which systemd has made for the service, the first one of several: systemd.exec(5).
pub fn of_service(var: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let list = var("RUNTIME_DIRECTORY")?;
    std::env::split_paths(&list).next().filter(|path| path.is_absolute())
}

/// The directory of a user's programs, in which [`NAME`] is that of this program.
pub fn base_of_user(var: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    var("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute())
}

/// Creates the directory, if it is not there. Other users can search and read that of root, where members of a
/// `--control-group` find their sockets. Those of users are for them alone.
///
/// # Errors
/// Those of mkdir(2) and chmod(2).
pub fn create(path: &Path) -> io::Result<()> {
    let mode = if path == Path::new(ROOT) { 0o755 } else { 0o700 };
    match mkdirat(CWD, path, Mode::RWXU) {
        // Whatever the umask is.
        Ok(()) => Ok(rustix::fs::chmod(path, Mode::from_raw_mode(mode))?),
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
