//! The host, as far as the values need it: variables, directories, CPUs, and the name service. Tests have a host of their
//! own.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

use super::cpu_count;
use crate::sys::path_lookup;
use crate::sys::user_database::{self, User, UserKey};

/// A host.
pub(super) trait Host: Sync {
    /// The variable of this name.
    fn var(&self, name: &str) -> Option<OsString>;
    /// The CPUs that this process may use, at least 1.
    fn cpus(&self) -> u32;
    /// The CPUs of the host, whatever this process may use of them; at least 1.
    fn all_cpus(&self) -> u32;
    /// Whether standard input is a terminal.
    fn stdin_is_terminal(&self) -> bool;
    /// The current directory.
    ///
    /// # Errors
    ///
    /// The directory has been removed, or this process cannot read it.
    fn current_dir(&self) -> io::Result<PathBuf>;
    /// The current directory with its symlinks, as `PWD` names it.
    ///
    /// # Errors
    ///
    /// As [`current_dir`](Self::current_dir).
    fn logical_dir(&self) -> io::Result<PathBuf>;
    /// Whether this path is a directory. Symlinks are followed.
    ///
    /// # Errors
    ///
    /// The path does not exist, or this process cannot read it.
    fn is_dir(&self, path: &Path) -> io::Result<bool>;
    /// The addresses of a host name, with this port. Can wait for the network.
    ///
    /// # Errors
    ///
    /// The name is unknown, or the name service does not answer.
    fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>>;
    /// The entry of a user, if there is one.
    ///
    /// # Errors
    ///
    /// The user database cannot be read.
    fn user(&self, key: UserKey<'_>) -> io::Result<Option<User>>;
    /// The id of a group, if there is one of this name.
    ///
    /// # Errors
    ///
    /// The group database cannot be read.
    fn group(&self, name: &str) -> io::Result<Option<u32>>;
    /// Every group of the user of this name, and `gid`.
    ///
    /// # Errors
    ///
    /// The group database cannot be read.
    fn groups_of(&self, user: &str, gid: u32) -> io::Result<Vec<u32>>;
}

/// The host of this process.
#[derive(Debug, Clone, Copy)]
pub(super) struct ThisHost;

impl Host for ThisHost {
    fn var(&self, name: &str) -> Option<OsString> {
        std::env::var_os(name)
    }

    fn cpus(&self) -> u32 {
        cpu_count::of_this_process()
    }

    fn all_cpus(&self) -> u32 {
        cpu_count::of_the_host()
    }

    fn stdin_is_terminal(&self) -> bool {
        // The standard library's would allocate a buffer of 8 KiB, which stays.
        rustix::stdio::stdin().is_terminal()
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
        // The name service may give an address more than once.
        let mut addresses = Vec::new();
        for address in (host, port).to_socket_addrs()? {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        Ok(addresses)
    }

    fn user(&self, key: UserKey<'_>) -> io::Result<Option<User>> {
        user_database::user(key)
    }

    fn group(&self, name: &str) -> io::Result<Option<u32>> {
        user_database::group(name)
    }

    fn groups_of(&self, user: &str, gid: u32) -> io::Result<Vec<u32>> {
        user_database::groups_of(user, gid)
    }
}

/// A host for the tests, the same on every machine.
#[cfg(test)]
pub(super) mod testing {
    use super::*;

    /// 8 of 16 CPUs, `/srv` as the current directory with `/srv/app` in it, a user `deploy`, a group `www-data`.
    #[derive(Debug, Default)]
    pub(in crate::cli) struct TestHost {
        /// The environment.
        pub(in crate::cli) vars: Vec<(String, OsString)>,
        /// Whether the current directory has been removed.
        pub(in crate::cli) removed_dir: bool,
        /// Whether standard input is a terminal.
        pub(in crate::cli) has_terminal: bool,
    }

    impl Host for TestHost {
        fn var(&self, name: &str) -> Option<OsString> {
            self.vars.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
        }

        fn cpus(&self) -> u32 {
            8
        }

        fn all_cpus(&self) -> u32 {
            16
        }

        fn stdin_is_terminal(&self) -> bool {
            self.has_terminal
        }

        fn current_dir(&self) -> io::Result<PathBuf> {
            if self.removed_dir { Err(io::ErrorKind::NotFound.into()) } else { Ok(PathBuf::from("/srv")) }
        }

        fn logical_dir(&self) -> io::Result<PathBuf> {
            match self.var("PWD") {
                Some(path) => Ok(path.into()),
                None => self.current_dir(),
            }
        }

        fn is_dir(&self, path: &Path) -> io::Result<bool> {
            match path.to_str() {
                Some("/srv" | "/srv/app" | "/current/app") => Ok(true),
                Some("/srv/file") => Ok(false),
                _ => Err(io::ErrorKind::NotFound.into()),
            }
        }

        fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
            let six = SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], port));
            match host {
                "localhost" => Ok(vec![six, SocketAddr::from(([127, 0, 0, 1], port))]),
                "six.example" => Ok(vec![six]),
                "empty.example" => Ok(Vec::new()),
                _ => Err(io::Error::other("Name or service not known")),
            }
        }

        fn user(&self, key: UserKey<'_>) -> io::Result<Option<User>> {
            let known = matches!(key, UserKey::Name("deploy") | UserKey::Id(1000));
            Ok(known.then(|| User {
                name: "deploy".to_owned(),
                uid: 1000,
                gid: 1000,
                home: "/home/deploy".to_owned(),
                shell: "/bin/bash".to_owned(),
            }))
        }

        fn group(&self, name: &str) -> io::Result<Option<u32>> {
            Ok((name == "www-data").then_some(33))
        }

        fn groups_of(&self, user: &str, gid: u32) -> io::Result<Vec<u32>> {
            assert_eq!(user, "deploy", "the only user of this host");
            Ok(vec![gid, 27])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_name_has_each_address_once() {
        let addresses = ThisHost.resolve("localhost", 80).expect("the name is known everywhere");
        assert!(!addresses.is_empty());
        for address in &addresses {
            assert!(address.ip().is_loopback() && address.port() == 80, "{address}");
            assert_eq!(addresses.iter().filter(|other| *other == address).count(), 1);
        }
    }
}
