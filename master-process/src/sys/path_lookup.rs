//! Path lookups for another process, from its root and working directory.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::os::linux::fs::MetadataExt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};

use super::peer::Peer;

/// The folder that a path of another process is in, and the last part of the path.
///
/// # Errors
/// Those of the lookup with the rights of the calling thread. ELOOP also if the path goes through a magic link of
/// `/proc`: it would lead to an object of the supervisor, or leave a root that is not ours. The kernel must resolve
/// such a path in the process itself.
pub fn folder_of(peer: &Peer, dir: RawFd, path: &Path) -> io::Result<(OwnedFd, OsString)> {
    let (folder, name) = split(path)?;
    let (root, root_is_ours) = peer.root()?;
    let safe = ResolveFlags::NO_MAGICLINKS;
    let opened = if let Ok(below_root) = folder.strip_prefix("/") {
        open(&root, below_root, safe | ResolveFlags::IN_ROOT)
    } else if root_is_ours {
        open(&peer.base(dir)?, folder, safe)
    } else {
        // `..` must stop at the root of the process, so the lookup starts there.
        let base = peer.base_below_root(dir).ok_or_else(|| io::Error::from_raw_os_error(libc::EXDEV))?;
        open(&root, &base.join(folder), safe | ResolveFlags::IN_ROOT)
    };
    Ok((opened?, name.to_owned()))
}

/// The folder that a path of the supervisor is in, and the last part of the path.
///
/// # Errors
/// Those of the lookup.
pub fn own_folder_of(path: &Path) -> io::Result<(OwnedFd, OsString)> {
    let (folder, name) = split(path)?;
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok((rustix::fs::openat(CWD, folder, flags, Mode::empty())?, name.to_owned()))
}

/// Splits a path before its last part. A path that ends with a slash or a dot names a directory.
fn split(path: &Path) -> io::Result<(&Path, &OsStr)> {
    let bytes = path.as_os_str().as_bytes();
    let cut = bytes.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    let (folder, name) = bytes.split_at(cut);
    if matches!(name, b"" | b"." | b"..") {
        return Err(io::Error::from_raw_os_error(libc::EISDIR));
    }
    Ok((Path::new(OsStr::from_bytes(folder)), OsStr::from_bytes(name)))
}

fn open(base: &OwnedFd, folder: &Path, resolve: ResolveFlags) -> rustix::io::Result<OwnedFd> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat2(base, folder, flags, Mode::empty(), resolve)
}

/// Whether two descriptors refer to the same directory.
pub fn same_folder(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> bool {
    let id = |fd| rustix::fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino)).ok();
    id(one).is_some() && id(one) == id(other)
}

/// The path of the current directory as a shell prints it.
///
/// This is `pwd`, the value of `PWD`, if it is absolute and names the current directory: a later lookup then follows
/// its symlinks again. Otherwise it is the kernel's path.
///
/// # Errors
/// Those of getcwd(3), if the directory was removed or cannot be reached.
pub fn working_directory(pwd: Option<&OsStr>) -> io::Result<PathBuf> {
    if let Some(path) = pwd.map(Path::new)
        && path.is_absolute()
        && is_current(path)
    {
        return Ok(path.to_owned());
    }
    std::env::current_dir()
}

fn is_current(path: &Path) -> bool {
    let identity = |path: &Path| std::fs::metadata(path).map(|found| (found.st_dev(), found.st_ino())).ok();
    identity(path).is_some_and(|named| identity(Path::new(".")) == Some(named))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_split_as_the_kernel_splits_it() {
        let split = |path: &'static str| split(Path::new(path)).ok();
        let parts = |folder: &'static str, name: &'static str| Some((Path::new(folder), OsStr::new(name)));
        assert_eq!(split("app.sock"), parts("", "app.sock"));
        assert_eq!(split("/app.sock"), parts("/", "app.sock"));
        assert_eq!(split("run/x/app.sock"), parts("run/x/", "app.sock"));
        for directory in ["app.sock/", "app.sock/.", "..", "/", ""] {
            assert_eq!(split(directory), None, "{directory}");
        }
    }

    #[test]
    fn a_magic_link_is_not_followed() {
        let me = &Peer::open(rustix::process::getpid()).expect("we live");
        let error = folder_of(me, libc::AT_FDCWD, Path::new("/proc/self/cwd/x.sock")).expect_err("refused");
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
        assert!(folder_of(me, libc::AT_FDCWD, Path::new("/tmp/x.sock")).is_ok());
        assert!(folder_of(me, libc::AT_FDCWD, Path::new("x.sock")).is_ok());
    }

    #[test]
    fn a_variable_that_names_the_current_directory_is_believed_and_no_other() {
        let physical = std::env::current_dir().expect("tests run somewhere");
        let scratch = tempfile::tempdir().expect("a temporary folder");
        let link = scratch.path().join("current");
        std::os::unix::fs::symlink(&physical, &link).expect("the folder is ours");
        let of = |pwd: &Path| working_directory(Some(pwd.as_os_str())).expect("it exists");
        assert_eq!(of(&link), link, "a symlink stays in the path");
        assert_eq!(of(scratch.path()), physical, "another directory");
        assert_eq!(of(&scratch.path().join("gone")), physical, "nothing");
        assert_eq!(of(Path::new(".")), physical, "relative");
        assert_eq!(of(Path::new("")), physical, "empty");
        assert_eq!(working_directory(None).expect("it exists"), physical, "unset");
    }
}
