//! Control groups of version 2: the kernel tracks the processes of each worker; cgroups(7).
//!
//! A cgroup can be divided where it is *delegated* to the supervisor. systemd marks delegation with an extended
//! attribute (`Delegate=yes`); a container engine creates a cgroup namespace. Elsewhere the hierarchy belongs to
//! another manager. The supervisor enables no controller. Its own processes can therefore stay in their cgroup, and the
//! limits of that cgroup apply to the workers.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, flock, mkdirat, openat, unlinkat};
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use super::cgroup_mounts::{self, Place, Version};
use super::handover::{Fd, Incoming, Outgoing};

/// The prefix of the names of the supervisor's cgroups. The pid follows.
const PREFIX: &str = "master-process-";

/// The number of cgroups below a worker's cgroup that are examined. If a worker makes more, the kernel still kills all
/// of them at once.
const MAX_GROUPS: usize = 256;

/// The depth to which a worker may divide its cgroup, and the number of cgroups it may make. This is enough for a
/// container engine and bounds the supervisor's work. A worker with write access to its cgroup's files can remove these
/// limits; the code that traverses its cgroups has its own bounds.
const MAX_DEPTH: usize = 32;
const MAX_DESCENDANTS: usize = 4096;

/// The number of cgroups that one step removes or passes. A step takes a few milliseconds.
const STEPS: usize = 256;

/// SIGKILL takes effect within microseconds, unless a process is blocked in the kernel. The supervisor does not wait
/// longer for such a process.
const KILL_TAKES: Duration = Duration::from_secs(1);

/// The cgroup of a supervisor. It contains the cgroups of the workers.
#[derive(Debug)]
pub struct Supervisors {
    parent: OwnedFd,
    /// Locked while this supervisor runs. If another supervisor finds it unlocked, its owner has ended.
    own: OwnedFd,
    name: String,
}

/// The cgroup of one worker. Dropping it removes the cgroup if it contains no process.
#[derive(Debug)]
pub struct Cgroup {
    folder: Folder,
    /// The progress of the removal of the cgroups below it.
    cursor: Mutex<Option<Cursor>>,
}

/// The result of a removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// The cgroup no longer exists.
    Gone,
    /// It has cgroups below it, and none of them contains a process.
    Divided,
    /// It, or a cgroup below it, contains a process.
    InUse,
}

/// A cgroup: its descriptor, its name, and its parent.
#[derive(Debug)]
struct Folder {
    parent: OwnedFd,
    own: OwnedFd,
    name: String,
}

/// A position below a cgroup. It is a descriptor, so no path becomes too long.
#[derive(Debug)]
struct Cursor {
    at: OwnedFd,
    depth: usize,
    /// Whether the first remaining cgroup at this position has already been emptied.
    emptied: bool,
}

/// The progress of a removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Removed,
    Unfinished,
    /// One of the cgroups cannot be removed now.
    Stuck,
}

/// A cgroup that an earlier supervisor left behind.
#[derive(Debug)]
pub struct Leftover(Folder);

/// A cgroup as a supervisor hands it over. The lock of a supervisor's cgroup goes with its descriptor.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Saved {
    parent: Fd,
    own: Fd,
    name: String,
}

impl Supervisors {
    /// The descriptors and the name.
    pub fn save(&self, out: &mut Outgoing) -> Saved {
        let (parent, own) = (out.keep(self.parent.as_fd()), out.keep(self.own.as_fd()));
        Saved { parent, own, name: self.name.clone() }
    }

    /// Goes on with them.
    ///
    /// # Errors
    /// A descriptor is missing.
    pub fn resume(saved: Saved, from: &mut Incoming) -> io::Result<Supervisors> {
        let (parent, own) = (from.take(saved.parent)?, from.take(saved.own)?);
        Ok(Supervisors { parent, own, name: saved.name })
    }

    /// Makes the supervisor's cgroup, and finds those that earlier supervisors left beside it. `None`: no cgroup is
    /// delegated to the supervisor; [`why_undelegated`] has the reason.
    ///
    /// # Errors
    /// Those of mkdir(2) and open(2), if a cgroup is delegated.
    pub fn make() -> io::Result<Option<(Supervisors, Vec<Leftover>)>> {
        let Ok(path) = delegated() else { return Ok(None) };
        let parent = rustix::fs::open(&path, DIRECTORY, Mode::empty())?;
        let leftovers = leftovers(&parent);
        // A name with the pid alone is not unique: the kernel reuses pids, and a restarted container has the same pids
        // again.
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let name = format!("{PREFIX}{}.{:x}{:08x}", std::process::id(), now.tv_sec, now.tv_nsec);
        mkdirat(&parent, &name, Mode::from(0o755))?;
        let own = openat(&parent, &name, DIRECTORY, Mode::empty())?;
        flock(&own, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Some((Supervisors { parent, own, name }, leftovers)))
    }

    /// Makes a cgroup for a worker that is about to be started.
    ///
    /// # Errors
    /// Those of mkdir(2) and open(2): EAGAIN if there are too many.
    pub fn create(&self, serial: u64) -> io::Result<Cgroup> {
        let name = format!("worker-{serial}");
        mkdirat(&self.own, &name, Mode::from(0o755))?;
        let own = openat(&self.own, &name, DIRECTORY, Mode::empty())?;
        for (file, most) in [("cgroup.max.depth", MAX_DEPTH), ("cgroup.max.descendants", MAX_DESCENDANTS)] {
            // These files exist since Linux 4.14. Without them, the worker runs without this limit.
            let _unlimited = write(&own, file, &most.to_string());
        }
        let folder = Folder { parent: self.own.try_clone()?, own, name };
        Ok(Cgroup { folder, cursor: Mutex::new(None) })
    }
}

impl Drop for Supervisors {
    fn drop(&mut self) {
        let _still_in_use = unlinkat(&self.parent, &self.name, AtFlags::REMOVEDIR);
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

impl Cgroup {
    /// The descriptors and the name.
    pub fn save(&self, out: &mut Outgoing) -> Saved {
        let Folder { parent, own, name } = &self.folder;
        Saved { parent: out.keep(parent.as_fd()), own: out.keep(own.as_fd()), name: name.clone() }
    }

    /// Goes on with them.
    ///
    /// # Errors
    /// A descriptor is missing.
    pub fn resume(saved: Saved, from: &mut Incoming) -> io::Result<Cgroup> {
        let (parent, own) = (from.take(saved.parent)?, from.take(saved.own)?);
        let folder = Folder { parent, own, name: saved.name };
        Ok(Cgroup { folder, cursor: Mutex::new(None) })
    }

    /// For `CLONE_INTO_CGROUP`.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.folder.own.as_fd()
    }

    /// Puts a process into it.
    ///
    /// # Errors
    /// ESRCH if the process is gone, and those of cgroups(7).
    pub fn enter(&self, pid: Pid) -> io::Result<()> {
        write(&self.folder.own, "cgroup.procs", &pid.as_raw_pid().to_string())
    }

    /// Whether it, or a cgroup below it, contains a process; zombies do not count.
    ///
    /// # Errors
    /// Those of open(2): EMFILE.
    pub fn is_populated(&self) -> io::Result<bool> {
        is_populated(&self.folder.own)
    }

    /// The processes in it and below it, `most` at most.
    #[must_use]
    pub fn members(&self, most: usize) -> Vec<Pid> {
        let mut found = Vec::new();
        for group in groups(&self.folder.own) {
            let Ok(text) = read(&group, "cgroup.procs") else { continue };
            found.extend(text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)));
            if found.len() >= most {
                found.truncate(most);
                break;
            }
        }
        found
    }

    /// Kills all processes in it at once, including those that fork meanwhile.
    ///
    /// # Errors
    /// ENOENT before Linux 5.14.
    pub fn kill(&self) -> io::Result<()> {
        write(&self.folder.own, "cgroup.kill", "1")
    }
}

impl Cgroup {
    /// Removes it, unless it has cgroups below it. This is a single call, fast enough for the loop.
    #[must_use]
    pub fn remove(&self) -> Removal {
        if self.folder.remove() {
            return Removal::Gone;
        }
        match self.is_populated() {
            Ok(false) => Removal::Divided,
            Ok(true) | Err(_) => Removal::InUse,
        }
    }

    /// Continues the removal of the cgroups below it, and finally removes it. The time of a step is bounded, whatever
    /// cgroups the worker has made. Returns true if another step would make progress.
    #[must_use]
    pub fn remove_some(&self) -> bool {
        let mut cursor = self.cursor.lock().unwrap_or_else(PoisonError::into_inner);
        self.folder.remove_below(&mut cursor, STEPS) == Progress::Unfinished
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Removes a cgroup that was never used because the start failed. Otherwise the cgroup is already gone.
        let _gone_or_in_use = self.folder.remove();
    }
}

impl Leftover {
    /// The number of processes in it.
    #[must_use]
    pub fn processes(&self) -> usize {
        groups(&self.0.own)
            .iter()
            .filter_map(|group| read(group, "cgroup.procs").ok())
            .map(|text| text.lines().count())
            .sum()
    }

    /// The pid of the supervisor that left it behind.
    #[must_use]
    pub fn supervisor(&self) -> &str {
        let number = self.0.name.strip_prefix(PREFIX).unwrap_or_default();
        number.split('.').next().unwrap_or_default()
    }

    fn kill(&self) {
        if write(&self.0.own, "cgroup.kill", "1").is_err() {
            self.kill_each();
        }
    }

    fn ends(&self, until: Instant) -> bool {
        loop {
            if matches!(is_populated(&self.0.own), Ok(false)) {
                let mut cursor = None;
                while self.0.remove_below(&mut cursor, STEPS) == Progress::Unfinished
                    && Instant::now() < until
                {}
                return true;
            }
            if Instant::now() > until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
            self.kill();
        }
    }

    /// Kills the processes one by one, before Linux 5.14.
    fn kill_each(&self) {
        for group in groups(&self.0.own) {
            let text = read(&group, "cgroup.procs").unwrap_or_default();
            for pid in text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)) {
                let handle = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty());
                // The process is killed only if it is still in the cgroup after the pidfd was opened: by then the pid
                // could belong to another process.
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

/// Kills the processes in these cgroups and waits for all of them together, for a short time, because no worker runs
/// yet. Returns for each cgroup whether it is empty.
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
            found.push(Leftover(Folder { name: name.to_owned(), parent, own }));
        }
    }
    found
}

/// A cgroup and those below it, outermost first.
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

impl Folder {
    /// Removes it, if it has no cgroup below it and contains no process. Returns true if it no longer exists.
    fn remove(&self) -> bool {
        is_removed(&self.parent, &self.name)
    }

    /// Removes it and the cgroups below it, innermost first, in at most `steps` steps. `cursor` stores the position for
    /// the next call.
    fn remove_below(&self, cursor: &mut Option<Cursor>, steps: usize) -> Progress {
        let Some(mut place) = cursor.take().or_else(|| self.begin()) else { return Progress::Stuck };
        let mut left = steps;
        while left > 0 {
            left -= 1;
            let below = subdirectories(&place.at);
            let tried = &below[..below.len().min(left)];
            left -= tried.len();
            let undivided = tried.iter().take_while(|name| is_removed(&place.at, *name)).count();
            let next = match tried.get(undivided) {
                Some(_) if place.emptied && undivided == 0 => return Progress::Stuck,
                Some(divided) => place.down(divided),
                // There may be more cgroups than were listed.
                None if !below.is_empty() => Ok(Cursor { emptied: false, ..place }),
                None if place.depth > 0 => place.up(),
                None if self.remove() => return Progress::Removed,
                None => return Progress::Stuck,
            };
            // The worker can remove the same cgroups at the same time.
            let Ok(next) = next else { return Progress::Stuck };
            place = next;
        }
        *cursor = Some(place);
        Progress::Unfinished
    }

    fn begin(&self) -> Option<Cursor> {
        Some(Cursor { at: self.own.try_clone().ok()?, depth: 0, emptied: false })
    }
}

impl Cursor {
    fn down(&self, name: &OsStr) -> rustix::io::Result<Cursor> {
        let at = openat(&self.at, name, DIRECTORY, Mode::empty())?;
        Ok(Cursor { at, depth: self.depth + 1, emptied: false })
    }

    fn up(&self) -> rustix::io::Result<Cursor> {
        let at = openat(&self.at, "..", DIRECTORY, Mode::empty())?;
        Ok(Cursor { at, depth: self.depth - 1, emptied: true })
    }
}

fn is_removed(parent: &OwnedFd, name: impl rustix::path::Arg) -> bool {
    matches!(unlinkat(parent, name, AtFlags::REMOVEDIR), Ok(()) | Err(rustix::io::Errno::NOENT))
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

/// Why no cgroup is delegated to the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undelegated {
    /// The hierarchy of version 2 is not mounted here.
    NotMounted,
    /// The supervisor is in the root of the hierarchy, which belongs to the init system.
    Root,
    /// Nothing marks the cgroup as delegated.
    Unmarked,
}

/// Why no cgroup is delegated to the supervisor; `None` if one is.
#[must_use]
pub fn why_undelegated() -> Option<Undelegated> {
    delegated().err()
}

/// The directory of the supervisor's own cgroup, if the supervisor may divide it.
fn delegated() -> Result<PathBuf, Undelegated> {
    let Some(Place { path: below, dir: path, .. }) = place() else { return Err(Undelegated::NotMounted) };
    // The root of the whole hierarchy has no type, and only the init system may divide it.
    if !path.join("cgroup.type").exists() {
        return Err(Undelegated::Root);
    }
    let marked = ["trusted.delegate", "user.delegate"].iter().any(|name| {
        let mut value = [0u8; 8];
        rustix::fs::getxattr(&path, *name, &mut value[..]).is_ok_and(|length| value[..length] == *b"1")
    });
    // A container engine creates a cgroup namespace for containers that may divide their cgroup.
    let own_namespace = below == "/" && !is_first_namespace();
    let is_ours = std::fs::metadata(&path).is_ok_and(|metadata| {
        use std::os::unix::fs::MetadataExt;
        metadata.uid() != 0 && metadata.uid() == rustix::process::geteuid().as_raw()
    });
    if marked || own_namespace || is_ours { Ok(path) } else { Err(Undelegated::Unmarked) }
}

/// Whether the supervisor is in the first cgroup namespace, which has this inode number: `PROC_CGROUP_INIT_INO` of the
/// kernel's `include/linux/proc_ns.h`.
fn is_first_namespace() -> bool {
    use std::os::unix::fs::MetadataExt;
    const FIRST: u64 = 0xEFFF_FFFB;
    std::fs::metadata("/proc/self/ns/cgroup").is_ok_and(|metadata| metadata.ino() == FIRST)
}

/// The supervisor's cgroup in the hierarchy of version 2.
fn place() -> Option<Place> {
    cgroup_mounts::of_this_process(None).into_iter().find(|place| place.version == Version::V2)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A supervisor's cgroup below a cgroup of the test. `None`: there is no such hierarchy, or it is not writable.
    fn supervisors(name: &str) -> Option<(Supervisors, Folder)> {
        let parent = rustix::fs::open(place()?.mount, DIRECTORY, Mode::empty()).ok()?;
        let name = format!("master-process-unit-{}-{name}", std::process::id());
        mkdirat(&parent, &name, Mode::from(0o755)).ok()?;
        let place = openat(&parent, &name, DIRECTORY, Mode::empty()).expect("it is there");
        mkdirat(&place, "own", Mode::from(0o755)).expect("it is ours");
        let own = openat(&place, "own", DIRECTORY, Mode::empty()).expect("it is there");
        let supervisors =
            Supervisors { parent: place.try_clone().expect("a descriptor"), own, name: "own".to_owned() };
        Some((supervisors, Folder { parent, own: place, name }))
    }

    /// Makes nested cgroups, `depth` levels at most. Returns the number of levels made, and the error that ended it.
    fn divide(cgroup: &Cgroup, depth: usize) -> (usize, rustix::io::Result<()>) {
        let mut at = cgroup.folder.own.try_clone().expect("a descriptor");
        for made in 0..depth {
            if let Err(error) = mkdirat(&at, "below", Mode::from(0o755)) {
                return (made, Err(error));
            }
            at = openat(&at, "below", DIRECTORY, Mode::empty()).expect("it is there");
        }
        (depth, Ok(()))
    }

    fn take_limits_away(cgroup: &Cgroup) {
        for file in ["cgroup.max.depth", "cgroup.max.descendants"] {
            write(&cgroup.folder.own, file, "max").expect("it is ours");
        }
    }

    fn remove_in_steps(cgroup: &Cgroup) -> usize {
        assert_eq!(cgroup.remove(), Removal::Divided);
        let mut steps = 1;
        while cgroup.remove_some() {
            steps += 1;
            assert!(steps < 1000, "it gets there");
        }
        assert_eq!(cgroup.remove(), Removal::Gone);
        steps
    }

    #[test]
    fn a_worker_can_divide_its_cgroup_up_to_the_depth_limit() {
        let Some((supervisors, place)) = supervisors("depth") else {
            return eprintln!("skipped: no cgroup can be made");
        };
        let cgroup = supervisors.create(1).expect("it is ours");
        assert_eq!(divide(&cgroup, MAX_DEPTH + 1), (MAX_DEPTH, Err(rustix::io::Errno::AGAIN)));
        remove_in_steps(&cgroup);
        drop((cgroup, supervisors));
        assert!(place.remove());
    }

    #[test]
    fn all_cgroups_of_a_worker_are_removed_in_bounded_steps() {
        let Some((supervisors, place)) = supervisors("steps") else {
            return eprintln!("skipped: no cgroup can be made");
        };
        let deep = supervisors.create(1).expect("it is ours");
        take_limits_away(&deep);
        assert_eq!(divide(&deep, 2 * MAX_GROUPS), (2 * MAX_GROUPS, Ok(())));
        assert!(remove_in_steps(&deep) > 2);
        let wide = supervisors.create(2).expect("it is ours");
        for number in 0..2 * MAX_GROUPS {
            mkdirat(&wide.folder.own, number.to_string(), Mode::from(0o755)).expect("it is ours");
        }
        assert!(remove_in_steps(&wide) > 2);
        drop((deep, wide, supervisors));
        assert!(place.remove());
    }

    #[test]
    fn a_populated_cgroup_is_kept_and_its_removal_ends() {
        let Some((supervisors, place)) = supervisors("in-use") else {
            return eprintln!("skipped: no cgroup can be made");
        };
        let cgroup = supervisors.create(1).expect("it is ours");
        divide(&cgroup, 3).1.expect("it may be that deep");
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().expect("a process");
        let inner = openat(&cgroup.folder.own, "below/below", DIRECTORY, Mode::empty()).expect("made");
        write(&inner, "cgroup.procs", &child.id().to_string()).expect("it is ours");
        assert_eq!(cgroup.remove(), Removal::InUse);
        assert!(!cgroup.remove_some(), "another step would not get further");
        assert_eq!(cgroup.remove(), Removal::InUse);
        cgroup.kill().or_else(|_| child.kill()).expect("it is ours");
        child.wait().expect("it is ours");
        remove_in_steps(&cgroup);
        drop((cgroup, supervisors));
        assert!(place.remove());
    }
}
