//! The file of this program: where it is, and whether another one is there now.

use std::ffi::{CString, OsStr};
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// The file that this process executes, whatever has become of its path.
const RUNNING: &str = "/proc/self/exe";

/// The program of this process.
#[derive(Debug, Clone)]
pub struct OwnProgram {
    path: PathBuf,
}

/// The file that is to take over.
#[derive(Debug)]
pub struct NewProgram {
    file: OwnedFd,
    path: PathBuf,
}

impl OwnProgram {
    /// Finds the path by which this program was started: a symbolic link in it is followed at each upgrade. If it leads
    /// elsewhere, it is the path of the file.
    #[must_use]
    pub fn find() -> OwnProgram {
        let running = std::fs::metadata(RUNNING).ok();
        let is_running = |path: &PathBuf| match (&running, std::fs::metadata(path)) {
            (Some(running), Ok(there)) => (there.dev(), there.ino()) == (running.dev(), running.ino()),
            _unknown => false,
        };
        let word = std::env::args_os().next().unwrap_or_default();
        let started = candidates(&word, std::env::var_os("PATH").as_deref()).find(is_running);
        let path = started.or_else(|| std::fs::read_link(RUNNING).ok()).unwrap_or_default();
        OwnProgram { path }
    }

    /// The program at this path.
    #[must_use]
    pub fn at(path: PathBuf) -> OwnProgram {
        OwnProgram { path }
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file at its path is another one than the running one, or was written to. A path without a file has
    /// not changed: a new one may be about to come.
    #[must_use]
    pub fn has_changed(&self) -> bool {
        let identity = |of: &Metadata| (of.dev(), of.ino(), of.size(), of.mtime(), of.mtime_nsec());
        match (std::fs::metadata(RUNNING), std::fs::metadata(&self.path)) {
            (Ok(running), Ok(there)) => identity(&running) != identity(&there),
            _unknown => false,
        }
    }

    /// Opens the file at its path now.
    ///
    /// # Errors
    /// Those of open(2), or it is not a file.
    pub fn open(&self) -> io::Result<NewProgram> {
        let file = open_path(&self.path)?;
        let of = File::from(file);
        if !of.metadata()?.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        Ok(NewProgram { file: of.into(), path: self.path.clone() })
    }

    /// Opens the file that runs.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn open_running() -> io::Result<OwnedFd> {
        open_path(Path::new(RUNNING))
    }
}

impl NewProgram {
    /// The file.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Its path, if it is still there. The name of a process that is executed by its path is that of the file.
    #[must_use]
    pub fn path(&self) -> Option<CString> {
        let there = std::fs::metadata(&self.path).ok()?;
        let stat = rustix::fs::fstat(&self.file).ok()?;
        let is_there = (there.dev(), there.ino()) == (stat.st_dev, stat.st_ino);
        CString::new(self.path.as_os_str().as_bytes()).ok().filter(|_| is_there)
    }
}

fn open_path(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

/// The absolute paths that a program of this name may have been started from.
fn candidates(word: &OsStr, path: Option<&OsStr>) -> impl Iterator<Item = PathBuf> {
    let is_path = word.as_bytes().contains(&b'/');
    let here = || std::env::current_dir().map(|here| here.join(word).components().collect()).ok();
    let own = is_path.then(here).flatten();
    let folders: Vec<PathBuf> =
        path.filter(|_| !is_path).map(|path| std::env::split_paths(path).collect()).unwrap_or_default();
    let word = word.to_owned();
    let searched =
        folders.into_iter().filter(|folder| folder.is_absolute()).map(move |folder| folder.join(&word));
    own.into_iter().chain(searched)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_changes_when_another_file_is_at_its_path_or_it_was_written_to() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let running = std::fs::canonicalize(RUNNING).expect("it runs");
        let link = folder.path().join("current");
        std::os::unix::fs::symlink(&running, &link).expect("ours");
        let program = OwnProgram::at(link.clone());
        assert!(!program.has_changed());
        assert!(program.open().expect("it is there").path().is_some());
        let other = folder.path().join("other");
        std::fs::write(&other, "another").expect("ours");
        std::fs::remove_file(&link).expect("ours");
        assert!(!program.has_changed(), "nothing is there");
        assert!(program.open().is_err());
        std::os::unix::fs::symlink(&other, &link).expect("ours");
        assert!(program.has_changed(), "the link leads elsewhere");
        let opened = program.open().expect("it is there");
        std::fs::remove_file(&other).expect("ours");
        assert_eq!(opened.path(), None, "it has gone from there");
        assert!(OwnProgram::at(folder.path().to_owned()).open().is_err(), "a folder is no program");
    }

    #[test]
    fn a_name_is_searched_in_path_and_a_path_is_taken_from_here() {
        let paths =
            |word: &str, path: &str| candidates(OsStr::new(word), Some(OsStr::new(path))).collect::<Vec<_>>();
        let here = std::env::current_dir().expect("there is one");
        assert_eq!(paths("app", "/a:b:/c"), [Path::new("/a/app"), Path::new("/c/app")]);
        assert_eq!(paths("./app", "/a"), [here.join("app")]);
        assert_eq!(paths("/x/app", "/a"), [Path::new("/x/app")]);
    }

    #[test]
    fn the_path_of_this_program_is_found() {
        assert!(!OwnProgram::find().has_changed());
        assert!(OwnProgram::find().open().is_ok());
    }
}
