//! Control groups of version 2: the kernel's own account of who belongs to a worker; cgroups(7).
//!
//! A cgroup can be had where ours is *delegated* to us: systemd says so by an extended attribute (`Delegate=yes`), a
//! container engine by a cgroup namespace of its own. Anywhere else the tree belongs to somebody else. No controller is
//! enabled, so that our own processes may stay where they are, and the limits of our cgroup hold for the workers.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, flock, mkdirat, openat, unlinkat};
use rustix::process::Pid;

/// What our own cgroups are called, followed by our pid.
const PREFIX: &str = "master-process-";

/// Cgroups below a worker's own that are looked at: one that makes more is killed as a whole all the same.
const MAX_GROUPS: usize = 256;

/// SIGKILL takes effect within microseconds; a process that hangs in the kernel is not waited for.
const KILL_TAKES: Duration = Duration::from_secs(1);

/// The cgroup of a supervisor, in which those of its workers are.
#[derive(Debug)]
pub struct Supervisors {
    parent: OwnedFd,
    /// Locked for as long as we live: who finds it unlocked knows that its supervisor is gone.
    own: OwnedFd,
    name: String,
}

/// The cgroup of one worker. Dropped, it is removed, if nobody is in it.
#[derive(Debug)]
pub struct Cgroup {
    parent: OwnedFd,
    own: OwnedFd,
    name: String,
}

/// What an earlier supervisor has left.
#[derive(Debug)]
pub struct Leftover {
    name: String,
    parent: OwnedFd,
    own: OwnedFd,
}

impl Supervisors {
    /// Makes a cgroup of ours, and finds those that earlier supervisors left beside it. `None`: no cgroup is delegated to us.
    ///
    /// # Errors
    /// Those of mkdir(2) and open(2), where one is.
    pub fn make() -> io::Result<Option<(Supervisors, Vec<Leftover>)>> {
        let Some(path) = delegated() else { return Ok(None) };
        let parent = rustix::fs::open(&path, DIRECTORY, Mode::empty())?;
        let leftovers = leftovers(&parent);
        // A pid is used again, and so is one in a container that is started anew.
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let name = format!("{PREFIX}{}.{:x}{:08x}", std::process::id(), now.tv_sec, now.tv_nsec);
        mkdirat(&parent, &name, Mode::from(0o755))?;
        let own = openat(&parent, &name, DIRECTORY, Mode::empty())?;
        flock(&own, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Some((Supervisors { parent, own, name }, leftovers)))
    }

    /// A cgroup for a worker that is about to be started.
    ///
    /// # Errors
    /// Those of mkdir(2) and open(2): EAGAIN where there are too many.
    pub fn create(&self, serial: u64) -> io::Result<Cgroup> {
        let name = format!("worker-{serial}");
        mkdirat(&self.own, &name, Mode::from(0o755))?;
        let own = openat(&self.own, &name, DIRECTORY, Mode::empty())?;
        Ok(Cgroup { parent: self.own.try_clone()?, own, name })
    }
}

impl Drop for Supervisors {
    fn drop(&mut self) {
        let _still_in_use = unlinkat(&self.parent, &self.name, AtFlags::REMOVEDIR);
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

impl Cgroup {
    /// For `CLONE_INTO_CGROUP`.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.own.as_fd()
    }

    /// Puts a process into it.
    ///
    /// # Errors
    /// ESRCH where it is gone, and those of cgroups(7).
    pub fn enter(&self, pid: Pid) -> io::Result<()> {
        write(&self.own, "cgroup.procs", &pid.as_raw_pid().to_string())
    }

    /// Whether anybody is in it, or below it; zombies do not count.
    ///
    /// # Errors
    /// Those of open(2): EMFILE.
    pub fn is_populated(&self) -> io::Result<bool> {
        is_populated(&self.own)
    }

    /// Whoever is in it, and below it, `most` at most.
    #[must_use]
    pub fn members(&self, most: usize) -> Vec<Pid> {
        let mut found = Vec::new();
        for group in groups(&self.own) {
            let Ok(text) = read(&group, "cgroup.procs") else { continue };
            found.extend(text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)));
            if found.len() >= most {
                found.truncate(most);
                break;
            }
        }
        found
    }

    /// Kills everybody in it at once, whoever forks meanwhile.
    ///
    /// # Errors
    /// ENOENT before Linux 5.14.
    pub fn kill(&self) -> io::Result<()> {
        write(&self.own, "cgroup.kill", "1")
    }
}

impl Cgroup {
    /// Removes it, with those that were made below it. False where somebody is in one of them.
    #[must_use]
    pub fn remove(&self) -> bool {
        remove(&self.parent, &self.own, &self.name)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // One that was never used, since the start failed; else it is gone already.
        let _gone_or_in_use = self.remove();
    }
}

impl Leftover {
    /// How many processes are in it.
    #[must_use]
    pub fn processes(&self) -> usize {
        groups(&self.own)
            .iter()
            .filter_map(|group| read(group, "cgroup.procs").ok())
            .map(|text| text.lines().count())
            .sum()
    }

    /// The pid of the supervisor that has left it.
    #[must_use]
    pub fn supervisor(&self) -> &str {
        let number = self.name.strip_prefix(PREFIX).unwrap_or_default();
        number.split('.').next().unwrap_or_default()
    }

    fn kill(&self) {
        if write(&self.own, "cgroup.kill", "1").is_err() {
            self.kill_each();
        }
    }

    fn ends(&self, until: Instant) -> bool {
        loop {
            if matches!(is_populated(&self.own), Ok(false)) {
                let _next_time = remove(&self.parent, &self.own, &self.name);
                return true;
            }
            if Instant::now() > until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
            self.kill();
        }
    }

    /// Before Linux 5.14.
    fn kill_each(&self) {
        for group in groups(&self.own) {
            let text = read(&group, "cgroup.procs").unwrap_or_default();
            for pid in text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)) {
                let handle = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty());
                // It is killed only if it is in the cgroup after it was pinned.
                let is_in = || read(&group, "cgroup.procs").is_ok_and(|text| has_line(&text, pid));
                if let Ok(handle) = handle
                    && is_in()
                {
                    let _gone = super::pidfd::signal(handle.as_fd(), libc::SIGKILL);
                }
            }
        }
    }
}

/// Kills whoever is in these. All of them together are waited for, a moment at most: this is before anything runs. Of
/// each, whether nobody is left.
#[must_use]
pub fn end(leftovers: &[Leftover]) -> Vec<bool> {
    leftovers.iter().for_each(Leftover::kill);
    let until = Instant::now() + KILL_TAKES;
    leftovers.iter().map(|leftover| leftover.ends(until)).collect()
}

fn has_line(text: &str, pid: Pid) -> bool {
    text.lines().any(|line| line.parse() == Ok(pid.as_raw_pid()))
}

fn leftovers(parent: &OwnedFd) -> Vec<Leftover> {
    let mut found = Vec::new();
    for name in subdirectories(parent) {
        let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else { continue };
        let Ok(own) = openat(parent, name, DIRECTORY, Mode::empty()) else { continue };
        let Ok(parent) = parent.try_clone() else { continue };
        if flock(&own, FlockOperation::NonBlockingLockExclusive).is_ok() {
            found.push(Leftover { name: name.to_owned(), parent, own });
        }
    }
    found
}

/// A cgroup and those below it, the outermost first.
fn groups(own: &OwnedFd) -> Vec<OwnedFd> {
    let Ok(first) = own.try_clone() else { return Vec::new() };
    let (mut found, mut at) = (vec![first], 0);
    while let Some(group) = found.get(at) {
        at += 1;
        let below: Vec<OwnedFd> = subdirectories(group)
            .iter()
            .filter_map(|name| openat(group, name, DIRECTORY, Mode::empty()).ok())
            .take(MAX_GROUPS.saturating_sub(found.len()))
            .collect();
        found.extend(below);
    }
    found
}

fn remove(parent: &OwnedFd, own: &OwnedFd, name: &str) -> bool {
    if matches!(unlinkat(parent, name, AtFlags::REMOVEDIR), Ok(()) | Err(rustix::io::Errno::NOENT)) {
        return true;
    }
    // The innermost first: a program may have made cgroups of its own in there.
    for group in groups(own).iter().rev() {
        for below in subdirectories(group) {
            let _still_in_use = unlinkat(group, &below, AtFlags::REMOVEDIR);
        }
    }
    unlinkat(parent, name, AtFlags::REMOVEDIR).is_ok()
}

fn subdirectories(folder: &OwnedFd) -> Vec<std::ffi::OsString> {
    use std::os::unix::ffi::OsStrExt;
    let Ok(entries) = Dir::read_from(folder) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_type() == FileType::Directory)
        .map(|entry| OsStr::from_bytes(entry.file_name().to_bytes()).to_owned())
        .filter(|name| name != "." && name != "..")
        .take(MAX_GROUPS)
        .collect()
}

fn read(folder: &OwnedFd, name: &str) -> io::Result<String> {
    let mut file = File::from(openat(folder, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?);
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(text)
}

fn write(folder: &OwnedFd, name: &str, text: &str) -> io::Result<()> {
    let mut file = File::from(openat(folder, name, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?);
    file.write_all(text.as_bytes())
}

fn is_populated(folder: &OwnedFd) -> io::Result<bool> {
    Ok(read(folder, "cgroup.events")?.lines().any(|line| line == "populated 1"))
}

/// The directory of our own cgroup, where that is ours to divide.
fn delegated() -> Option<PathBuf> {
    let membership = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let below = own_path(&membership)?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let (root, mount) = mount_of(&mounts)?;
    let path = mount.join(Path::new(below).strip_prefix(root).ok()?);
    // The root of the whole hierarchy has no type, and is nobody's to divide but the init system's.
    if !path.join("cgroup.type").exists() {
        return None;
    }
    let said = ["trusted.delegate", "user.delegate"].iter().any(|name| {
        let mut value = [0u8; 8];
        rustix::fs::getxattr(&path, *name, &mut value[..]).is_ok_and(|length| value[..length] == *b"1")
    });
    // A namespace of its own is what container engines make for those who may do as they like in there.
    let own_namespace = below == "/" && !is_first_namespace();
    let is_ours = std::fs::metadata(&path).is_ok_and(|metadata| {
        use std::os::unix::fs::MetadataExt;
        metadata.uid() != 0 && metadata.uid() == rustix::process::geteuid().as_raw()
    });
    (said || own_namespace || is_ours).then_some(path)
}

/// The first cgroup namespace has this inode number: `PROC_CGROUP_INIT_INO` of the kernel's `include/linux/proc_ns.h`.
fn is_first_namespace() -> bool {
    use std::os::unix::fs::MetadataExt;
    const FIRST: u64 = 0xEFFF_FFFB;
    std::fs::metadata("/proc/self/ns/cgroup").is_ok_and(|metadata| metadata.ino() == FIRST)
}

/// Our path in the hierarchy of version 2, from `/proc/self/cgroup`.
fn own_path(membership: &str) -> Option<&str> {
    membership.lines().find_map(|line| line.strip_prefix("0::"))
}

/// What of the hierarchy of version 2 is mounted, and where, from `/proc/self/mountinfo`.
fn mount_of(mounts: &str) -> Option<(&str, &Path)> {
    mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        if !after.starts_with("cgroup2 ") {
            return None;
        }
        let mut fields = before.split(' ').skip(3);
        Some((fields.next()?, Path::new(fields.next()?)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_of_version_2_is_found_among_others() {
        let mounts = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      41 31 0:38 /a /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_of(mounts), Some(("/a", Path::new("/sys/fs/cgroup/unified"))));
        assert_eq!(mount_of("31 23 0:28 / /sys rw - sysfs sysfs rw"), None);
        assert_eq!(
            own_path("9:name=systemd:/x\n0::/system.slice/a.service\n"),
            Some("/system.slice/a.service")
        );
        assert_eq!(own_path("9:name=systemd:/x\n"), None);
    }
}
