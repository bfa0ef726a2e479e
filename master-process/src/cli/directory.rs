//! `--chdir DIR`.

use std::io;
use std::path::PathBuf;

use super::env::Env;
use super::error::{Parsed, Reason};

/// A directory that exists, as an absolute path. Its symlinks stay in it, to be followed at every start.
pub(super) fn parse(text: &str, env: &dyn Env) -> Parsed<PathBuf> {
    if text.is_empty() {
        return Err("is not a directory; give the path of one".into());
    }
    let path = below(text, || env.logical_dir())?;
    match env.is_dir(&path) {
        Ok(true) => Ok(path),
        Ok(false) => Err("is not a directory; give the path of one".into()),
        Err(error) => Err(format!("cannot be used ({error}); give the path of an existing directory").into()),
    }
}

/// The path from the root on, `.` and doubled slashes removed, `..` and symlinks kept.
pub(super) fn absolute(path: &str, env: &dyn Env) -> Parsed<PathBuf> {
    below(path, || env.current_dir())
}

fn below(path: &str, base: impl Fn() -> io::Result<PathBuf>) -> Parsed<PathBuf> {
    if path.starts_with('/') {
        return Ok(PathBuf::from(path).components().collect());
    }
    let base = base().map_err(|error| {
        Reason::from(format!(
            "is relative to a current directory that is unknown ({error}); give an absolute path"
        ))
    })?;
    Ok(base.join(path).components().collect())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::testing::Host;
    use super::*;

    fn dir(text: &str) -> Parsed<PathBuf> {
        parse(text, &Host::default())
    }

    #[test]
    fn relative_paths_become_absolute() {
        assert_eq!(dir("/srv/app").as_deref(), Ok(Path::new("/srv/app")));
        assert_eq!(dir("app").as_deref(), Ok(Path::new("/srv/app")));
        assert_eq!(dir("./app//").as_deref(), Ok(Path::new("/srv/app")));
        assert_eq!(dir(".").as_deref(), Ok(Path::new("/srv")));
    }

    #[test]
    fn a_relative_path_begins_where_the_user_says_that_we_are() {
        let host = Host { vars: vec![("PWD".to_owned(), "/current".into())], ..Host::default() };
        assert_eq!(parse("app", &host).as_deref(), Ok(Path::new("/current/app")));
        assert_eq!(absolute("app.sock", &host).as_deref(), Ok(Path::new("/srv/app.sock")), "a socket stays");
    }

    #[test]
    fn garbage_is_no_directory() {
        for garbage in ["", "/srv/file", "/nope", "nope", " ", "/srv/app\0"] {
            assert!(dir(garbage).is_err(), "{garbage:?}");
        }
        assert!(dir("/srv/file").expect_err("a file").starts_with("is not a directory"));
        assert!(dir("/nope").expect_err("nothing").starts_with("cannot be used ("));
    }

    #[test]
    fn a_removed_current_directory_is_told() {
        let host = Host { removed_dir: true, ..Host::default() };
        assert!(absolute("app", &host).expect_err("no base").contains("give an absolute path"));
        assert!(absolute("/srv/app", &host).is_ok());
    }
}
