//! The cgroup in which a supervisor makes its own: the one that is delegated to it, or the one that the user names.
//!
//! Limits take controllers, which a cgroup gives to those below it only while it contains no process itself; "no
//! internal processes" in cgroups(7). So the processes of the delegated cgroup, the supervisor among them, move
//! into a cgroup below it, and back at the end. Without limits nothing is enabled, and nothing moves.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, mkdirat, openat, unlinkat};
use serde::{Deserialize, Serialize};

use super::cgroup::{DIRECTORY, pids, read, write};
use super::cgroup_limits::Controller;
use super::cgroup_mounts::{self, Place, Version};
use super::handover::{Fd, Incoming, Outgoing};

/// The cgroup of the processes that were in the delegated one. systemd makes it for `DelegateSubgroup=supervisor`.
const LEAF: &str = "supervisor";

/// The number of times that the processes of the delegated cgroup are listed and moved: they can fork meanwhile.
const MOVES: usize = 10;

/// The file system type of cgroups of version 2: `CGROUP2_SUPER_MAGIC`.
const MAGIC: i64 = 0x6367_7270;

/// A cgroup that the supervisor may divide. When it is dropped, it is as it was found, if no other supervisor uses it.
#[derive(Debug)]
pub(super) struct Base {
    pub(super) dir: PathBuf,
    pub(super) fd: OwnedFd,
    /// Whether this process was in it.
    contains_us: bool,
    /// Whether its processes were moved into the leaf.
    has_moved: bool,
    /// The controllers that were enabled.
    enabled: Vec<Controller>,
    /// Whether it was made.
    is_made: bool,
}

/// It as a supervisor hands it over.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct SavedBase {
    #[serde(with = "crate::forms::path")]
    dir: PathBuf,
    fd: Fd,
    contains_us: bool,
    has_moved: bool,
    enabled: Vec<Controller>,
    is_made: bool,
}

/// Why there is no cgroup, or none with the controllers that are needed.
#[derive(Debug)]
pub enum Unusable {
    /// No cgroup is delegated to this process.
    Undelegated(Undelegated),
    /// The path is not that of a cgroup of version 2.
    NotCgroup(PathBuf),
    /// The cgroup does not have this controller.
    NoController(Controller, PathBuf),
    /// Other processes are in it.
    Occupied(PathBuf, Vec<i32>),
    /// A call failed.
    Failed(String, io::Error),
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

impl fmt::Display for Undelegated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Undelegated::NotMounted => "cgroup v2 is not mounted here",
            Undelegated::Root => "this process is in the root cgroup, which belongs to the init system",
            Undelegated::Unmarked => "the cgroup is not delegated to this process",
        })
    }
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unusable::Undelegated(why) => {
                write!(f, "{why}; expected Delegate=yes in the unit, or --cgroup PATH")
            }
            Unusable::NotCgroup(dir) => write!(f, "{} is not a cgroup of version 2", dir.display()),
            Unusable::NoController(controller, dir) => {
                write!(f, "the {controller} controller is not enabled for {}", dir.display())?;
                match dir.parent() {
                    Some(parent) => {
                        write!(f, "; expected {controller} in {}/cgroup.subtree_control", parent.display())
                    }
                    None => Ok(()),
                }
            }
            Unusable::Occupied(dir, pids) => {
                let pids: Vec<String> = pids.iter().map(i32::to_string).collect();
                write!(f, "{} contains other processes (pid {})", dir.display(), pids.join(", "))
            }
            Unusable::Failed(what, error) => write!(f, "{what}: {error}"),
        }
    }
}

impl Base {
    pub(super) fn save(&self, out: &mut Outgoing) -> SavedBase {
        let Base { dir, fd, contains_us, has_moved, enabled, is_made } = self;
        SavedBase {
            dir: dir.clone(),
            fd: out.keep(fd.as_fd()),
            contains_us: *contains_us,
            has_moved: *has_moved,
            enabled: enabled.clone(),
            is_made: *is_made,
        }
    }

    pub(super) fn resume(saved: SavedBase, from: &mut Incoming) -> Base {
        let SavedBase { dir, fd, contains_us, has_moved, enabled, is_made } = saved;
        Base { dir, fd: from.take(fd), contains_us, has_moved, enabled, is_made }
    }

    /// The cgroup that is delegated to this process.
    pub(super) fn delegated() -> Result<Base, Unusable> {
        let (dir, contains_us) = delegated().map_err(Unusable::Undelegated)?;
        let fd = rustix::fs::open(&dir, DIRECTORY, Mode::empty());
        let fd = fd.map_err(|error| failed(&dir, "", error.into()))?;
        Ok(Base { dir, fd, contains_us, has_moved: false, enabled: Vec::new(), is_made: false })
    }

    /// The cgroup at this path, which is made if only its parent exists.
    pub(super) fn at(dir: &Path) -> Result<Base, Unusable> {
        let made = match mkdirat(CWD, dir, Mode::from(0o755)) {
            Ok(()) => true,
            Err(rustix::io::Errno::EXIST) => false,
            Err(error) => return Err(failed(dir, "", error.into())),
        };
        let base = rustix::fs::open(dir, DIRECTORY, Mode::empty()).map(|fd| Base {
            contains_us: place().is_some_and(|place| place.dir == dir),
            dir: dir.to_owned(),
            fd,
            has_moved: false,
            enabled: Vec::new(),
            is_made: made,
        });
        let base = base.map_err(|error| failed(dir, "", error.into()))?;
        let is_cgroup = rustix::fs::fstatfs(&base.fd).is_ok_and(|stat| stat.f_type == MAGIC);
        if is_cgroup { Ok(base) } else { Err(Unusable::NotCgroup(dir.to_owned())) }
    }

    /// The controllers that it can give to the cgroups below it.
    pub(super) fn controllers(&self) -> Vec<Controller> {
        let available = read(&self.fd, "cgroup.controllers").unwrap_or_default();
        Controller::ALL.into_iter().filter(|controller| controller.is_in(&available)).collect()
    }

    /// Gives these controllers to the cgroups below it.
    pub(super) fn enable(&mut self, controllers: &[Controller]) -> Result<(), Unusable> {
        let available = read(&self.fd, "cgroup.controllers").unwrap_or_default();
        if let Some(missing) = controllers.iter().find(|controller| !controller.is_in(&available)) {
            return Err(Unusable::NoController(*missing, self.dir.clone()));
        }
        let enabled = read(&self.fd, "cgroup.subtree_control").unwrap_or_default();
        let missing: Vec<Controller> =
            controllers.iter().copied().filter(|controller| !controller.is_in(&enabled)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        self.empty()?;
        for controller in missing {
            change(&self.fd, '+', controller)
                .map_err(|error| failed(&self.dir, "cgroup.subtree_control", error))?;
            self.enabled.push(controller);
        }
        Ok(())
    }

    /// Moves the processes of the cgroup into the leaf. The root of the hierarchy may have both.
    fn empty(&mut self) -> Result<(), Unusable> {
        let is_root = read(&self.fd, "cgroup.type").is_err();
        let processes = pids(&self.fd);
        if is_root || processes.is_empty() {
            return Ok(());
        }
        if !self.contains_us {
            return Err(Unusable::Occupied(self.dir.clone(), processes));
        }
        let leaf = self.leaf().map_err(|error| failed(&self.dir, LEAF, error))?;
        self.has_moved = true;
        let moved = move_all(&self.fd, &leaf).map_err(|error| failed(&self.dir, LEAF, error))?;
        if moved { Ok(()) } else { Err(Unusable::Occupied(self.dir.clone(), pids(&self.fd))) }
    }

    fn leaf(&self) -> io::Result<OwnedFd> {
        match mkdirat(&self.fd, LEAF, Mode::from(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(openat(&self.fd, LEAF, DIRECTORY, Mode::empty())?)
    }

    /// Takes the controllers back, and moves the processes back. Returns false if another supervisor uses the controllers.
    fn restore(&self) -> bool {
        let is_unused = self.enabled.iter().all(|controller| change(&self.fd, '-', *controller).is_ok());
        if self.has_moved && is_unused {
            let leaf = openat(&self.fd, LEAF, DIRECTORY, Mode::empty());
            let _some_stay = leaf.map(|leaf| move_all(&leaf, &self.fd));
            let _in_use = unlinkat(&self.fd, LEAF, AtFlags::REMOVEDIR);
        }
        is_unused
    }
}

impl Drop for Base {
    fn drop(&mut self) {
        let is_unused = self.restore();
        if self.is_made && is_unused {
            let _in_use = unlinkat(CWD, &self.dir, AtFlags::REMOVEDIR);
        }
    }
}

fn failed(dir: &Path, file: &str, error: io::Error) -> Unusable {
    let path = if file.is_empty() { dir.to_owned() } else { dir.join(file) };
    Unusable::Failed(path.display().to_string(), error)
}

/// Enables (`+`) or disables (`-`) a controller for the cgroups below this one.
pub(super) fn change(fd: &OwnedFd, sign: char, controller: Controller) -> io::Result<()> {
    write(fd, "cgroup.subtree_control", &format!("{sign}{controller}"))
}

/// Moves the processes of one cgroup into another one. Returns whether the first one is empty.
fn move_all(from: &OwnedFd, to: &OwnedFd) -> io::Result<bool> {
    for _ in 0..MOVES {
        let processes = pids(from);
        if processes.is_empty() {
            return Ok(true);
        }
        for pid in processes {
            match write(to, "cgroup.procs", &pid.to_string()) {
                Err(error) if error.raw_os_error() != Some(libc::ESRCH) => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
    }
    Ok(pids(from).is_empty())
}

/// The cgroups above this one that do not give a controller to those below them, the uppermost first.
#[must_use]
pub fn closed_above(dir: &Path, controller: Controller) -> Vec<PathBuf> {
    let mut closed = Vec::new();
    for above in dir.ancestors().skip(1) {
        // Above the root of the hierarchy there is no such file.
        let Ok(enabled) = std::fs::read_to_string(above.join("cgroup.subtree_control")) else { break };
        if !controller.is_in(&enabled) {
            closed.push(above.to_owned());
        }
    }
    closed.reverse();
    closed
}

/// Why no cgroup is delegated to the supervisor; `None` if one is.
#[must_use]
pub fn why_undelegated() -> Option<Undelegated> {
    delegated().err()
}

/// The directory of the cgroup that the supervisor may divide, and whether the supervisor is in that itself. Otherwise
/// it is in the leaf below.
fn delegated() -> Result<(PathBuf, bool), Undelegated> {
    let Some(Place { path: below, dir, .. }) = place() else { return Err(Undelegated::NotMounted) };
    if dir.file_name() == Some(OsStr::new(LEAF))
        && let (Some(above), Some(below)) = (dir.parent(), Path::new(&below).parent())
        && check_delegated(above, below == Path::new("/")).is_ok()
    {
        return Ok((above.to_owned(), false));
    }
    check_delegated(&dir, below == "/").map(|()| (dir, true))
}

/// Checks that a cgroup is delegated to this process. `is_top`: it is the root of the cgroup namespace.
fn check_delegated(dir: &Path, is_top: bool) -> Result<(), Undelegated> {
    // The root of the whole hierarchy has no type, and only the init system may divide it.
    if !dir.join("cgroup.type").exists() {
        return Err(Undelegated::Root);
    }
    let marked = ["trusted.delegate", "user.delegate"].iter().any(|name| {
        let mut value = [0u8; 8];
        rustix::fs::getxattr(dir, *name, &mut value[..]).is_ok_and(|length| value[..length] == *b"1")
    });
    // A container engine creates a cgroup namespace for containers that may divide their cgroup.
    let own_namespace = is_top && !is_first_namespace();
    let is_ours = std::fs::metadata(dir).is_ok_and(|metadata| {
        use std::os::unix::fs::MetadataExt;
        metadata.uid() != 0 && metadata.uid() == rustix::process::geteuid().as_raw()
    });
    if marked || own_namespace || is_ours { Ok(()) } else { Err(Undelegated::Unmarked) }
}

/// Whether the supervisor is in the first cgroup namespace, which has this inode number: `PROC_CGROUP_INIT_INO` of the
/// kernel's `include/linux/proc_ns.h`.
fn is_first_namespace() -> bool {
    use std::os::unix::fs::MetadataExt;
    const FIRST: u64 = 0xEFFF_FFFB;
    std::fs::metadata("/proc/self/ns/cgroup").is_ok_and(|metadata| metadata.ino() == FIRST)
}

/// The supervisor's cgroup in the hierarchy of version 2.
pub(super) fn place() -> Option<Place> {
    cgroup_mounts::of_this_process(None).into_iter().find(|place| place.version == Version::V2)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory with the files of a cgroup.
    fn fake(controllers: &str, enabled: &str, processes: &str) -> (tempfile::TempDir, Base) {
        let folder = tempfile::tempdir().expect("a directory");
        let files = [
            ("cgroup.controllers", controllers),
            ("cgroup.subtree_control", enabled),
            ("cgroup.procs", processes),
            ("cgroup.type", "domain"),
        ];
        for (file, text) in files {
            std::fs::write(folder.path().join(file), text).expect("it is ours");
        }
        let fd = rustix::fs::open(folder.path(), DIRECTORY, Mode::empty()).expect("it is there");
        let base = Base {
            dir: folder.path().to_owned(),
            fd,
            contains_us: false,
            has_moved: false,
            enabled: Vec::new(),
            is_made: false,
        };
        (folder, base)
    }

    fn enabled(folder: &tempfile::TempDir) -> String {
        std::fs::read_to_string(folder.path().join("cgroup.subtree_control")).expect("it is ours")
    }

    #[test]
    fn a_controller_that_is_missing_is_named_with_the_file_that_would_enable_it() {
        let (folder, mut base) = fake("cpu io\n", "", "");
        let error =
            base.enable(&[Controller::Cpu, Controller::Memory]).expect_err("it is missing").to_string();
        assert!(error.starts_with("the memory controller is not enabled for /"), "{error}");
        let parent = folder.path().parent().expect("it has one").display();
        assert!(error.ends_with(&format!("; expected memory in {parent}/cgroup.subtree_control")), "{error}");
        assert_eq!(enabled(&folder), "", "nothing was enabled");
    }

    #[test]
    fn cgroups_that_do_not_give_a_controller_are_found_from_the_top() {
        let folder = tempfile::tempdir().expect("a directory");
        let (a, b) = (folder.path().join("a"), folder.path().join("a/b"));
        std::fs::create_dir_all(b.join("c")).expect("ours");
        let write =
            |dir: &Path, text| std::fs::write(dir.join("cgroup.subtree_control"), text).expect("ours");
        write(folder.path(), "cpu memory\n");
        write(&a, "cpu\n");
        write(&b, "\n");
        assert_eq!(closed_above(&b.join("c"), Controller::Memory), [a, b.clone()]);
        assert_eq!(closed_above(&b.join("c"), Controller::Cpu), [b]);
    }

    #[test]
    fn a_controller_that_is_enabled_stays_as_it_is() {
        let (folder, mut base) = fake("cpu memory\n", "cpu memory\n", "1\n");
        base.enable(&[Controller::Memory]).expect("nothing is to do");
        drop(base);
        assert_eq!(enabled(&folder), "cpu memory\n");
    }

    #[test]
    fn controllers_are_enabled_and_disabled_again() {
        let (folder, mut base) = fake("cpu memory\n", "cpu!\n", "");
        base.enable(&[Controller::Memory]).expect("it is empty");
        // The kernel changes its list; in a file, the text is written over the start.
        assert_eq!(enabled(&folder), "+memory");
        drop(base);
        assert_eq!(enabled(&folder), "-memory");
    }

    #[test]
    fn processes_of_a_cgroup_that_is_not_ours_are_not_moved() {
        let (folder, mut base) = fake("pids\n", "", "17\n0\n18\n");
        let error = base.enable(&[Controller::Pids]).expect_err("it is occupied").to_string();
        assert!(error.ends_with(" contains other processes (pid 17, 18)"), "{error}");
        assert_eq!(enabled(&folder), "");
    }

    #[test]
    fn a_path_that_is_no_cgroup_is_refused_and_nothing_stays() {
        let folder = tempfile::tempdir().expect("a directory");
        let error = Base::at(&folder.path().join("new")).expect_err("no cgroup").to_string();
        assert!(error.ends_with("/new is not a cgroup of version 2"), "{error}");
        assert!(!folder.path().join("new").exists());
        let error = Base::at(&folder.path().join("missing/new")).expect_err("no parent").to_string();
        assert!(error.ends_with("/missing/new: No such file or directory (os error 2)"), "{error}");
    }
}
