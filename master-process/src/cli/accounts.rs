//! The host's users and groups, as its name service knows them.

use std::ffi::CString;
use std::io;

use nix::errno::Errno;
use nix::unistd::{self, Gid, Group, Uid};

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
}

/// A user's entry.
pub(super) fn user(key: UserKey<'_>) -> io::Result<Option<User>> {
    let found = match key {
        UserKey::Name(name) => unistd::User::from_name(name),
        UserKey::Id(id) => unistd::User::from_uid(Uid::from_raw(id)),
    };
    let entry = known(found)?;
    Ok(entry.map(|user| User {
        name: user.name,
        uid: user.uid.as_raw(),
        gid: user.gid.as_raw(),
    }))
}

/// A group's id.
pub(super) fn group(name: &str) -> io::Result<Option<u32>> {
    Ok(known(Group::from_name(name))?.map(|group| group.gid.as_raw()))
}

/// The groups of a user, `gid` among them.
pub(super) fn groups_of(user: &str, gid: u32) -> io::Result<Vec<u32>> {
    let user = CString::new(user)?;
    let groups = unistd::getgrouplist(&user, Gid::from_raw(gid))?;
    Ok(groups.into_iter().map(Gid::as_raw).collect())
}

/// An image without /etc/passwd has no users, which is no failure. getpwnam(3) lists these as ways to say so.
fn known<T>(found: Result<Option<T>, Errno>) -> io::Result<Option<T>> {
    match found {
        Err(Errno::ENOENT | Errno::ESRCH | Errno::EBADF | Errno::EPERM) => Ok(None),
        answer => answer.map_err(io::Error::from),
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
    fn nobody_has_this_name() {
        assert_eq!(user(UserKey::Name("no-such-user-here")).expect("readable"), None);
        assert_eq!(group("no-such-group-here").expect("readable"), None);
    }

    #[test]
    fn the_groups_of_a_user_include_the_first_one() {
        assert!(groups_of("root", 4242).expect("readable").contains(&4242));
    }

    #[test]
    fn a_missing_database_holds_nobody() {
        assert_eq!(known::<()>(Err(Errno::ENOENT)).expect("no failure"), None);
        assert!(known::<()>(Err(Errno::EIO)).is_err());
    }
}
