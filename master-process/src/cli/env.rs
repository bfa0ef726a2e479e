//! What reading the command line asks of the host. Tests answer with a host of their own.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use super::accounts::{self, User, UserKey};
use super::{cpus, name_service};
use crate::sys::path_lookup;

/// The host's answers.
pub trait Env {
    /// The variable of this name.
    fn var(&self, name: &str) -> Option<OsString>;
    /// The CPUs that this process may use, at least 1.
    fn cpus(&self) -> u32;
    /// Whether standard input is a terminal.
    fn stdin_is_terminal(&self) -> bool;
    /// What relative paths are relative to.
    ///
    /// # Errors
    ///
    /// The directory has been removed or may not be read.
    fn current_dir(&self) -> io::Result<PathBuf>;
    /// The same, by the path that whoever started us uses: with the symlinks in it.
    ///
    /// # Errors
    ///
    /// As [`current_dir`](Self::current_dir).
    fn logical_dir(&self) -> io::Result<PathBuf>;
    /// Whether there is a directory at this path, symlinks followed.
    ///
    /// # Errors
    ///
    /// There is nothing there, or nothing that we may look at.
    fn is_dir(&self, path: &Path) -> io::Result<bool>;
    /// The addresses of a host's name, at this port; may wait for the network.
    ///
    /// # Errors
    ///
    /// The name is unknown or nobody could be asked.
    fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>>;
    /// A user's entry; `None`: there is none.
    ///
    /// # Errors
    ///
    /// The user database cannot be read.
    fn user(&self, key: UserKey<'_>) -> io::Result<Option<User>>;
    /// A group's id by its name; `None`: there is none.
    ///
    /// # Errors
    ///
    /// The group database cannot be read.
    fn group(&self, name: &str) -> io::Result<Option<u32>>;
    /// Every group that the user of this name is in, and `gid`.
    ///
    /// # Errors
    ///
    /// The group database cannot be read.
    fn groups_of(&self, user: &str, gid: u32) -> io::Result<Vec<u32>>;
}

/// This process and its host.
#[derive(Debug, Clone, Copy)]
pub struct ProcessEnv;

impl Env for ProcessEnv {
    fn var(&self, name: &str) -> Option<OsString> {
        std::env::var_os(name)
    }

    fn cpus(&self) -> u32 {
        cpus::of_this_process()
    }

    fn stdin_is_terminal(&self) -> bool {
        io::stdin().is_terminal()
    }

    fn current_dir(&self) -> io::Result<PathBuf> {
        std::env::current_dir()
    }

    fn logical_dir(&self) -> io::Result<PathBuf> {
        path_lookup::working_directory(self.var("PWD").as_deref())
    }

    fn is_dir(&self, path: &Path) -> io::Result<bool> {
        std::fs::metadata(path).map(|found| found.is_dir())
    }

    fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let lines = name_service::lines("ahosts", host)?;
        // Each address comes once for each kind of socket that it can serve.
        let mut addresses = Vec::new();
        for line in &lines {
            let address = line.split_whitespace().next().and_then(|word| word.parse::<IpAddr>().ok());
            let address = address.map(|ip| SocketAddr::new(ip, port));
            addresses.extend(address.filter(|address| !addresses.contains(address)));
        }
        Ok(addresses)
    }

    fn user(&self, key: UserKey<'_>) -> io::Result<Option<User>> {
        accounts::user(key)
    }

    fn group(&self, name: &str) -> io::Result<Option<u32>> {
        accounts::group(name)
    }

    fn groups_of(&self, user: &str, gid: u32) -> io::Result<Vec<u32>> {
        accounts::groups_of(user, gid)
    }
}
