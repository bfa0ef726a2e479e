//! Who somebody is: `--user`, `--group`, and the two halves of `--socket-owner`.

use std::io;

use super::accounts::{User, UserKey};
use super::count;
use super::env::Env;
use super::error::{Parsed, Reason, UsageError};
use super::resolver::Resolved;
use crate::config::{Identity, Login};

/// chown(2) and setresuid(2) take the last number for "unchanged".
const LAST_ID: u32 = u32::MAX - 1;

/// Shells that let nobody in: a program that starts `$SHELL` must not find one of them.
const NO_SHELLS: [&str; 8] = [
    "/bin/false",
    "/bin/nologin",
    "/bin/true",
    "/sbin/nologin",
    "/usr/bin/false",
    "/usr/bin/nologin",
    "/usr/bin/true",
    "/usr/sbin/nologin",
];

/// A user that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    /// User id.
    pub(super) uid: u32,
    /// The user's entry; an id may be without one, as is common in containers.
    pub(super) entry: Option<User>,
}

/// A user by name or id. Digits are always an id, as with systemd: a name of digits would change its meaning
/// with the host.
pub(super) fn user(text: &str, env: &dyn Env) -> Parsed<Account> {
    if !count::is_digits(text) {
        let entry = looked_up(env.user(UserKey::Name(text)))?;
        let entry = entry.ok_or("is not a user of this host; give a user's name or id")?;
        return Ok(Account { uid: entry.uid, entry: Some(entry) });
    }
    let uid = id(text)?;
    Ok(Account { uid, entry: looked_up(env.user(UserKey::Id(uid)))? })
}

/// A user's id by name or id; an id needs no entry.
pub(super) fn user_id(text: &str, env: &dyn Env) -> Parsed<u32> {
    if count::is_digits(text) { id(text) } else { user(text, env).map(|account| account.uid) }
}

/// A group's id by name or id.
pub(super) fn group_id(text: &str, env: &dyn Env) -> Parsed<u32> {
    if count::is_digits(text) {
        return id(text);
    }
    looked_up(env.group(text))?.ok_or("is not a group of this host; give a group's name or id".into())
}

/// Who the workers run as; `None`: as the supervisor does.
///
/// A user brings all of its groups, its first one replaced by `--group`. A group without a user leaves the user as
/// it is and drops every supplementary group, so that no worker keeps those of root.
pub(super) fn workers(
    user: Option<Resolved<Account>>,
    group: Option<Resolved<u32>>,
    env: &dyn Env,
) -> Result<Option<Identity>, UsageError> {
    let group = group.map(|group| group.value);
    let Some(user) = user else {
        return Ok(group.map(|gid| Identity { uid: None, gid, groups: vec![gid] }));
    };
    let uid = Some(user.value.uid);
    match (&user.value.entry, group) {
        (Some(entry), group) => {
            let gid = group.unwrap_or(entry.gid);
            let groups = looked_up(env.groups_of(&entry.name, gid)).map_err(|reason| user.misfit(&reason))?;
            Ok(Some(Identity { uid, gid, groups }))
        }
        (None, Some(gid)) => Ok(Some(Identity { uid, gid, groups: vec![gid] })),
        (None, None) => Err(user.misfit("has no entry on this host that names its group; give --group too")),
    }
}

/// What the workers find as their user's variables; `None`: no user was asked for.
///
/// As with systemd's `User=`: an id without an entry has none of them, a home that is no directory of the user's own
/// and a shell that lets nobody in are left out.
pub(super) fn login(user: Option<&Resolved<Account>>) -> Option<Login> {
    let Some(entry) = &user?.value.entry else {
        return Some(Login::default());
    };
    let absolute = |path: &String| path.starts_with('/').then(|| path.clone());
    Some(Login {
        name: Some(entry.name.clone()),
        home: absolute(&entry.home).filter(|home| !home.trim_end_matches('/').is_empty()),
        shell: absolute(&entry.shell).filter(|shell| !NO_SHELLS.contains(&shell.as_str())),
    })
}

fn id(text: &str) -> Parsed<u32> {
    count::within(text, &(0..=LAST_ID))
        .ok_or_else(|| format!("is not an id; give 0 to {LAST_ID}, or a name").into())
}

fn looked_up<T>(answer: io::Result<T>) -> Parsed<T> {
    answer.map_err(|error| {
        Reason::from(format!("cannot be looked up on this host ({error}); give a numeric id"))
    })
}

#[cfg(test)]
mod tests {
    use super::super::resolver::Source;
    use super::super::testing::Host;
    use super::*;

    fn given<T>(value: T) -> Option<Resolved<T>> {
        Some(Resolved { value, source: Source::Flag("user"), text: "4242".to_owned() })
    }

    fn as_user(text: &str, group: Option<u32>) -> Result<Option<Identity>, UsageError> {
        let account = user(text, &Host::default()).expect("the user is known");
        workers(given(account), group.and_then(given), &Host::default())
    }

    #[test]
    fn a_user_brings_its_groups() {
        let deploy = Identity { uid: Some(1000), gid: 1000, groups: vec![1000, 27] };
        assert_eq!(as_user("deploy", None), Ok(Some(deploy.clone())));
        assert_eq!(as_user("1000", None), Ok(Some(deploy)));
    }

    #[test]
    fn a_group_replaces_the_users_first() {
        let identity = Identity { uid: Some(1000), gid: 33, groups: vec![33, 27] };
        assert_eq!(as_user("deploy", Some(33)), Ok(Some(identity)));
    }

    #[test]
    fn an_id_without_an_entry_needs_a_group() {
        let identity = Identity { uid: Some(4242), gid: 33, groups: vec![33] };
        assert_eq!(as_user("4242", Some(33)), Ok(Some(identity)));
        let error = as_user("4242", None).expect_err("no group is known");
        assert_eq!(
            error.to_string(),
            r#"--user: "4242" has no entry on this host that names its group; give --group too"#
        );
    }

    #[test]
    fn a_group_alone_drops_all_others() {
        let identity = Identity { uid: None, gid: 33, groups: vec![33] };
        assert_eq!(workers(None, given(33), &Host::default()), Ok(Some(identity)));
        assert_eq!(workers(None, None, &Host::default()), Ok(None));
    }

    fn login_of(home: &str, shell: &str) -> Login {
        let entry = User {
            name: "deploy".to_owned(),
            uid: 1000,
            gid: 1000,
            home: home.to_owned(),
            shell: shell.to_owned(),
        };
        login(given(Account { uid: 1000, entry: Some(entry) }).as_ref()).expect("a user was asked for")
    }

    #[test]
    fn a_user_brings_its_name_home_and_shell() {
        let known = login_of("/home/deploy", "/bin/bash");
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(
            known,
            Login { name: text("deploy"), home: text("/home/deploy"), shell: text("/bin/bash") }
        );
        assert_eq!(login(None), None, "without a user nothing changes");
    }

    #[test]
    fn what_is_no_home_or_shell_is_left_out() {
        for none in ["", "/", "//", "relative"] {
            assert_eq!(login_of(none, "/bin/sh").home, None, "{none:?}");
        }
        for none in ["", "/usr/sbin/nologin", "/bin/false", "sh"] {
            assert_eq!(login_of("/srv", none).shell, None, "{none:?}");
        }
    }

    #[test]
    fn an_id_without_an_entry_has_none_of_them() {
        let account = given(Account { uid: 4242, entry: None });
        assert_eq!(login(account.as_ref()), Some(Login::default()));
    }

    #[test]
    fn garbage_is_nobody() {
        let host = Host::default();
        for garbage in
            ["", " ", "nobody-here", "-1", "1000 ", "0x3e8", "deploy:www-data", "4294967295", "99999999999"]
        {
            assert!(user(garbage, &host).is_err(), "{garbage:?}");
            assert!(user_id(garbage, &host).is_err(), "{garbage:?}");
            assert!(group_id(garbage, &host).is_err(), "{garbage:?}");
        }
    }

    #[test]
    fn ids_need_no_entry_where_only_the_id_counts() {
        let host = Host::default();
        assert_eq!(user_id("4242", &host), Ok(4242));
        assert_eq!(group_id("4242", &host), Ok(4242));
        assert_eq!(user_id("deploy", &host), Ok(1000));
        assert_eq!(group_id("www-data", &host), Ok(33));
    }
}
