//! The host, as far as the values need it: variables, directories, CPUs, and the name service. Tests have a host of their
//! own.
//!
//! Users, groups and host names come from getent(1), not from the C library. The C library loads the modules of
//! `/etc/nsswitch.conf`, which crash a statically linked program. A host without `getent`, such as a small container image,
//! has no such modules, and its files hold every entry.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::cpu_count;
use crate::sys::path_lookup;

/// A host.
pub(super) trait Host: Sync {
    /// The variable of this name.
    fn var(&self, name: &str) -> Option<OsString>;
    /// The CPUs that this process may use, at least 1.
    fn cpus(&self) -> u32;
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
        let lines = lines("ahosts", host)?;
        // getent prints each address once for each type of socket.
        let mut addresses = Vec::new();
        for line in &lines {
            let address = line.split_whitespace().next().and_then(|word| word.parse::<IpAddr>().ok());
            let address = address.map(|ip| SocketAddr::new(ip, port));
            addresses.extend(address.filter(|address| !addresses.contains(address)));
        }
        Ok(addresses)
    }

    fn user(&self, key: UserKey<'_>) -> io::Result<Option<User>> {
        user(key)
    }

    fn group(&self, name: &str) -> io::Result<Option<u32>> {
        group(name)
    }

    fn groups_of(&self, user: &str, gid: u32) -> io::Result<Vec<u32>> {
        groups_of(user, gid)
    }
}

/// The key of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UserKey<'a> {
    /// By name.
    Name(&'a str),
    /// By id.
    Id(u32),
}

/// An entry of the user database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct User {
    /// Login name.
    pub(super) name: String,
    /// User id.
    pub(super) uid: u32,
    /// The id of the first group.
    pub(super) gid: u32,
    /// Home directory, or empty.
    pub(super) home: String,
    /// Login shell, or empty.
    pub(super) shell: String,
}

/// The entry of a user.
fn user(key: UserKey<'_>) -> io::Result<Option<User>> {
    let lines = match key {
        UserKey::Name(name) => lines("passwd", name)?,
        UserKey::Id(id) => lines("passwd", &id.to_string())?,
    };
    let entries = lines.iter().filter_map(|line| entry(line));
    // getent reads a name of digits as an id as well: an entry with another name is not the one.
    Ok(entries.into_iter().find(|user| match key {
        UserKey::Name(name) => user.name == name,
        UserKey::Id(id) => user.uid == id,
    }))
}

/// A line of passwd(5).
fn entry(line: &str) -> Option<User> {
    let mut fields = line.split(':');
    let (name, _password) = (fields.next()?.to_owned(), fields.next()?);
    let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let (_comment, home, shell) = (fields.next(), fields.next(), fields.next());
    Some(User {
        name,
        uid,
        gid,
        home: home.unwrap_or_default().to_owned(),
        shell: shell.unwrap_or_default().to_owned(),
    })
}

/// The id of a group.
fn group(name: &str) -> io::Result<Option<u32>> {
    let lines = lines("group", name)?;
    Ok(lines.iter().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then_some(())?;
        fields.nth(1)?.parse().ok()
    }))
}

/// The groups of a user, `gid` included.
fn groups_of(user: &str, gid: u32) -> io::Result<Vec<u32>> {
    let lines = lines("initgroups", user)?;
    // The first word is the name of the user, even if it is a number.
    let listed = lines.iter().flat_map(|line| line.split_whitespace().skip(1));
    let mut groups = vec![gid];
    groups.extend(listed.filter_map(|id| id.parse::<u32>().ok()).filter(|id| *id != gid));
    Ok(groups)
}

/// getent's exit code for "no such entry".
const NOT_FOUND: i32 = 2;

/// The lines of `database` about `key`. None if it has no such entry.
fn lines(database: &str, key: &str) -> io::Result<Vec<String>> {
    let output = Command::new("getent").args([database, "--", key]).stdin(Stdio::null()).output();
    match output {
        Err(error) if error.kind() == io::ErrorKind::NotFound => lines_of_file(database, key),
        Err(error) => Err(error),
        Ok(output) if output.status.code() == Some(NOT_FOUND) => Ok(Vec::new()),
        Ok(output) if output.status.success() => {
            Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
        }
        Ok(output) => Err(io::Error::other(format!("getent {database} ended with {}", output.status))),
    }
}

/// The lines of a host without getent, from the files in `/etc`.
fn lines_of_file(database: &str, key: &str) -> io::Result<Vec<String>> {
    let (file, choose): (_, fn(&str, &str) -> Option<String>) = match database {
        "passwd" => ("/etc/passwd", entry_of),
        "group" => ("/etc/group", entry_of),
        "initgroups" => return groups_of_file(key),
        "ahosts" => ("/etc/hosts", address_of),
        other => return Err(io::Error::other(format!("{other} cannot be read without getent"))),
    };
    Ok(read(file)?.lines().filter_map(|line| choose(line, key)).collect())
}

/// A line of `passwd` or `group` whose name or id is `key`: passwd(5), group(5).
fn entry_of(line: &str, key: &str) -> Option<String> {
    let mut fields = line.split(':');
    let (name, _password, id) = (fields.next()?, fields.next()?, fields.next()?);
    (name == key || id == key).then(|| line.to_owned())
}

/// The address in a line of `hosts` that names `key`: hosts(5).
fn address_of(line: &str, key: &str) -> Option<String> {
    let line = line.split('#').next()?;
    let (address, names) = line.trim().split_once(char::is_whitespace)?;
    names.split_whitespace().any(|name| name.eq_ignore_ascii_case(key)).then(|| address.to_owned())
}

/// The name of the user and the groups that list it, as `getent initgroups` prints them.
fn groups_of_file(user: &str) -> io::Result<Vec<String>> {
    let groups = read("/etc/group")?;
    let ids = groups.lines().filter_map(|line| {
        let fields = line.split(':').collect::<Vec<_>>();
        let [_name, _password, id, members] = fields[..] else {
            return None;
        };
        members.split(',').any(|member| member == user).then(|| id.to_owned())
    });
    Ok(vec![[user.to_owned()].into_iter().chain(ids).collect::<Vec<_>>().join(" ")])
}

/// The file, or nothing: a container image can lack it.
fn read(file: &str) -> io::Result<String> {
    match std::fs::read_to_string(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        result => result,
    }
}

/// A host for the tests, the same on every machine.
#[cfg(test)]
pub(super) mod testing {
    use super::*;

    /// 8 CPUs, `/srv` as the current directory with `/srv/app` in it, a user `deploy`, a group `www-data`.
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
    fn root_is_known_by_name_and_by_id() {
        let by_name = user(UserKey::Name("root")).expect("the database can be read");
        let by_id = user(UserKey::Id(0)).expect("the database can be read");
        assert_eq!(by_name, by_id);
        assert_eq!(by_name.map(|user| (user.uid, user.gid)), Some((0, 0)));
    }

    #[test]
    fn an_entry_has_a_home_and_a_shell() {
        let user = entry("deploy:x:1000:1001:Deploy,,,:/home/deploy:/bin/bash").expect("an entry");
        assert_eq!((user.uid, user.gid), (1000, 1001));
        assert_eq!((user.home.as_str(), user.shell.as_str()), ("/home/deploy", "/bin/bash"));
        let short = entry("deploy:x:1000:1001").expect("the ids are there");
        assert_eq!((short.home.as_str(), short.shell.as_str()), ("", ""));
    }

    #[test]
    fn an_unknown_name_has_no_entry() {
        assert_eq!(user(UserKey::Name("no-such-user-here")).expect("readable"), None);
        assert_eq!(group("no-such-group-here").expect("readable"), None);
    }

    #[test]
    fn the_groups_of_a_user_include_the_first_one() {
        assert!(groups_of("root", 4242).expect("readable").contains(&4242));
    }

    #[test]
    fn getent_and_the_files_agree_about_root() {
        for (database, key) in [("passwd", "root"), ("passwd", "0"), ("group", "root")] {
            let answered = lines(database, key).expect("the name service answers");
            assert_eq!(answered, lines_of_file(database, key).expect("readable"), "{database} {key}");
            assert_eq!(answered.len(), 1);
        }
    }

    #[test]
    fn an_unknown_key_has_no_lines() {
        for database in ["passwd", "group"] {
            assert!(lines(database, "no-such-entry").expect("the name service answers").is_empty());
            assert!(lines_of_file(database, "no-such-entry").expect("readable").is_empty());
        }
    }

    #[test]
    fn a_line_of_hosts_names_an_address() {
        assert_eq!(address_of("127.0.0.1\tlocalhost me # x", "ME").as_deref(), Some("127.0.0.1"));
        assert_eq!(address_of("# 127.0.0.1 localhost", "localhost"), None);
        assert_eq!(address_of("127.0.0.1 localhost.example", "localhost"), None);
    }
}
