//! The host's name service, asked through getent(1).
//!
//! Not through the C library: its answers come from modules of `/etc/nsswitch.conf`, shared libraries that a
//! program without a dynamic loader cannot load without crashing. Where there is no `getent`, as in a small
//! container image, there are no such modules either, and the files say all that there is to know.

use std::io;
use std::process::{Command, Stdio};

/// getent's exit code for "no such entry".
const NOT_FOUND: i32 = 2;

/// The lines of `database` about `key`: none where it has no such entry.
///
/// # Errors
/// Nobody could be asked, or the answer failed.
pub(super) fn lines(database: &str, key: &str) -> io::Result<Vec<String>> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
