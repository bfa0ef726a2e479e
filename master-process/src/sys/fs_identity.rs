//! The identity that the kernel checks file-system calls against, and calls with the identity of another process.

use std::io;

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

/// The identity that a thread makes file-system calls with: credentials(7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsIdentity {
    /// Its file-system user id.
    pub uid: u32,
    /// Its file-system group id.
    pub gid: u32,
    /// Its supplementary groups.
    pub groups: Vec<u32>,
    /// Its effective capabilities.
    pub capabilities: CapabilitySet,
    /// The permission bits that it removes from new files.
    pub umask: u32,
}

/// Runs `call` with the file-system identity of another process.
///
/// The identity of the thread and the dumpable attribute of the process are restored when this returns.
///
/// # Errors
/// EPERM if this thread cannot assume all of that identity; then `call` does not run.
pub fn as_user<T>(identity: Option<&FsIdentity>, call: impl FnOnce() -> T) -> io::Result<T> {
    struct Restore(FsIdentity, rustix::process::DumpableBehavior);
    impl Drop for Restore {
        fn drop(&mut self) {
            assume(&self.0);
            // Changing the identity clears the dumpable attribute: proc(5), PR_SET_DUMPABLE(2const).
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

/// Whether both identities have the same rights. The umask is not a right.
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

/// Changes the identity of this thread. The C library's functions would change every thread, so this makes the system
/// calls itself.
fn assume(identity: &FsIdentity) {
    let may_all = CapabilitySet::all();
    // The other identity may lack the capabilities that the change needs, so they are raised first and limited last.
    limit_to(may_all);
    let groups = &identity.groups;
    // SAFETY: the kernel reads as many numbers as the first argument counts; the calls change numbers of this thread and
    // touch no other memory. The groups come first, because another user may not change them.
    unsafe {
        libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr());
        libc::syscall(libc::SYS_setfsgid, identity.gid);
        libc::syscall(libc::SYS_setfsuid, identity.uid);
    }
    limit_to(identity.capabilities);
}

/// Whether this thread has that identity now. setfsuid(2) and setfsgid(2) do not report errors; with an invalid number
/// they return the current one. It does no harm if the other process has capabilities that the supervisor lacks.
fn is_assumed(identity: &FsIdentity) -> bool {
    // SAFETY: -1 is not a valid id: the calls change nothing and touch no memory.
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

/// Makes the permitted capabilities effective that are in `wanted`.
fn limit_to(wanted: CapabilitySet) {
    if let Ok(mut sets) = capabilities(None) {
        sets.effective = sets.permitted & wanted;
        // `is_assumed` checks the result.
        let _looked_at = set_capabilities(None, sets);
    }
}
