//! A cgroup for a supervisor.

use std::fs;
use std::path::PathBuf;

use rustix::fs::XattrFlags;

use crate::wait::{PATIENCE, eventually};

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

    /// Words to put in front of a command line, so that it runs in it.
    #[must_use]
    pub fn launcher(&self) -> Vec<String> {
        let line = format!("echo $$ > {}/cgroup.procs; exec \"$@\"", self.0.display());
        vec!["sh".to_owned(), "-c".to_owned(), line, "sh".to_owned()]
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
        eventually(PATIENCE, "the cgroup is removed", || {
            for own in fs::read_dir(&self.0).into_iter().flatten().flatten() {
                for worker in fs::read_dir(own.path()).into_iter().flatten().flatten() {
                    let _gone = fs::remove_dir(worker.path());
                }
                let _gone = fs::remove_dir(own.path());
            }
            fs::remove_dir(&self.0).is_ok() || !self.0.exists()
        });
    }
}
