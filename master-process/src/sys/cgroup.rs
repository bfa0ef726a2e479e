//! Control groups of version 2: the kernel tracks the processes of each worker, and limits them; cgroups(7).
//!
//! A cgroup can be divided where it is *delegated* to the supervisor. systemd marks delegation with an extended
//! attribute (`Delegate=yes`); a container engine creates a cgroup namespace. Elsewhere the hierarchy belongs to
//! another manager, unless the user names a cgroup. Without limits for the workers the supervisor enables no
//! controller, and the limits of its own cgroup apply to the workers.
//!
//! With limits, each slot has a cgroup that outlives its workers (`cgroup_slot.rs`). Two workers of one slot, as in a
//! reload, have two of them.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, flock, mkdirat, openat, unlinkat};
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use super::cgroup_base::{Base, SavedBase, change};
pub use super::cgroup_base::{Undelegated, Unusable, closed_above, why_undelegated};
use super::cgroup_limits::Counters;
pub use super::cgroup_limits::{Controller, LimitsMet};
pub use super::cgroup_slot::Slot;
pub(crate) use super::cgroup_slot::{SavedSlots, SavingSlots};
use super::handover::{Fd, Incoming, Outgoing};
use crate::config::CgroupLimits;

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

/// The number of cgroups of one slot. A worker that drains has one, and so has a process that cannot be killed.
const MAX_OF_SLOT: u32 = 64;

/// The number of cgroups that one step removes or passes. A step takes a few milliseconds.
const STEPS: usize = 256;

/// SIGKILL takes effect within microseconds, unless a process is blocked in the kernel. The supervisor does not wait
/// longer for such a process.
const KILL_TAKES: Duration = Duration::from_secs(1);

/// The cgroup of a supervisor. It contains the cgroups of the workers.
#[derive(Debug)]
pub struct Supervisors {
    /// Locked while this supervisor runs. If another supervisor finds it unlocked, its owner has ended.
    own: OwnedFd,
    name: String,
    limits: CgroupLimits,
    /// The cgroup that contains it.
    base: Base,
}

/// The cgroup of one worker. Dropping it removes the cgroup if it contains no process.
#[derive(Debug)]
pub struct Cgroup {
    folder: Folder,
    /// The cgroup that has the limits, if there are any. It contains this one.
    slot: Option<Arc<Slot>>,
    /// What the kernel had counted in that when the worker was started.
    before: Counters,
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
pub(super) struct Folder {
    parent: OwnedFd,
    pub(super) own: OwnedFd,
    pub(super) name: String,
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

/// The cgroup of a supervisor as that hands it over. Its lock goes with its descriptor.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SavedSupervisors {
    base: SavedBase,
    own: Fd,
    name: String,
}

/// The cgroup of a worker as a supervisor hands it over.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SavedCgroup {
    #[serde(flatten)]
    folder: SavedFolder,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    slot: Option<usize>,
    #[serde(default, skip_serializing_if = "crate::forms::is_default")]
    before: Counters,
}

/// A cgroup as a supervisor hands it over.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct SavedFolder {
    parent: Fd,
    own: Fd,
    name: String,
}

impl Supervisors {
    /// The descriptors, the name, and what is known of the cgroup that contains it.
    pub(crate) fn save(&self, out: &mut Outgoing) -> SavedSupervisors {
        SavedSupervisors {
            base: self.base.save(out),
            own: out.keep(self.own.as_fd()),
            name: self.name.clone(),
        }
    }

    /// Goes on with them, and with these limits.
    pub(crate) fn resume(saved: SavedSupervisors, limits: CgroupLimits, from: &mut Incoming) -> Supervisors {
        let (base, own) = (Base::resume(saved.base, from), from.take(saved.own));
        Supervisors { own, name: saved.name, limits, base }
    }

    /// Makes the supervisor's cgroup, in the one at this path or else in the one that is delegated to the supervisor, and finds
    /// those that earlier supervisors left beside it.
    ///
    /// # Errors
    /// There is none, or the limits cannot be set in it.
    pub fn make(path: Option<&Path>, limits: CgroupLimits) -> Result<(Supervisors, Vec<Leftover>), Unusable> {
        let base = path.map_or_else(Base::delegated, Base::at)?;
        let leftovers = leftovers(&base.fd);
        // A name with the pid alone is not unique: the kernel reuses pids, and a restarted container has the same pids
        // again.
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let name = format!("{PREFIX}{}.{:x}{:08x}", std::process::id(), now.tv_sec, now.tv_nsec);
        let made = mkdirat(&base.fd, &name, Mode::from(0o755))
            .and_then(|()| openat(&base.fd, &name, DIRECTORY, Mode::empty()))
            .and_then(|own| flock(&own, FlockOperation::NonBlockingLockExclusive).map(|()| own));
        let own = match made {
            Ok(own) => own,
            Err(error) => return Err(Unusable::Failed(path_in(&base.dir, &name), error.into())),
        };
        let mut supervisors = Supervisors { own, name, limits, base };
        supervisors.enable()?;
        Ok((supervisors, leftovers))
    }

    /// Enables the controllers of the limits, and tries the limits.
    fn enable(&mut self) -> Result<(), Unusable> {
        let controllers = self.limits.controllers();
        if controllers.is_empty() {
            return Ok(());
        }
        self.base.enable(&controllers)?;
        for controller in controllers {
            change(&self.own, '+', controller)
                .map_err(|error| Unusable::Failed(self.path("cgroup.subtree_control"), error))?;
        }
        self.create(0, 0, None).and_then(|tried| tried.limit())
    }

    /// The path of a file or cgroup in it.
    fn path(&self, name: &str) -> String {
        path_in(&self.base.dir.join(&self.name), name)
    }

    /// The path of the cgroup of a worker: the one that has the limits, if there are any.
    #[must_use]
    pub fn path_of(&self, cgroup: &Cgroup) -> String {
        self.path(cgroup.slot.as_ref().map_or(&cgroup.folder.name, |slot| slot.name()))
    }

    /// The limits of the workers.
    #[must_use]
    pub fn limits(&self) -> &CgroupLimits {
        &self.limits
    }

    /// The controllers that the limits of workers can use here.
    #[must_use]
    pub fn controllers(&self) -> Vec<Controller> {
        self.base.controllers()
    }

    /// Makes a cgroup for a worker of a slot, with the limits of `kept`, the cgroup of an earlier worker of the slot.
    ///
    /// # Errors
    /// Those of mkdir(2) and open(2): EAGAIN if there are too many; and those of a limit.
    pub fn create(&self, slot: u32, serial: u64, kept: Option<Arc<Slot>>) -> Result<Cgroup, Unusable> {
        let (mut limits_of, mut before) = (None, Counters::default());
        let folder = if self.limits == CgroupLimits::default() {
            self.make_free(&format!("slot-{slot}"))?
        } else {
            let prepared = kept.and_then(|kept| kept.prepare().ok().map(|before| (kept, before)));
            let (of, counted) = match prepared {
                Some(prepared) => prepared,
                None => {
                    let of = Arc::new(Slot::new(self.make_free(&format!("slot-{slot}"))?, slot, self.limits));
                    let counted = of.prepare()?;
                    (of, counted)
                }
            };
            let made = of.make_below(serial);
            let made = made.map_err(|error| Unusable::Failed(self.path(of.name()), error))?;
            (limits_of, before) = (Some(of), counted);
            made
        };
        bound(&folder);
        Ok(Cgroup { folder, slot: limits_of, before, cursor: Mutex::new(None) })
    }

    /// Makes a cgroup with this name for processes that are no worker, and that have no limits.
    ///
    /// # Errors
    /// Those of mkdir(2) and open(2).
    pub fn create_unlimited(&self, name: &str) -> Result<Cgroup, Unusable> {
        let folder = self.make_free(name)?;
        bound(&folder);
        Ok(Cgroup { folder, slot: None, before: Counters::default(), cursor: Mutex::new(None) })
    }

    /// Makes the cgroup with the first free one of these names: `slot-3`, `slot-3.2`.
    fn make_free(&self, first: &str) -> Result<Folder, Unusable> {
        let mut name = first.to_owned();
        let mut number = 1;
        loop {
            match Folder::make(&self.own, name.clone()) {
                Ok(folder) => return Ok(folder),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < MAX_OF_SLOT => {
                    number += 1;
                    name = format!("{first}.{number}");
                }
                Err(error) => return Err(Unusable::Failed(self.path(&name), error)),
            }
        }
    }
}

impl Drop for Supervisors {
    fn drop(&mut self) {
        let _still_in_use = unlinkat(&self.base.fd, &self.name, AtFlags::REMOVEDIR);
    }
}

/// Bounds what the processes of a cgroup can make below it.
fn bound(folder: &Folder) {
    for (file, most) in [("cgroup.max.depth", MAX_DEPTH), ("cgroup.max.descendants", MAX_DESCENDANTS)] {
        // These files exist since Linux 4.14. Without them, there is no such limit.
        let _unlimited = write(&folder.own, file, &most.to_string());
    }
}

fn path_in(dir: &Path, name: &str) -> String {
    dir.join(name).display().to_string()
}

pub(super) const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

impl Cgroup {
    /// The descriptors, the names, and what was counted. The cgroup with the limits is one of `slots`.
    pub(crate) fn save(&self, slots: &mut SavingSlots, out: &mut Outgoing) -> SavedCgroup {
        SavedCgroup {
            folder: self.folder.save(out),
            slot: self.slot.as_ref().map(|slot| slots.index(slot)),
            before: self.before,
        }
    }

    /// Goes on with them.
    pub(crate) fn resume(saved: SavedCgroup, slots: &[Arc<Slot>], from: &mut Incoming) -> Cgroup {
        let folder = Folder::resume(saved.folder, from);
        let slot = saved.slot.and_then(|index| slots.get(index)).map(Arc::clone);
        Cgroup { folder, slot, before: saved.before, cursor: Mutex::new(None) }
    }

    /// The cgroup with the limits, if another worker of the slot can use that.
    #[must_use]
    pub fn reusable_slot(&self) -> Option<&Arc<Slot>> {
        // Reading how much memory files take takes longer than reading the counters.
        self.slot.as_ref().filter(|slot| !(self.limits_met().oom && slot.is_full_of_files()))
    }

    /// Sets the limits that hold once the program of the worker runs.
    ///
    /// # Errors
    /// Those of a limit.
    pub fn limit(&self) -> Result<(), Unusable> {
        self.slot.as_ref().map_or(Ok(()), |slot| slot.limit())
    }

    /// What its worker has met at the limits.
    #[must_use]
    pub fn limits_met(&self) -> LimitsMet {
        let met = |slot: &Arc<Slot>| slot.counters().since(&self.before, slot.limits());
        self.slot.as_ref().map(met).unwrap_or_default()
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
    pub(super) fn save(&self, out: &mut Outgoing) -> SavedFolder {
        let (parent, own) = (out.keep(self.parent.as_fd()), out.keep(self.own.as_fd()));
        SavedFolder { parent, own, name: self.name.clone() }
    }

    pub(super) fn resume(saved: SavedFolder, from: &mut Incoming) -> Folder {
        Folder { parent: from.take(saved.parent), own: from.take(saved.own), name: saved.name }
    }

    /// Makes a cgroup.
    pub(super) fn make(parent: &OwnedFd, name: String) -> io::Result<Folder> {
        mkdirat(parent, &name, Mode::from(0o755))?;
        let own = openat(parent, &name, DIRECTORY, Mode::empty())?;
        Ok(Folder { parent: parent.try_clone()?, own, name })
    }

    /// Removes it, if it has no cgroup below it and contains no process. Returns true if it no longer exists.
    pub(super) fn remove(&self) -> bool {
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

pub(super) fn read(folder: &OwnedFd, name: &str) -> io::Result<String> {
    let mut file = File::from(openat(folder, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?);
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(text)
}

pub(super) fn write(folder: &OwnedFd, name: &str, text: &str) -> io::Result<()> {
    // With `NONBLOCK` the kernel does not reclaim memory before it returns from setting a limit (Linux 6.16).
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut file = File::from(openat(folder, name, flags, Mode::empty())?);
    file.write_all(text.as_bytes())
}

/// The processes in a cgroup, without those of PID namespaces outside.
pub(super) fn pids(folder: &OwnedFd) -> Vec<i32> {
    let text = read(folder, "cgroup.procs").unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect()
}

fn is_populated(folder: &OwnedFd) -> io::Result<bool> {
    Ok(read(folder, "cgroup.events")?.lines().any(|line| line == "populated 1"))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::sys::cgroup_base::place;
    use crate::sys::cgroup_slot;

    /// A supervisor's cgroup in one that is removed with it, and the path of that. `None`: there is no such hierarchy, or it
    /// is not writable.
    fn supervisors(name: &str) -> Option<(Supervisors, PathBuf)> {
        let name = format!("master-process-unit-{}-{name}", std::process::id());
        let path = place()?.mount.join(name);
        let made = Supervisors::make(Some(&path), CgroupLimits::default());
        made.ok().map(|(supervisors, _)| (supervisors, path))
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
        let cgroup = supervisors.create(1, 1, None).expect("it is ours");
        assert_eq!(divide(&cgroup, MAX_DEPTH + 1), (MAX_DEPTH, Err(rustix::io::Errno::AGAIN)));
        remove_in_steps(&cgroup);
        drop((cgroup, supervisors));
        assert!(!place.exists());
    }

    #[test]
    fn all_cgroups_of_a_worker_are_removed_in_bounded_steps() {
        let Some((supervisors, place)) = supervisors("steps") else {
            return eprintln!("skipped: no cgroup can be made");
        };
        let deep = supervisors.create(1, 1, None).expect("it is ours");
        take_limits_away(&deep);
        assert_eq!(divide(&deep, 2 * MAX_GROUPS), (2 * MAX_GROUPS, Ok(())));
        assert!(remove_in_steps(&deep) > 2);
        let wide = supervisors.create(2, 2, None).expect("it is ours");
        for number in 0..2 * MAX_GROUPS {
            mkdirat(&wide.folder.own, number.to_string(), Mode::from(0o755)).expect("it is ours");
        }
        assert!(remove_in_steps(&wide) > 2);
        drop((deep, wide, supervisors));
        assert!(!place.exists());
    }

    #[test]
    fn a_populated_cgroup_is_kept_and_its_removal_ends() {
        let Some((supervisors, place)) = supervisors("in-use") else {
            return eprintln!("skipped: no cgroup can be made");
        };
        let cgroup = supervisors.create(1, 1, None).expect("it is ours");
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
        assert!(!place.exists());
    }

    #[test]
    fn a_cgroup_has_the_first_free_name_of_its_slot() {
        let Some((supervisors, place)) = supervisors("names") else {
            return eprintln!("skipped: no cgroup can be made");
        };
        let first = supervisors.create(3, 1, None).expect("it is ours");
        let second = supervisors.create(3, 2, None).expect("it is ours");
        assert_eq!((first.folder.name.as_str(), second.folder.name.as_str()), ("slot-3", "slot-3.2"));
        assert!(supervisors.path_of(&second).ends_with("/slot-3.2"));
        assert!(first.reusable_slot().is_none(), "without limits there is nothing to keep");
        drop(first);
        assert_eq!(supervisors.create(3, 3, None).expect("it is ours").folder.name, "slot-3");
        drop((second, supervisors));
        assert!(!place.exists());
    }

    /// Two workers of a slot, of which one is gone, have its cgroup in common also in the supervisor that takes over.
    fn hands_over(slot: &Arc<Slot>, supervisors: &Supervisors) {
        let worker = |serial| Cgroup {
            folder: slot.make_below(serial).expect("it is ours"),
            slot: Some(Arc::clone(slot)),
            before: Counters::default(),
            cursor: Mutex::new(None),
        };
        let (gone, new) = (worker(1), worker(2));
        let (mut slots, mut out) = (SavingSlots::default(), Outgoing::default());
        let (gone, new) = ((gone.save(&mut slots, &mut out), gone), (new.save(&mut slots, &mut out), new));
        let saved = (supervisors.save(&mut out), slots.save(&mut out));
        assert_eq!((gone.0.slot, new.0.slot, slots.index(slot)), (Some(0), Some(0), 0));
        out.described().expect("no descriptor is named twice");
        let written = serde_json::to_string(&(saved, &gone.0, &new.0)).expect("it can be written");
        let read: ((SavedSupervisors, SavedSlots), SavedCgroup, SavedCgroup) =
            serde_json::from_str(&written).expect("it can be read");
        assert_eq!((read.1.slot, read.2.slot), (Some(0), Some(0)));
    }

    #[test]
    fn the_cgroup_of_a_slot_outlives_its_workers_and_is_thawed_for_the_next_one() {
        let Some((supervisors, place)) = supervisors("slots") else {
            return eprintln!("skipped: no cgroup can be made");
        };
        let slot =
            supervisors.make_free("slot-0").map(|folder| Slot::new(folder, 0, CgroupLimits::default()));
        let slot = Arc::new(slot.expect("it is ours"));
        let frozen = cgroup_slot::fd(&slot);
        write(frozen, "cgroup.freeze", "1").expect("it is ours");
        slot.prepare().expect("it has no limits");
        assert_eq!(read(frozen, "cgroup.freeze").expect("it is ours").trim(), "0");
        let worker = slot.make_below(7).expect("it is ours");
        assert_eq!((worker.name.as_str(), slot.name()), ("worker-7", "slot-0"));
        assert!(worker.remove());
        hands_over(&slot, &supervisors);
        drop(slot);
        assert_eq!(supervisors.make_free("slot-0").expect("it was removed").name, "slot-0");
        let _left = unlinkat(&supervisors.own, "slot-0", AtFlags::REMOVEDIR);
        drop(supervisors);
        assert!(!place.exists());
    }
}
