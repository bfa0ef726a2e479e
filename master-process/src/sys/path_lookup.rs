//! Path lookups for another process, from its root and working directory.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::os::linux::fs::MetadataExt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, PROC_SUPER_MAGIC, ResolveFlags, openat, openat2, readlinkat};
use rustix::io::Errno;

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
    let root = Root { fd: root, is_ours: root_is_ours };
    let opened = if let Ok(below_root) = folder.strip_prefix("/") {
        open(&root, &root.fd, below_root, safe | ResolveFlags::IN_ROOT)
    } else if root_is_ours {
        open(&root, &peer.base(dir)?, folder, safe)
    } else {
        // `..` must stop at the root of the process, so the lookup starts there.
        let base = peer.base_below_root(dir).ok_or_else(|| io::Error::from_raw_os_error(libc::EXDEV))?;
        open(&root, &root.fd, &base.join(folder), safe | ResolveFlags::IN_ROOT)
    };
    Ok((opened?, name.to_owned()))
}

/// The root directory of a process.
struct Root {
    fd: OwnedFd,
    is_ours: bool,
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

fn open(root: &Root, base: &OwnedFd, folder: &Path, resolve: ResolveFlags) -> rustix::io::Result<OwnedFd> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match openat2(base, folder, flags, Mode::empty(), resolve) {
        // `RestrictSUIDSGID=` of systemd, which `DynamicUser=` implies, cannot read the arguments of this call and
        // denies it. So do older profiles of container engines.
        Err(Errno::NOSYS | Errno::PERM) => walk(root, base, folder),
        result => result,
    }
}

/// The number of symlinks that a path can have: path_resolution(7).
const MAX_LINKS: u32 = 40;

/// The same with a look-up for each part of the path. No symlink of `/proc` is followed, magic or not. Where the root is
/// not ours, EXDEV for `..`: a directory that is moved meanwhile could lead out of that root.
fn walk(root: &Root, base: &OwnedFd, folder: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = |at: &OwnedFd, name: &OsStr| openat(at, name, flags | OFlags::DIRECTORY, Mode::empty());
    let (mut here, mut links) = (open(base, OsStr::new("."))?, 0);
    let mut left = Vec::new();
    push_parts(&mut left, folder);
    while let Some(part) = left.pop() {
        here = match part {
            Part::Root => open(&root.fd, OsStr::new("."))?,
            Part::Parent if root.is_ours => open(&here, OsStr::new(".."))?,
            Part::Parent => return Err(Errno::XDEV),
            Part::Name(name) => match open(&here, &name) {
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    let link = openat(&here, &name, flags, Mode::empty())?;
                    links += 1;
                    if links > MAX_LINKS || rustix::fs::fstatfs(&link)?.f_type == PROC_SUPER_MAGIC {
                        return Err(Errno::LOOP);
                    }
                    // For anything but a symlink: ENOENT, which the kernel reports as ENOTDIR.
                    let target = readlinkat(&link, "", Vec::new()).map_err(|_not_a_link| Errno::NOTDIR)?;
                    push_parts(&mut left, Path::new(OsStr::from_bytes(target.as_bytes())));
                    continue;
                }
                next => next?,
            },
        };
    }
    Ok(here)
}

/// A part of a path.
enum Part {
    Root,
    Parent,
    Name(OsString),
}

/// Adds the parts of a path, the first one last.
fn push_parts(left: &mut Vec<Part>, path: &Path) {
    left.extend(path.components().rev().filter_map(|part| match part {
        Component::RootDir => Some(Part::Root),
        Component::ParentDir => Some(Part::Parent),
        Component::Normal(name) => Some(Part::Name(name.to_owned())),
        Component::CurDir | Component::Prefix(_) => None,
    }));
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
    fn a_walk_finds_what_the_kernel_finds() {
        let scratch = tempfile::tempdir().expect("a temporary folder");
        let at = |path: &str| scratch.path().join(path);
        std::fs::create_dir_all(at("a/b")).expect("ours");
        std::fs::write(at("file"), "").expect("ours");
        let link = |target: &str, name: &str| std::os::unix::fs::symlink(target, at(name)).expect("ours");
        link("a/b", "relative");
        link(at("a").to_str().expect("UTF-8"), "absolute");
        link("../relative/..", "a/up");
        link("loop", "loop");
        link("gone", "dangling");
        let directory = |path: &Path| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            openat(CWD, path, flags, Mode::empty()).expect("it is there")
        };
        let (base, root) = (directory(scratch.path()), Root { fd: directory(Path::new("/")), is_ours: true });
        for path in [
            ".",
            "a/b",
            "relative",
            "absolute/b/..",
            "a/up/b",
            "a/../a//b/.",
            "file",
            "file/x",
            "loop",
            "dangling",
            "none",
        ] {
            let identity = |fd: OwnedFd| rustix::fs::fstat(fd).map(|stat| stat.st_ino);
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let kernel = openat(&base, path, flags, Mode::empty()).and_then(identity);
            assert_eq!(walk(&root, &base, Path::new(path)).and_then(identity), kernel, "{path}");
        }
        assert_eq!(walk(&root, &base, Path::new("/proc/self/cwd")).err(), Some(Errno::LOOP));
        let confined = Root { fd: directory(scratch.path()), is_ours: false };
        assert!(walk(&confined, &base, Path::new("relative")).is_ok());
        assert_eq!(walk(&confined, &base, Path::new("a/../..")).err(), Some(Errno::XDEV));
        let below =
            walk(&confined, &base, Path::new("/a")).map(|fd| rustix::fs::fstat(fd).expect("open").st_ino);
        assert_eq!(below, Ok(at("a").metadata().expect("there").st_ino()));
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
