//! The parsers of users, groups and capabilities: `--user`, `--group`, `--socket-owner`, `--ambient`.

use std::io;

use super::arguments::Arguments;
use super::host::Host;
use super::usage_error::{Parsed, Reason, UsageError};
use super::values::{is_digits, within};
use crate::config::{Capabilities, Identity, Login, Owner};
use crate::sys::user_database::{SCOPE, User, UserKey};

/// chown(2) and setresuid(2) take the last number for "unchanged".
const LAST_ID: u32 = u32::MAX - 1;

/// Shells that refuse a login. A program that starts `$SHELL` must not find one of them.
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

/// The user that `--user` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    /// User id.
    pub(super) uid: u32,
    /// The entry in the user database. An id can lack one, which is common in containers.
    pub(super) entry: Option<User>,
}

/// A user by name or id. Digits are always an id, as for systemd: the meaning of a name of digits would depend on the host.
pub(super) fn account(text: &str, host: &dyn Host) -> Parsed<Account> {
    if !is_digits(text) {
        let entry = looked_up(host.user(UserKey::Name(text)))?;
        let entry = entry.ok_or(format!("no such user {SCOPE}; expected the name or the id of a user"))?;
        return Ok(Account { uid: entry.uid, entry: Some(entry) });
    }
    let uid = id(text)?;
    Ok(Account { uid, entry: looked_up(host.user(UserKey::Id(uid)))? })
}

/// The id of a user, by name or id. An id needs no entry in the user database.
pub(super) fn user_id(text: &str, host: &dyn Host) -> Parsed<u32> {
    if is_digits(text) { id(text) } else { account(text, host).map(|account| account.uid) }
}

/// The id of a group, by name or id.
pub(super) fn group_id(text: &str, host: &dyn Host) -> Parsed<u32> {
    if is_digits(text) {
        return id(text);
    }
    looked_up(host.group(text))?
        .ok_or_else(|| format!("no such group {SCOPE}; expected the name or the id of a group").into())
}

/// The user and the groups of the workers, and the login variables of the user. `None`: those of the supervisor.
pub(super) fn workers(
    arguments: &Arguments,
    host: &dyn Host,
) -> Result<(Option<Identity>, Option<Login>), UsageError> {
    let user: Option<Account> = arguments.optional("user");
    let identity = identity(user.as_ref(), arguments.optional("group"), host)
        .map_err(|reason| arguments.misfit("user", &reason))?;
    Ok((identity, user.as_ref().map(login)))
}

/// A user has all of its groups, and `--group` replaces the first. A group without a user leaves the user unchanged and
/// drops every supplementary group, so that no worker keeps those of root.
fn identity(user: Option<&Account>, group: Option<u32>, host: &dyn Host) -> Parsed<Option<Identity>> {
    let Some(Account { uid, entry }) = user else {
        return Ok(group.map(|gid| Identity { uid: None, gid, groups: vec![gid] }));
    };
    let (gid, groups) = match (entry, group) {
        (Some(entry), group) => {
            let gid = group.unwrap_or(entry.gid);
            (gid, looked_up(host.groups_of(&entry.name, gid))?)
        }
        (None, Some(gid)) => (gid, vec![gid]),
        (None, None) => {
            return Err(format!("no entry {SCOPE} names its group; expected --group as well").into());
        }
    };
    Ok(Some(Identity { uid: Some(*uid), gid, groups }))
}

/// The login variables of a user.
///
/// As for systemd's `User=`, an id without an entry has none of them. A home that is `/` or no absolute path, and a shell that
/// refuses logins, are left out.
fn login(account: &Account) -> Login {
    let Some(entry) = &account.entry else {
        return Login::default();
    };
    let absolute = |path: &String| path.starts_with('/').then(|| path.clone());
    Login {
        name: Some(entry.name.clone()),
        home: absolute(&entry.home).filter(|home| !home.trim_end_matches('/').is_empty()),
        shell: absolute(&entry.shell).filter(|shell| !NO_SHELLS.contains(&shell.as_str())),
    }
}

/// `--socket-owner USER[:GROUP]`. The part that is missing stays unchanged.
pub(super) fn owner(text: &str, host: &dyn Host) -> Parsed<Owner> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    if group == Some("") || (user.is_empty() && group.is_none()) {
        return Err("expected USER, USER:GROUP or :GROUP, by name or id".into());
    }
    let uid = if user.is_empty() { None } else { Some(named("user", user, user_id(user, host))?) };
    let gid = group.map(|group| named("group", group, group_id(group, host))).transpose()?;
    Ok(Owner { uid, gid })
}

/// Names the part of the value in the error.
fn named(kind: &str, part: &str, id: Parsed<u32>) -> Parsed<u32> {
    id.map_err(|reason| format!("{kind} {part:?}: {reason}").into())
}

/// One capability of `--ambient CAPS`.
pub(super) fn capability(text: &str) -> Parsed<Capabilities> {
    Capabilities::named(text.trim()).ok_or_else(|| {
        "expected a name of capabilities(7), such as net_bind_service or CAP_NET_BIND_SERVICE".into()
    })
}

fn id(text: &str) -> Parsed<u32> {
    within(text, &(0..=LAST_ID))
        .ok_or_else(|| format!("expected an id from 0 to {LAST_ID}, or a name").into())
}

fn looked_up<T>(answer: io::Result<T>) -> Parsed<T> {
    answer.map_err(|error| {
        Reason::from(format!("cannot be looked up on this host ({error}); expected a numeric id"))
    })
}

#[cfg(test)]
mod tests {
    use super::super::host::testing::TestHost;
    use super::*;

    fn as_user(text: &str, group: Option<u32>) -> Parsed<Option<Identity>> {
        let account = account(text, &TestHost::default()).expect("the user is known");
        identity(Some(&account), group, &TestHost::default())
    }

    #[test]
    fn a_user_has_all_of_its_groups() {
        let deploy = Identity { uid: Some(1000), gid: 1000, groups: vec![1000, 27] };
        assert_eq!(as_user("deploy", None), Ok(Some(deploy.clone())));
        assert_eq!(as_user("1000", None), Ok(Some(deploy)));
    }

    #[test]
    fn a_group_replaces_the_first_of_the_user() {
        let identity = Identity { uid: Some(1000), gid: 33, groups: vec![33, 27] };
        assert_eq!(as_user("deploy", Some(33)), Ok(Some(identity)));
    }

    #[test]
    fn an_id_without_an_entry_needs_a_group() {
        let identity = Identity { uid: Some(4242), gid: 33, groups: vec![33] };
        assert_eq!(as_user("4242", Some(33)), Ok(Some(identity)));
        let error = as_user("4242", None).expect_err("no group is known");
        assert_eq!(error, *format!("no entry {SCOPE} names its group; expected --group as well"));
    }

    #[test]
    fn a_group_alone_drops_all_others() {
        let expected = Identity { uid: None, gid: 33, groups: vec![33] };
        assert_eq!(identity(None, Some(33), &TestHost::default()), Ok(Some(expected)));
        assert_eq!(identity(None, None, &TestHost::default()), Ok(None));
    }

    fn login_of(home: &str, shell: &str) -> Login {
        let entry = User {
            name: "deploy".to_owned(),
            uid: 1000,
            gid: 1000,
            home: home.to_owned(),
            shell: shell.to_owned(),
        };
        login(&Account { uid: 1000, entry: Some(entry) })
    }

    #[test]
    fn a_user_has_a_name_a_home_and_a_shell() {
        let known = login_of("/home/deploy", "/bin/bash");
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(
            known,
            Login { name: text("deploy"), home: text("/home/deploy"), shell: text("/bin/bash") }
        );
    }

    #[test]
    fn an_unusable_home_or_shell_is_left_out() {
        for none in ["", "/", "//", "relative"] {
            assert_eq!(login_of(none, "/bin/sh").home, None, "{none:?}");
        }
        for none in ["", "/usr/sbin/nologin", "/bin/false", "sh"] {
            assert_eq!(login_of("/srv", none).shell, None, "{none:?}");
        }
    }

    #[test]
    fn an_id_without_an_entry_has_none_of_them() {
        assert_eq!(login(&Account { uid: 4242, entry: None }), Login::default());
    }

    #[test]
    fn an_unknown_name_or_invalid_id_is_refused() {
        let host = TestHost::default();
        for garbage in
            ["", " ", "nobody-here", "-1", "1000 ", "0x3e8", "deploy:www-data", "4294967295", "99999999999"]
        {
            assert!(account(garbage, &host).is_err(), "{garbage:?}");
            assert!(user_id(garbage, &host).is_err(), "{garbage:?}");
            assert!(group_id(garbage, &host).is_err(), "{garbage:?}");
        }
    }

    #[test]
    fn an_id_needs_no_entry_for_an_owner_or_a_group() {
        let host = TestHost::default();
        assert_eq!(user_id("4242", &host), Ok(4242));
        assert_eq!(group_id("4242", &host), Ok(4242));
        assert_eq!(user_id("deploy", &host), Ok(1000));
        assert_eq!(group_id("www-data", &host), Ok(33));
    }

    fn owner(text: &str) -> Parsed<Owner> {
        super::owner(text, &TestHost::default())
    }

    #[test]
    fn an_owner_has_a_user_or_a_group_or_both() {
        assert_eq!(owner("deploy"), Ok(Owner { uid: Some(1000), gid: None }));
        assert_eq!(owner("deploy:www-data"), Ok(Owner { uid: Some(1000), gid: Some(33) }));
        assert_eq!(owner(":www-data"), Ok(Owner { uid: None, gid: Some(33) }));
        assert_eq!(owner("0:4242"), Ok(Owner { uid: Some(0), gid: Some(4242) }));
    }

    #[test]
    fn an_owner_without_a_part_shows_the_form() {
        for garbage in ["", ":", "deploy:"] {
            assert!(
                owner(garbage).expect_err(garbage).contains("expected USER, USER:GROUP or :GROUP"),
                "{garbage}"
            );
        }
    }

    #[test]
    fn the_unknown_part_of_an_owner_is_named() {
        let reason = owner("deploy:nope").expect_err("no such group");
        assert_eq!(
            reason,
            *format!(r#"group "nope": no such group {SCOPE}; expected the name or the id of a group"#)
        );
        let reason = owner("nope:www-data").expect_err("no such user");
        assert!(reason.starts_with(r#"user "nope": no such user"#), "{reason}");
        assert!(owner("deploy:www-data:x").is_err());
        assert!(owner("-1").is_err());
    }
}
