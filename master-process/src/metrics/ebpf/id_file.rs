//! The file in which the first supervisor of the host keeps the ids of what it has loaded, for the others.
//!
//! The kernel keeps a program or a map as long as any process has it open, and frees it with the last one, however that ends.
//! So nobody has to serve the others or to clean up: the ids in the file are those of nothing then. To open something by
//! its id takes CAP_SYS_ADMIN. A supervisor without it, or that cannot use the file, loads what it needs for itself.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};

use super::Leaves;
use super::runtime::{self, is_trusted, open_directory};

/// How long to wait for the supervisor that loads the programs. It takes some ten milliseconds, unless it is stopped meanwhile, or
/// hundreds start at once. A thread waits; then the host has one more set of programs.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// The file, locked.
#[derive(Debug)]
pub(super) struct IdFile {
    file: File,
    boot: String,
}

impl IdFile {
    /// Opens the file for the programs of this release in this PID namespace, and waits for its lock; `None` if it cannot be
    /// used. The supervisors of a file know each other by their pids.
    pub(super) fn open(programs: &[u8], namespace: u64, leaves: Leaves) -> Option<IdFile> {
        IdFile::open_in(Path::new(runtime::DIRECTORY), programs, namespace, leaves, LOCK_TIMEOUT)
    }

    fn open_in(
        directory: &Path,
        programs: &[u8],
        namespace: u64,
        leaves: Leaves,
        timeout: Duration,
    ) -> Option<IdFile> {
        let directory = open_directory(directory)?;
        let name = format!("programs-{:016x}-{namespace}", runtime::hash(programs));
        let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let flags = match leaves {
            Leaves::Files => flags | OFlags::RDWR | OFlags::CREATE,
            Leaves::Nothing => flags | OFlags::RDONLY,
        };
        let mode = Mode::RUSR | Mode::WUSR;
        let file = File::from(rustix::fs::openat(&directory, name, flags, mode).ok()?);
        if !is_trusted(&file) || !file.metadata().ok()?.is_file() {
            return None;
        }
        let until = Instant::now() + timeout;
        while flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            if Instant::now() >= until {
                return None;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Some(IdFile { file, boot: runtime::boot_id()? })
    }

    /// The ids that are kept; `None` if they are not of this boot, or not so many.
    pub(super) fn read<const COUNT: usize>(&self) -> Option<[u32; COUNT]> {
        let mut text = String::new();
        (&self.file).take(256).read_to_string(&mut text).ok()?;
        let mut words = text.split_whitespace();
        if words.next()? != self.boot {
            return None;
        }
        let mut ids = [0; COUNT];
        for id in &mut ids {
            *id = words.next()?.parse().ok()?;
        }
        Some(ids)
    }

    /// Keeps ids for other supervisors.
    ///
    /// # Errors
    /// Those of ftruncate(2) and write(2).
    pub(super) fn write(&mut self, ids: &[u32]) -> std::io::Result<()> {
        let ids = ids.iter().map(|id| format!(" {id}"));
        let text: String = std::iter::once(self.boot.clone()).chain(ids).chain(["\n".to_owned()]).collect();
        self.file.set_len(0)?;
        self.file.rewind()?;
        // One write, so that there is no half of it.
        self.file.write_all(text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use super::*;

    fn open(directory: &Path, leaves: Leaves) -> Option<IdFile> {
        IdFile::open_in(directory, b"programs", 1, leaves, Duration::from_millis(50))
    }

    fn path(directory: &Path) -> PathBuf {
        std::fs::read_dir(directory).expect("ours").next().expect("a file").expect("ours").path()
    }

    #[test]
    fn ids_are_read_as_they_were_written_in_this_boot_only() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = || open(directory.path(), Leaves::Files).expect("a file");
        assert_eq!(file().read::<3>(), None, "it is empty");
        file().write(&[1, 22, 333]).expect("ours");
        assert_eq!(file().read(), Some([1, 22, 333]));
        assert_eq!(file().read::<4>(), None, "there are three");
        file().write(&[4, 5, 6]).expect("ours");
        assert_eq!(file().read(), Some([4, 5, 6]));
        let boot = runtime::boot_id().expect("a boot id");
        for text in ["another-boot 1 1 1", &format!("{boot} 1 1"), &format!("{boot} 1 x 1"), "\0\0"] {
            std::fs::write(path(directory.path()), text).expect("ours");
            assert_eq!(file().read::<3>(), None, "{text}");
        }
    }

    #[test]
    fn each_release_and_pid_namespace_has_a_file_of_its_own() {
        let directory = tempfile::tempdir().expect("a directory");
        let of = |programs: &[u8], namespace| {
            IdFile::open_in(directory.path(), programs, namespace, Leaves::Files, Duration::ZERO)
        };
        let held = [of(b"one", 1), of(b"one", 2), of(b"two", 1)];
        assert!(held.iter().all(Option::is_some), "none waits for another: {held:?}");
    }

    #[test]
    fn a_trial_makes_no_file() {
        let directory = tempfile::tempdir().expect("a directory");
        assert!(open(directory.path(), Leaves::Nothing).is_none());
        assert_eq!(std::fs::read_dir(directory.path()).expect("ours").count(), 0);
        open(directory.path(), Leaves::Files).expect("a file").write(&[7]).expect("ours");
        assert_eq!(open(directory.path(), Leaves::Nothing).expect("the file").read(), Some([7]));
    }

    #[test]
    fn a_lock_that_is_not_released_is_not_waited_for() {
        let directory = tempfile::tempdir().expect("a directory");
        let held = open(directory.path(), Leaves::Files).expect("a file");
        assert!(open(directory.path(), Leaves::Files).is_none());
        drop(held);
        assert!(open(directory.path(), Leaves::Files).is_some());
    }

    #[test]
    fn a_file_that_others_can_write_is_not_used() {
        let directory = tempfile::tempdir().expect("a directory");
        drop(open(directory.path(), Leaves::Files).expect("a file"));
        std::fs::set_permissions(path(directory.path()), Permissions::from_mode(0o666)).expect("ours");
        assert!(open(directory.path(), Leaves::Files).is_none());
    }
}
