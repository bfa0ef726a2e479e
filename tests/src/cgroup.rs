//! A cgroup for a supervisor.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{FlockOperation, XattrFlags, flock};

use crate::Supervisor;
use crate::supervisor::Builder;
use crate::wait::{TIMEOUT, eventually};

/// A cgroup of version 2 without processes, which goes with this value, and everybody in it.
#[derive(Debug)]
pub struct Place(PathBuf, #[expect(dead_code, reason = "held until the end of the test")] Option<File>);

impl Place {
    /// `None`: there is no such hierarchy here, or it may not be written to.
    #[must_use]
    pub fn make(delegated: bool) -> Option<Place> {
        Place::make_with(delegated, FlockOperation::LockShared)
    }

    /// The same for a test that makes and removes many cgroups: all of the host take turns with one lock of the kernel, and
    /// other tests count on the removal of theirs.
    #[must_use]
    pub fn make_alone(delegated: bool) -> Option<Place> {
        Place::make_with(delegated, FlockOperation::LockExclusive)
    }

    fn make_with(delegated: bool, operation: FlockOperation) -> Option<Place> {
        let lock = File::create(std::env::temp_dir().join("master-process-test-cgroups.lock")).ok();
        let lock = lock.filter(|file| flock(file, operation).is_ok());
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let line = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
        // Tests of one process can run at the same time.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = PathBuf::from(line.split(' ').nth(4)?)
            .join(format!("master-process-test-{}-{count}", std::process::id()));
        fs::create_dir(&path).ok()?;
        let place = Place(path, lock);
        if delegated {
            rustix::fs::setxattr(&place.0, "trusted.delegate", b"1", XattrFlags::empty()).ok()?;
        }
        Some(place)
    }

    /// One that can limit memory, CPU time and processes. `None`: the hierarchy of version 2 cannot do that here.
    #[must_use]
    pub fn with_controllers(delegated: bool) -> Option<Place> {
        let place = Place::make(delegated)?;
        let available = place.read("cgroup.controllers");
        let has = |name: &&str| available.split_whitespace().any(|controller| controller == *name);
        ["cpu", "memory", "pids"].iter().all(has).then_some(place)
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A file of it.
    #[must_use]
    pub fn read(&self, file: &str) -> String {
        fs::read_to_string(self.0.join(file)).unwrap_or_default().trim().to_owned()
    }

    /// Words to put in front of a command line, so that it runs in it.
    #[must_use]
    pub fn launcher(&self) -> Vec<String> {
        let line = format!("echo $$ > {}/cgroup.procs; exec \"$@\"", self.0.display());
        vec!["sh".to_owned(), "-c".to_owned(), line, "sh".to_owned()]
    }

    /// The same for the cgroup below it that systemd makes with `DelegateSubgroup=supervisor`.
    #[must_use]
    pub fn launcher_below(&self) -> Vec<String> {
        let line = format!(
            "mkdir -p {0}/supervisor && echo $$ > {0}/supervisor/cgroup.procs; exec \"$@\"",
            self.0.display()
        );
        vec!["sh".to_owned(), "-c".to_owned(), line, "sh".to_owned()]
    }

    /// A supervisor in it.
    #[must_use]
    pub fn start(&self, options: &[&str], command: Vec<String>) -> Supervisor {
        Supervisor::builder().args(options).command(command).wrap(self.launcher()).spawn()
    }

    /// A supervisor outside of it, whose workers are in it.
    pub fn builder(&self) -> Builder {
        Supervisor::builder().args(["--cgroup", &self.0.display().to_string()])
    }

    /// The cgroups below those of supervisors, by path.
    fn slots(&self) -> Vec<PathBuf> {
        let own = folders(&self.0).into_iter().filter(|path| name(path).starts_with("master-process-"));
        own.flat_map(|path| folders(&path)).collect()
    }

    /// The names of the cgroups of workers, in order.
    #[must_use]
    pub fn workers(&self) -> Vec<String> {
        let mut names: Vec<String> = self.slots().iter().map(|path| name(path)).collect();
        names.sort();
        names
    }

    /// The names of those that contain a process, in order.
    #[must_use]
    pub fn in_use(&self) -> Vec<String> {
        let is_used = |path: &&PathBuf| {
            let events = fs::read_to_string(path.join("cgroup.events")).unwrap_or_default();
            events.lines().any(|line| line == "populated 1")
        };
        let mut names: Vec<String> = self.slots().iter().filter(is_used).map(|path| name(path)).collect();
        names.sort();
        names
    }

    /// A file of the cgroup of a worker.
    #[must_use]
    pub fn read_of(&self, worker: &str, file: &str) -> String {
        let path = self.slots().into_iter().find(|path| name(path) == worker);
        path.and_then(|path| fs::read_to_string(path.join(file)).ok()).unwrap_or_default().trim().to_owned()
    }

    /// The processes in the cgroup of a worker and in those below.
    #[must_use]
    pub fn processes_of(&self, worker: &str) -> Vec<i32> {
        let slots = self.slots().into_iter().filter(|path| name(path) == worker);
        let all = slots.flat_map(|path| folders(&path).into_iter().chain([path]));
        let texts = all.map(|path| fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default());
        texts.flat_map(|text| text.lines().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>()).collect()
    }

    /// The number after a key in such a file; 0 without it.
    #[must_use]
    pub fn number_of(&self, worker: &str, file: &str, key: &str) -> u64 {
        number(&self.read_of(worker, file), key)
    }

    /// The cgroups below it that were removed and that the kernel keeps.
    #[must_use]
    pub fn dying(&self) -> u64 {
        number(&self.read("cgroup.stat"), "nr_dying_descendants")
    }

    /// Puts a process into the cgroup of a worker.
    ///
    /// # Panics
    /// Where the worker has none.
    pub fn put(&self, pid: u32, worker: &str) {
        let path = self.slots().into_iter().find(|path| name(path) == worker);
        let path = path.expect("the worker has a cgroup");
        fs::write(path.join("cgroup.procs"), pid.to_string()).expect("it is ours");
    }

    /// Whether there is no cgroup below it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        folders(&self.0).is_empty()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _killed = fs::write(self.0.join("cgroup.kill"), "1");
        eventually(TIMEOUT, "the cgroup is removed", || {
            remove(&self.0);
            !self.0.exists()
        });
    }
}

fn folders(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

fn name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn number(text: &str, key: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}

/// Removes a cgroup and those below it, as far as they are empty.
fn remove(cgroup: &Path) {
    folders(cgroup).iter().for_each(|path| remove(path));
    let _gone_or_in_use = fs::remove_dir(cgroup);
}
