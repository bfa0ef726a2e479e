//! The places of the start gate: files in a directory that the supervisors of one user share. Who starts a worker holds
//! the lock of one of them: flock(2). The kernel releases it when the holder ends, in whatever way.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, FlockOperation, Mode, OFlags, accessat, flock, openat};
use rustix::io::{Errno, retry_on_intr};

use super::handover::{Fd, Incoming, Outgoing};
use super::{fds, runtime_directory};

/// The start of a file's name; its number follows.
const PREFIX: &str = "start-";

/// The lowest descriptor of a place. The child of a start copies the descriptors of the supervisor below those that it
/// is given, and keeps the copies until `execve`. A copy in a child that hangs would outlive a supervisor that was killed,
/// and so would the lock. The kernel's table has 64 entries at first, and grows to 128 with this one.
const LOWEST_FD: i32 = 64;

/// The places, by their number.
#[derive(Debug)]
pub struct Places {
    directory: PathBuf,
    count: u32,
    /// The place that is tried first: another one each time, and in each supervisor.
    first: u32,
}

/// A place that this supervisor holds. Dropped, it is free.
#[derive(Debug)]
pub struct Place {
    file: OwnedFd,
    number: u32,
}

impl Place {
    /// The descriptor, with which the lock goes, and the number of the place.
    pub fn save(&self, out: &mut Outgoing) -> (Fd, u32) {
        (out.keep(self.file.as_fd()), self.number)
    }

    /// Goes on with them.
    pub fn resume((file, number): (Fd, u32), from: &mut Incoming) -> Place {
        Place { file: from.take(file), number }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // To close it would not be enough while a child has a copy of the descriptor.
        let _unlocked = flock(&self.file, FlockOperation::Unlock);
    }
}

/// The file of a place that another supervisor holds.
#[derive(Debug)]
pub struct OccupiedPlace(Place);

impl OccupiedPlace {
    /// Waits until the place is free. Those that wait for one place get it in the order in which they came. It cannot be
    /// cancelled, so it is for a thread that nothing else needs.
    ///
    /// # Errors
    /// ENOLCK; flock(2).
    pub fn wait(self) -> io::Result<Place> {
        retry_on_intr(|| flock(&self.0.file, FlockOperation::LockExclusive))?;
        Ok(self.0)
    }
}

/// Why a place cannot be used.
#[derive(Debug)]
pub struct Unusable {
    path: PathBuf,
    why: io::Error,
}

impl Unusable {
    /// What cannot be used: the directory, or a file in it.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.why)
    }
}

/// The directory of this user: that of root is one for the whole host. `None`: the user has none.
#[must_use]
pub fn directory() -> Option<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Some(PathBuf::from(runtime_directory::ROOT));
    }
    Some(runtime_directory::base_of_user(|name| std::env::var_os(name))?.join(runtime_directory::NAME))
}

impl Places {
    /// `count` places in this directory, which is created when it is needed.
    #[must_use]
    pub fn new(directory: PathBuf, count: u32) -> Places {
        Places { directory, count: count.max(1), first: std::process::id() }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        usize::try_from(self.count).unwrap_or(usize::MAX)
    }

    /// Takes a free place beside those that are held already, without waiting. `None`: others hold the rest.
    ///
    /// # Errors
    /// The directory or a file in it cannot be used.
    pub fn take(&mut self, held: &[Place]) -> Result<Option<Place>, Unusable> {
        let directory = self.open()?;
        for number in self.others(held) {
            let file = self.open_place(&directory, number)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Some(Place { file: out_of_reach(file), number })),
                Err(Errno::WOULDBLOCK) => {}
                Err(error) => return Err(self.unusable(number, error.into())),
            }
        }
        Ok(None)
    }

    /// A place to wait for, other than those that are held.
    ///
    /// # Errors
    /// The directory or a file in it cannot be used, or all places are held.
    pub fn next_occupied(&mut self, held: &[Place]) -> Result<OccupiedPlace, Unusable> {
        let directory = self.open()?;
        let number = self.others(held).next().unwrap_or(0);
        let file = self.open_place(&directory, number)?;
        Ok(OccupiedPlace(Place { file: out_of_reach(file), number }))
    }

    /// Whether the places could be used. Makes the directory, as [`Places::take`] does, and none of the files.
    ///
    /// # Errors
    /// The directory or a file in it cannot be used.
    pub fn check(&self) -> Result<(), Unusable> {
        let directory = self.open()?;
        for number in 0..self.count {
            match self.open_file(&directory, number, OFlags::empty()) {
                Err(unusable) if unusable.why.kind() == io::ErrorKind::NotFound => {
                    accessat(&directory, ".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)
                        .map_err(|why| Unusable { path: self.directory.clone(), why: why.into() })?;
                }
                opened => drop(opened?),
            }
        }
        Ok(())
    }

    /// The numbers of the places that are not held, from another one on each time.
    fn others<'a>(&mut self, held: &'a [Place]) -> impl Iterator<Item = u32> + use<'a> {
        self.first = self.first.wrapping_add(1);
        let (first, count) = (self.first % self.count, self.count);
        let all = (first..count).chain(0..first);
        all.filter(|number| held.iter().all(|place| place.number != *number))
    }

    fn open(&self) -> Result<File, Unusable> {
        let path = &self.directory;
        let opened = match runtime_directory::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                runtime_directory::create(path).and_then(|()| runtime_directory::open(path))
            }
            opened => opened,
        };
        opened.map_err(|why| Unusable { path: path.clone(), why })
    }

    /// Opens the file of a place, and makes it if it is not there. Where it is, the directory may be read-only.
    fn open_place(&self, directory: &File, number: u32) -> Result<File, Unusable> {
        self.open_file(directory, number, OFlags::CREATE)
    }

    /// Opens the file of a place. Who can open a file can lock it, so no other user must be able to.
    fn open_file(&self, directory: &File, number: u32, create: OFlags) -> Result<File, Unusable> {
        let flags = create | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let name = format!("{PREFIX}{number}");
        let checked = openat(directory, &name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(io::Error::from)
            .and_then(|file| check_private(File::from(file)));
        checked.map_err(|why| self.unusable(number, why))
    }

    fn unusable(&self, number: u32, why: io::Error) -> Unusable {
        Unusable { path: self.directory.join(format!("{PREFIX}{number}")), why }
    }
}

fn check_private(file: File) -> io::Result<File> {
    let of = file.metadata()?;
    let denied = |why: &str| Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    if !of.is_file() {
        denied("not a regular file")
    } else if of.uid() != rustix::process::geteuid().as_raw() {
        denied("it belongs to another user")
    } else if of.mode() & 0o077 != 0 {
        denied("other users can open it")
    } else {
        Ok(file)
    }
}

/// The file with a descriptor that children do not copy; the lock goes with it.
fn out_of_reach(file: File) -> OwnedFd {
    // Only a limit on open files below the number prevents this.
    fds::copy_from(file.as_fd(), LOWEST_FD).unwrap_or_else(|_limited| file.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn places(directory: &Path, count: u32) -> Places {
        Places::new(directory.join("master-process"), count)
    }

    fn taken(places: &mut Places, held: &[Place]) -> Option<Place> {
        places.take(held).expect("the directory can be used")
    }

    fn refused(places: &mut Places) -> String {
        places.take(&[]).expect_err("it must not be used").to_string()
    }

    #[test]
    fn there_are_as_many_places_as_given_and_each_is_free_again_after_its_holder() {
        let directory = tempfile::tempdir().expect("a directory");
        let (mut ours, mut theirs) = (places(directory.path(), 2), places(directory.path(), 2));
        let mut held = Vec::from_iter(taken(&mut ours, &[]));
        held.extend(taken(&mut theirs, &[]));
        assert_eq!(held.len(), 2);
        assert!(taken(&mut theirs, &[]).is_none() && taken(&mut ours, &[]).is_none());
        held.pop();
        assert!(taken(&mut ours, &held).is_some());
    }

    #[test]
    fn a_copy_of_the_descriptor_does_not_keep_a_place() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut places = places(directory.path(), 1);
        let place = taken(&mut places, &[]).expect("it is free");
        let copy = place.file.try_clone().expect("a descriptor");
        drop(place);
        assert!(taken(&mut places, &[]).is_some());
        drop(copy);
    }

    #[test]
    fn the_descriptor_of_a_place_is_above_those_that_a_child_copies_and_is_closed_by_exec() {
        use std::os::fd::AsRawFd;
        let directory = tempfile::tempdir().expect("a directory");
        let place = taken(&mut places(directory.path(), 1), &[]).expect("it is free");
        assert!(place.file.as_raw_fd() >= LOWEST_FD);
        let flags = rustix::io::fcntl_getfd(&place.file).expect("it is open");
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }

    #[test]
    fn who_waits_gets_the_place_of_the_one_before() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut places = places(directory.path(), 1);
        let first = taken(&mut places, &[]).expect("it is free");
        let waits = places.next_occupied(&[]).expect("the directory can be used");
        let thread = std::thread::spawn(move || waits.wait().expect("a lock"));
        drop(first);
        let second = thread.join().expect("it does not panic");
        assert!(taken(&mut places, &[]).is_none());
        drop(second);
        assert!(taken(&mut places, &[]).is_some());
    }

    #[test]
    fn the_place_to_wait_for_is_none_that_is_held() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut places = places(directory.path(), 3);
        let held: Vec<Place> = (0..2).filter_map(|_| taken(&mut places, &[])).collect();
        let free: Vec<u32> =
            (0..3).filter(|number| held.iter().all(|place| place.number != *number)).collect();
        for _ in 0..6 {
            let next = places.next_occupied(&held).expect("the directory can be used");
            assert_eq!(free, [next.0.number]);
        }
    }

    #[test]
    fn a_check_makes_no_place_and_finds_what_a_start_would_find() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut places = places(directory.path(), 2);
        let path = directory.path().join("master-process");
        places.check().expect("it can be used");
        assert_eq!(std::fs::read_dir(&path).expect("it was made").count(), 0);
        let mode = std::fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "as the control socket makes it");
        drop(taken(&mut places, &[]));
        places.check().expect("it can be used");
        let file =
            std::fs::read_dir(&path).expect("there").next().expect("a place").expect("its name").path();
        std::fs::set_permissions(&file, Permissions::from_mode(0o644)).expect("ours");
        assert_eq!(places.check().expect_err("others can open it").path(), file);
        std::fs::remove_file(&file).expect("ours");
        std::fs::set_permissions(&path, Permissions::from_mode(0o777)).expect("ours");
        assert_eq!(places.check().expect_err("others can write to it").path(), path);
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_not_used() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut places = places(directory.path(), 1);
        drop(taken(&mut places, &[]));
        let chmod = |mode| {
            let path = directory.path().join("master-process");
            std::fs::set_permissions(path, Permissions::from_mode(mode)).expect("ours");
        };
        chmod(0o777);
        assert!(refused(&mut places).contains("other users can write to it"));
        chmod(0o755);
        assert!(taken(&mut places, &[]).is_some());
    }

    #[test]
    fn a_place_that_is_a_link_or_that_others_can_open_is_not_used() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut places = places(directory.path(), 1);
        drop(taken(&mut places, &[]));
        let file = directory.path().join("master-process/start-0");
        std::fs::set_permissions(&file, Permissions::from_mode(0o644)).expect("ours");
        assert!(refused(&mut places).contains("start-0: other users can open it"));
        std::fs::remove_file(&file).expect("ours");
        symlink("elsewhere", &file).expect("a link");
        assert!(refused(&mut places).contains("start-0"));
        assert!(!directory.path().join("master-process/elsewhere").exists());
        std::fs::remove_file(&file).expect("ours");
        rustix::fs::mknodat(rustix::fs::CWD, &file, rustix::fs::FileType::Fifo, Mode::RUSR, 0)
            .expect("a pipe");
        assert!(refused(&mut places).contains("not a regular file"));
    }
}
