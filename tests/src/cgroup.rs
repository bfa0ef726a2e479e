//! A cgroup for a supervisor.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::XattrFlags;

use crate::Supervisor;
use crate::wait::{TIMEOUT, eventually};

/// A cgroup of version 2 without controllers, which goes with this value, and everybody in it.
#[derive(Debug)]
pub struct Place(PathBuf);

impl Place {
    /// `None`: there is no such hierarchy here, or it may not be written to.
    #[must_use]
    pub fn make(delegated: bool) -> Option<Place> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let line = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
        let path = PathBuf::from(line.split(' ').nth(4)?)
            .join(format!("master-process-test-{}", std::process::id()));
        fs::create_dir(&path).ok()?;
        let place = Place(path);
        if delegated {
            rustix::fs::setxattr(&place.0, "trusted.delegate", b"1", XattrFlags::empty()).ok()?;
        }
        Some(place)
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Words to put in front of a command line, so that it runs in it.
    #[must_use]
    pub fn launcher(&self) -> Vec<String> {
        let line = format!("echo $$ > {}/cgroup.procs; exec \"$@\"", self.0.display());
        vec!["sh".to_owned(), "-c".to_owned(), line, "sh".to_owned()]
    }

    /// A supervisor in it.
    #[must_use]
    pub fn start(&self, options: &[&str], command: Vec<String>) -> Supervisor {
        Supervisor::builder().args(options).command(command).wrap(self.launcher()).spawn()
    }

    /// The names of the cgroups below that of the supervisor.
    #[must_use]
    pub fn workers(&self) -> Vec<String> {
        let folders = |path: &PathBuf| -> Vec<PathBuf> {
            let entries = fs::read_dir(path).into_iter().flatten().flatten();
            entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
        };
        let own = folders(&self.0);
        let workers = own.iter().flat_map(folders);
        workers.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect()
    }

    /// Puts a process into the cgroup of a worker.
    ///
    /// # Panics
    /// Where the worker has none.
    pub fn put(&self, pid: u32, worker: &str) {
        let own = fs::read_dir(&self.0).expect("it is there").flatten().map(|entry| entry.path());
        let mut files = own.map(|path| path.join(worker).join("cgroup.procs"));
        let file = files.find(|file| file.exists()).expect("the worker has a cgroup");
        fs::write(file, pid.to_string()).expect("it is ours");
    }

    /// Whether there is no cgroup below it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        entries.filter(|entry| entry.path().is_dir()).count() == 0
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

/// Removes a cgroup and those below it, as far as they are empty.
fn remove(cgroup: &Path) {
    let below = fs::read_dir(cgroup).into_iter().flatten().flatten().map(|entry| entry.path());
    below.filter(|path| path.is_dir()).for_each(|path| remove(&path));
    let _gone_or_in_use = fs::remove_dir(cgroup);
}
