//! What reading the command line asks of the host. Tests answer with a host of their own.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::cpu_count;
use crate::sys::working_directory;

/// The host's answers.
pub(super) trait Host: Sync {
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
        working_directory::logical(self.var("PWD").as_deref())
    }

    fn is_dir(&self, path: &Path) -> io::Result<bool> {
        std::fs::metadata(path).map(|found| found.is_dir())
    }

    fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let lines = lines("ahosts", host)?;
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
        user(key)
    }

    fn group(&self, name: &str) -> io::Result<Option<u32>> {
        group(name)
    }

    fn groups_of(&self, user: &str, gid: u32) -> io::Result<Vec<u32>> {
        groups_of(user, gid)
    }
}

/// How a user is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UserKey<'a> {
    /// By name.
    Name(&'a str),
    /// By id.
    Id(u32),
}

/// A user's entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct User {
    /// Login name.
    pub(super) name: String,
    /// User id.
    pub(super) uid: u32,
    /// The user's first group.
    pub(super) gid: u32,
    /// Home directory; may be empty.
    pub(super) home: String,
    /// Login shell; may be empty.
    pub(super) shell: String,
}

/// A user's entry.
fn user(key: UserKey<'_>) -> io::Result<Option<User>> {
    let lines = match key {
        UserKey::Name(name) => lines("passwd", name)?,
        UserKey::Id(id) => lines("passwd", &id.to_string())?,
    };
    let entries = lines.iter().filter_map(|line| entry(line));
    // getent takes a name of digits for an id; an entry that was found by the other is not meant.
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

/// A group's id.
fn group(name: &str) -> io::Result<Option<u32>> {
    let lines = lines("group", name)?;
    Ok(lines.iter().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then_some(())?;
        fields.nth(1)?.parse().ok()
    }))
}

/// The groups of a user, `gid` among them.
fn groups_of(user: &str, gid: u32) -> io::Result<Vec<u32>> {
    let lines = lines("initgroups", user)?;
    // The user's name comes first, and is no number of a group whatever it looks like.
    let listed = lines.iter().flat_map(|line| line.split_whitespace().skip(1));
    let mut groups = vec![gid];
    groups.extend(listed.filter_map(|id| id.parse::<u32>().ok()).filter(|id| *id != gid));
    Ok(groups)
}

/// getent's exit code for "no such entry".
const NOT_FOUND: i32 = 2;

/// The lines of `database` about `key`: none where it has no such entry.
///
/// # Errors
/// Nobody could be asked, or the answer failed.
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

/// The same, from `/etc`.
fn lines_of_file(database: &str, key: &str) -> io::Result<Vec<String>> {
    let (file, choose): (_, fn(&str, &str) -> Option<String>) = match database {
        "passwd" => ("/etc/passwd", entry_of),
        "group" => ("/etc/group", entry_of),
        "initgroups" => return groups_of_file(key),
        "ahosts" => ("/etc/hosts", address_of),
        other => return Err(io::Error::other(format!("there is no getent to ask for {other}"))),
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

/// As `getent initgroups` prints it: the user's name and the groups that list it.
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

/// An image without the file has no entries, which is no failure.
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
            assert_eq!(user, "deploy", "nobody else has groups here");
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
    fn an_entry_names_home_and_shell() {
        let user = entry("deploy:x:1000:1001:Deploy,,,:/home/deploy:/bin/bash").expect("an entry");
        assert_eq!((user.uid, user.gid), (1000, 1001));
        assert_eq!((user.home.as_str(), user.shell.as_str()), ("/home/deploy", "/bin/bash"));
        let short = entry("deploy:x:1000:1001").expect("what decides is there");
        assert_eq!((short.home.as_str(), short.shell.as_str()), ("", ""));
    }

    #[test]
    fn nobody_has_this_name() {
        assert_eq!(user(UserKey::Name("no-such-user-here")).expect("readable"), None);
        assert_eq!(group("no-such-group-here").expect("readable"), None);
    }

    #[test]
    fn the_groups_of_a_user_include_the_first_one() {
        assert!(groups_of("root", 4242).expect("readable").contains(&4242));
    }

    #[test]
    fn getent_and_the_files_say_the_same_of_root() {
        for (database, key) in [("passwd", "root"), ("passwd", "0"), ("group", "root")] {
            let asked = lines(database, key).expect("somebody answers");
            assert_eq!(asked, lines_of_file(database, key).expect("readable"), "{database} {key}");
            assert_eq!(asked.len(), 1);
        }
    }

    #[test]
    fn who_is_not_there_is_nobody() {
        for database in ["passwd", "group"] {
            assert!(lines(database, "no-such-entry").expect("somebody answers").is_empty());
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
