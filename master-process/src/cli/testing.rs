//! A host for the tests, the same on every machine.

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::accounts::{User, UserKey};
use super::env::Env;

/// 8 CPUs, `/srv` as the current directory with `/srv/app` in it, a user `deploy`, a group `www-data`.
#[derive(Debug, Default)]
pub(super) struct Host {
    /// The environment.
    pub(super) vars: Vec<(String, OsString)>,
    /// Whether the current directory has been removed.
    pub(super) removed_dir: bool,
    /// Whether standard input is a terminal.
    pub(super) has_terminal: bool,
}

impl Env for Host {
    fn var(&self, name: &str) -> Option<OsString> {
        self.vars.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
    }

    fn cpus(&self) -> u32 {
        8
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
        assert_eq!(user, "deploy", "nobody else has groups here");
        Ok(vec![gid, 27])
    }
}
