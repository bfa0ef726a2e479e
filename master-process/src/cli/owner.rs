//! `--socket-owner USER[:GROUP]`.

use super::env::Env;
use super::error::Parsed;
use super::identity;
use crate::config::Owner;

/// The owner; the half that is not named stays as it is.
pub(super) fn parse(text: &str, env: &dyn Env) -> Parsed<Owner> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    if group == Some("") || (user.is_empty() && group.is_none()) {
        return Err("is not an owner; give USER, USER:GROUP or :GROUP, by name or id".into());
    }
    let uid = if user.is_empty() { None } else { Some(named(user, identity::user_id(user, env))?) };
    let gid = group.map(|group| named(group, identity::group_id(group, env))).transpose()?;
    Ok(Owner { uid, gid })
}

/// The error is about a part of the value: say which.
fn named(part: &str, id: Parsed<u32>) -> Parsed<u32> {
    id.map_err(|reason| format!("names {part:?}, which {reason}").into())
}

#[cfg(test)]
mod tests {
    use super::super::testing::Host;
    use super::*;

    fn owner(text: &str) -> Parsed<Owner> {
        parse(text, &Host::default())
    }

    #[test]
    fn either_half_or_both_by_name_or_id() {
        assert_eq!(owner("deploy"), Ok(Owner { uid: Some(1000), gid: None }));
        assert_eq!(owner("deploy:www-data"), Ok(Owner { uid: Some(1000), gid: Some(33) }));
        assert_eq!(owner(":www-data"), Ok(Owner { uid: None, gid: Some(33) }));
        assert_eq!(owner("0:4242"), Ok(Owner { uid: Some(0), gid: Some(4242) }));
    }

    #[test]
    fn garbage_is_told_the_form() {
        for garbage in ["", ":", "deploy:"] {
            assert!(
                owner(garbage).expect_err(garbage).contains("give USER, USER:GROUP or :GROUP"),
                "{garbage}"
            );
        }
    }

    #[test]
    fn the_unknown_half_is_named() {
        let reason = owner("deploy:nope").expect_err("no such group");
        assert_eq!(reason, r#"names "nope", which is not a group of this host; give a group's name or id"#);
        let reason = owner("nope:www-data").expect_err("no such user");
        assert!(reason.starts_with(r#"names "nope", which is not a user"#), "{reason}");
        assert!(owner("deploy:www-data:x").is_err());
        assert!(owner("-1").is_err());
    }
}
