//! The host's users and groups, as its name service knows them.

use std::io;

use super::name_service;

/// How a user is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UserKey<'a> {
    /// By name.
    Name(&'a str),
    /// By id.
    Id(u32),
}

/// A user's entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// The user's first group.
    pub gid: u32,
    /// Home directory; may be empty.
    pub home: String,
    /// Login shell; may be empty.
    pub shell: String,
}

/// A user's entry.
pub(super) fn user(key: UserKey<'_>) -> io::Result<Option<User>> {
    let lines = match key {
        UserKey::Name(name) => name_service::lines("passwd", name)?,
        UserKey::Id(id) => name_service::lines("passwd", &id.to_string())?,
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
pub(super) fn group(name: &str) -> io::Result<Option<u32>> {
    let lines = name_service::lines("group", name)?;
    Ok(lines.iter().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then_some(())?;
        fields.nth(1)?.parse().ok()
    }))
}

/// The groups of a user, `gid` among them.
pub(super) fn groups_of(user: &str, gid: u32) -> io::Result<Vec<u32>> {
    let lines = name_service::lines("initgroups", user)?;
    // The user's name comes first, and is no number of a group whatever it looks like.
    let listed = lines.iter().flat_map(|line| line.split_whitespace().skip(1));
    let mut groups = vec![gid];
    groups.extend(listed.filter_map(|id| id.parse::<u32>().ok()).filter(|id| *id != gid));
    Ok(groups)
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
}
