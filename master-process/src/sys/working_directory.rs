//! Where this process was started, by the path that whoever started it uses.

use std::ffi::OsStr;
use std::io;
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The path of the current directory that a shell would print: `pwd`, the value of `PWD`, where that is absolute and
/// names the directory that we are in, so that the symlinks in it can be followed again later; else the path that the
/// kernel has for it.
///
/// # Errors
/// The directory has been removed, or may not be reached; see getcwd(3).
pub fn logical(pwd: Option<&OsStr>) -> io::Result<PathBuf> {
    if let Some(path) = pwd.map(Path::new)
        && path.is_absolute()
        && is_current(path)
    {
        return Ok(path.to_owned());
    }
    std::env::current_dir()
}

fn is_current(path: &Path) -> bool {
    let identity = |path: &Path| std::fs::metadata(path).map(|found| (found.st_dev(), found.st_ino())).ok();
    identity(path).is_some_and(|named| identity(Path::new(".")) == Some(named))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_that_names_the_current_directory_is_believed_and_no_other() {
        let physical = std::env::current_dir().expect("tests run somewhere");
        let scratch = tempfile::tempdir().expect("a temporary folder");
        let link = scratch.path().join("current");
        std::os::unix::fs::symlink(&physical, &link).expect("the folder is ours");
        let of = |pwd: &Path| logical(Some(pwd.as_os_str())).expect("it exists");
        assert_eq!(of(&link), link, "a symlink stays in the path");
        assert_eq!(of(scratch.path()), physical, "another directory");
        assert_eq!(of(&scratch.path().join("gone")), physical, "nothing");
        assert_eq!(of(Path::new(".")), physical, "relative");
        assert_eq!(of(Path::new("")), physical, "empty");
        assert_eq!(logical(None).expect("it exists"), physical, "unset");
    }
}
