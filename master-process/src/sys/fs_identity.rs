//! The identity that the kernel checks file-system calls against, and calls with the identity of another process.

use std::io;

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

/// Who a thread's file-system calls are made as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsIdentity {
    /// Its file-system user id.
    pub uid: u32,
    /// Its file-system group id.
    pub gid: u32,
    /// Its supplementary groups.
    pub groups: Vec<u32>,
    /// What it may do beyond that.
    pub capabilities: CapabilitySet,
    /// What it takes from the permissions of a new file.
    pub umask: u32,
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
