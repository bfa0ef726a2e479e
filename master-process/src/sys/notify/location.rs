//! The directory that the notify socket is created in.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use super::{NotifySocket, WorkerUser};
use crate::sys::runtime_directory;

/// The base directory for root if the service manager did not create one.
const ROOT_BASE: &str = runtime_directory::ROOT;

/// The notify socket, and the directories that could not be used.
#[derive(Debug)]
pub struct Opened {
    /// The socket.
    pub socket: NotifySocket,
    /// The directories that failed, in order of preference, and the reasons.
    pub failed: Vec<(PathBuf, io::Error)>,
    /// Whether the socket has a path. Otherwise its address is abstract, and every local user can send to it.
    pub is_private: bool,
}

/// Opens the notify socket in the first directory in which `user` can send to it and other ordinary users cannot. If
/// there is none, the socket gets an abstract address.
///
/// # Errors
/// Those of [`NotifySocket::with_abstract_address`].
pub fn open(user: WorkerUser<'_>) -> io::Result<Opened> {
    let mut failed = Vec::new();
    for base in bases(|name| std::env::var_os(name), rustix::process::geteuid().is_root()) {
        let created = if base == Path::new(ROOT_BASE) { runtime_directory::create(&base) } else { Ok(()) };
        match created.and_then(|()| NotifySocket::in_directory(&base, user)) {
            Ok(socket) => return Ok(Opened { socket, failed, is_private: true }),
            Err(error) => failed.push((base, error)),
        }
    }
    let socket = NotifySocket::with_abstract_address()?;
    Ok(Opened { socket, failed, is_private: false })
}

/// Removes the base directory for root when it is dropped, if it did not exist before and is empty: for a trial, which
/// leaves nothing behind.
#[derive(Debug)]
pub struct BaseGuard {
    existed: bool,
}

impl BaseGuard {
    /// To be made before [`open`], and dropped after the socket.
    #[must_use]
    pub fn new() -> BaseGuard {
        BaseGuard { existed: Path::new(ROOT_BASE).symlink_metadata().is_ok() }
    }
}

impl Default for BaseGuard {
    fn default() -> BaseGuard {
        BaseGuard::new()
    }
}

impl Drop for BaseGuard {
    fn drop(&mut self) {
        if !self.existed {
            let _in_use_or_not_made = std::fs::remove_dir(ROOT_BASE);
        }
    }
}

/// The base directories in order of preference.
fn bases(var: impl Fn(&str) -> Option<OsString>, is_root: bool) -> Vec<PathBuf> {
    let (service, user) = (runtime_directory::of_service(&var), runtime_directory::base_of_user(&var));
    let root = is_root.then(|| PathBuf::from(ROOT_BASE));
    [service, root, user, Some(PathBuf::from("/tmp"))].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried(vars: &[(&str, &str)], is_root: bool) -> Vec<PathBuf> {
        bases(|name| vars.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into()), is_root)
    }

    fn paths(texts: &[&str]) -> Vec<PathBuf> {
        texts.iter().map(PathBuf::from).collect()
    }

    #[test]
    fn the_service_managers_directory_comes_first() {
        let vars = [("RUNTIME_DIRECTORY", "/run/app:/run/other"), ("XDG_RUNTIME_DIR", "/run/user/7")];
        assert_eq!(tried(&vars, true), paths(&["/run/app", "/run/master-process", "/run/user/7", "/tmp"]));
        assert_eq!(tried(&vars, false), paths(&["/run/app", "/run/user/7", "/tmp"]));
    }

    #[test]
    fn what_is_unset_empty_or_relative_is_passed_over() {
        assert_eq!(tried(&[], false), paths(&["/tmp"]));
        assert_eq!(tried(&[("RUNTIME_DIRECTORY", ""), ("XDG_RUNTIME_DIR", "run")], false), paths(&["/tmp"]));
    }
}
