//! Paths as another process means them, and with its rights.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use super::peer::{FsIdentity, Peer};

/// The folder and the name that a path of another process leads to.
///
/// # Errors
/// What the lookup of the folder fails with, with the caller's own rights. ELOOP also where the path goes
/// through a magic link of `/proc`, which would lead to something of ours, or could leave a root that is not
/// ours: such a path is the kernel's to follow.
pub fn folder_of(peer: &Peer, dir: RawFd, path: &Path) -> io::Result<(OwnedFd, OsString)> {
    let (folder, name) = split(path)?;
    let (root, root_is_ours) = peer.root()?;
    let safe = ResolveFlags::NO_MAGICLINKS;
    let opened = if let Ok(below_root) = folder.strip_prefix("/") {
        open(&root, below_root, safe | ResolveFlags::IN_ROOT)
    } else if root_is_ours {
        open(&peer.base(dir)?, folder, safe)
    } else {
        // `..` must stop at its root: so the path is followed from there.
        let base = peer.base_below_root(dir).ok_or_else(|| io::Error::from_raw_os_error(libc::EXDEV))?;
        open(&root, &base.join(folder), safe | ResolveFlags::IN_ROOT)
    };
    Ok((opened?, name.to_owned()))
}

/// The folder and the name of a path of our own.
///
/// # Errors
/// What the lookup of the folder fails with.
pub fn own_folder_of(path: &Path) -> io::Result<(OwnedFd, OsString)> {
    let (folder, name) = split(path)?;
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok((rustix::fs::openat(CWD, folder, flags, Mode::empty())?, name.to_owned()))
}

/// A path that ends with a slash or a dot names a directory, whatever its last part looks like.
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

/// Runs `call` with the file-system rights of another user, where they are not ours anyway: ours, and who may look into
/// this process, are as before when this returns.
///
/// # Errors
/// EPERM where this thread could not become that user in every respect: then `call` does not run.
pub fn as_user<T>(identity: Option<&FsIdentity>, call: impl FnOnce() -> T) -> io::Result<T> {
    struct Restore(FsIdentity, rustix::process::DumpableBehavior);
    impl Drop for Restore {
        fn drop(&mut self) {
            assume(&self.0);
            // Whoever changes its rights cannot be looked into any more: proc(5), PR_SET_DUMPABLE(2const).
            let _as_before = rustix::process::set_dumpable_behavior(self.1);
        }
    }
    let ours = ours();
    let Some(theirs) = identity.filter(|theirs| !is_same(theirs, &ours)) else { return Ok(call()) };
    let dumpable = rustix::process::dumpable_behavior();
    let _restore = Restore(ours, dumpable.unwrap_or(rustix::process::DumpableBehavior::NotDumpable));
    assume(theirs);
    if !is_assumed(theirs) {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    Ok(call())
}

/// Whether both may do the same; the mask of permissions is no right.
fn is_same(one: &FsIdentity, other: &FsIdentity) -> bool {
    (one.uid, one.gid, &one.groups, one.capabilities)
        == (other.uid, other.gid, &other.groups, other.capabilities)
}

fn ours() -> FsIdentity {
    let groups = rustix::process::getgroups().unwrap_or_default();
    FsIdentity {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        groups: groups.into_iter().map(rustix::process::Gid::as_raw).collect(),
        capabilities: capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective),
        umask: 0,
    }
}

/// By system call, for this thread alone.
fn assume(identity: &FsIdentity) {
    let may_all = CapabilitySet::all();
    // To change who we are takes rights that who we become may lack: they go last, and come first.
    limit_to(may_all);
    let groups = &identity.groups;
    // SAFETY: the kernel reads as many numbers as the first argument says; the calls change numbers of this
    // thread and touch no other memory. The group comes first: as another user we might not change it.
    unsafe {
        libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr());
        libc::syscall(libc::SYS_setfsgid, identity.gid);
        libc::syscall(libc::SYS_setfsuid, identity.uid);
    }
    limit_to(identity.capabilities);
}

/// Whether this thread is that user now. setfsuid(2) and setfsgid(2) do not say whether they did anything; with a number
/// that cannot be, they tell the current one. Capabilities that the other has and we have not do no harm.
fn is_assumed(identity: &FsIdentity) -> bool {
    // SAFETY: -1 is no user and no group: the calls change nothing and touch no memory.
    let (uid, gid) =
        unsafe { (libc::syscall(libc::SYS_setfsuid, -1), libc::syscall(libc::SYS_setfsgid, -1)) };
    let mut groups: Vec<u32> = identity.groups.clone();
    groups.sort_unstable();
    let mut held: Vec<u32> = rustix::process::getgroups()
        .map(|groups| groups.into_iter().map(rustix::process::Gid::as_raw).collect())
        .unwrap_or_default();
    held.sort_unstable();
    let capabilities = capabilities(None).map(|sets| sets.effective);
    (uid, gid) == (identity.uid.into(), identity.gid.into())
        && groups == held
        && capabilities.is_ok_and(|effective| identity.capabilities.contains(effective))
}

/// Makes those of our permitted capabilities effective that are among `wanted`.
fn limit_to(wanted: CapabilitySet) {
    if let Ok(mut sets) = capabilities(None) {
        sets.effective = sets.permitted & wanted;
        // Whether it worked is looked at where it matters.
        let _looked_at = set_capabilities(None, sets);
    }
}

/// Whether two directories are the same.
pub fn same_folder(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> bool {
    let id = |fd| rustix::fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino)).ok();
    id(one).is_some() && id(one) == id(other)
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
}
