//! The users and groups of the host, from the C library: getpwnam_r(3), getgrnam_r(3), getgrouplist(3).
//!
//! The GNU C library asks every source that `nsswitch.conf` names, such as LDAP, SSSD or systemd, so a call can wait for the
//! network: these functions are for the start of the supervisor and not for its loop. musl, which the static binaries
//! contain, reads `/etc/passwd` and `/etc/group` only; see [`SCOPE`].

use std::ffi::{CStr, CString, c_char};
use std::io;
use std::mem::MaybeUninit;
use std::ptr;

/// Where entries are looked for, as messages say it.
pub const SCOPE: &str = if cfg!(target_env = "musl") {
    "in /etc/passwd and /etc/group (this static build reads no other source, such as LDAP or SSSD)"
} else {
    "on this host"
};

/// The buffer of the first call. Entries are a few hundred bytes long, except those of groups with many members.
const FIRST_BUFFER: usize = 1024;

/// The largest buffer that is tried: the members of a group of tens of thousands fit.
const LARGEST_BUFFER: usize = 4 << 20;

/// The most groups that a process can have: the kernel's `NGROUPS_MAX`.
const MAX_GROUPS: usize = 65_536;

/// The key of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UserKey<'a> {
    /// By name.
    Name(&'a str),
    /// By id.
    Id(u32),
}

/// An entry of the user database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// The id of the first group.
    pub gid: u32,
    /// Home directory, or empty.
    pub home: String,
    /// Login shell, or empty.
    pub shell: String,
}

/// The entry of a user, if there is one.
///
/// # Errors
/// A source of users does not answer, or a file cannot be read.
pub fn user(key: UserKey<'_>) -> io::Result<Option<User>> {
    let convert = |entry: &libc::passwd| User {
        name: text(entry.pw_name),
        uid: entry.pw_uid,
        gid: entry.pw_gid,
        home: text(entry.pw_dir),
        shell: text(entry.pw_shell),
    };
    match key {
        UserKey::Name(name) => {
            // A name with a NUL in it names no user.
            let Ok(name) = CString::new(name) else { return Ok(None) };
            look_up(FIRST_BUFFER, convert, |entry, buffer, size, found| {
                // SAFETY: see `look_up`; the name is a C string.
                unsafe { libc::getpwnam_r(name.as_ptr(), entry, buffer, size, found) }
            })
        }
        UserKey::Id(uid) => look_up(FIRST_BUFFER, convert, |entry, buffer, size, found| {
            // SAFETY: see `look_up`.
            unsafe { libc::getpwuid_r(uid, entry, buffer, size, found) }
        }),
    }
}

/// The id of the group of this name, if there is one.
///
/// # Errors
/// As for [`user`].
pub fn group(name: &str) -> io::Result<Option<u32>> {
    group_with_buffer(FIRST_BUFFER, name)
}

fn group_with_buffer(first: usize, name: &str) -> io::Result<Option<u32>> {
    let Ok(name) = CString::new(name) else { return Ok(None) };
    let convert = |entry: &libc::group| entry.gr_gid;
    look_up(first, convert, |entry, buffer, size, found| {
        // SAFETY: see `look_up`; the name is a C string.
        unsafe { libc::getgrnam_r(name.as_ptr(), entry, buffer, size, found) }
    })
}

/// Every group of the user of this name, `gid` first.
///
/// # Errors
/// The groups cannot be read, or they are more than a process can have.
pub fn groups_of(user: &str, gid: u32) -> io::Result<Vec<u32>> {
    groups_with_buffer(64, user, gid)
}

fn groups_with_buffer(first: usize, user: &str, gid: u32) -> io::Result<Vec<u32>> {
    let user = CString::new(user)?;
    let mut groups = vec![0; first];
    loop {
        let mut count = i32::try_from(groups.len()).unwrap_or(i32::MAX);
        // SAFETY: the name is a C string, and `groups` has room for `count` numbers.
        let result = unsafe { libc::getgrouplist(user.as_ptr(), gid, groups.as_mut_ptr(), &raw mut count) };
        let count = usize::try_from(count).unwrap_or_default();
        if result >= 0 {
            groups.truncate(count);
            let (mut ordered, others) = (vec![gid], groups.into_iter().filter(|group| *group != gid));
            ordered.extend(others);
            return Ok(ordered);
        }
        // musl returns -1 for an error as well, and then the count is not above the room.
        if groups.len() >= MAX_GROUPS {
            return Err(io::Error::last_os_error());
        }
        groups.resize(count.max(2 * groups.len()).min(MAX_GROUPS), 0);
    }
}

/// Calls one of the reentrant functions, with a buffer that grows until the entry fits.
///
/// `call` gets four pointers as getpwnam_r(3) takes them: to the entry, to the buffer, its size, and to the result.
/// All of them are valid for writes during the call.
fn look_up<Entry, T>(
    first: usize,
    convert: impl Fn(&Entry) -> T,
    call: impl Fn(*mut Entry, *mut c_char, usize, *mut *mut Entry) -> i32,
) -> io::Result<Option<T>> {
    let mut buffer = vec![0; first];
    loop {
        let mut entry = MaybeUninit::<Entry>::uninit();
        let mut found = ptr::null_mut();
        match call(entry.as_mut_ptr(), buffer.as_mut_ptr(), buffer.len(), &raw mut found) {
            // SAFETY: the call succeeded, so a result that is not null points to `entry`, which it has filled. Its
            // strings are in `buffer`, or static.
            0 => return Ok(unsafe { found.as_ref() }.map(convert)),
            libc::ERANGE if buffer.len() < LARGEST_BUFFER => buffer.resize(2 * buffer.len(), 0),
            libc::EINTR => {}
            // Some sources say so that they have no such entry, and a container image can lack the file.
            libc::ENOENT | libc::ESRCH => return Ok(None),
            error => return Err(io::Error::from_raw_os_error(error)),
        }
    }
}

/// A field of an entry.
fn text(field: *const c_char) -> String {
    if field.is_null() {
        return String::new();
    }
    // SAFETY: fields that are not null are C strings in the buffer of the call, which outlives this function.
    unsafe { CStr::from_ptr(field) }.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_known_by_name_and_by_id() {
        let root = user(UserKey::Name("root")).expect("the database can be read").expect("root has an entry");
        assert_eq!(user(UserKey::Id(0)).expect("the database can be read"), Some(root.clone()));
        assert_eq!((root.name.as_str(), root.uid, root.gid), ("root", 0, 0));
        assert!(root.home.starts_with('/') && root.shell.starts_with('/'), "{root:?}");
        assert_eq!(group("root").expect("the database can be read"), Some(0));
    }

    #[test]
    fn an_unknown_name_or_id_has_no_entry() {
        for name in ["no-such-name-here", "", "ro\0ot", "root:x", "0"] {
            assert_eq!(user(UserKey::Name(name)).expect("readable"), None, "{name:?}");
            assert_eq!(group(name).expect("readable"), None, "{name:?}");
        }
        assert_eq!(user(UserKey::Id(4_000_000_000)).expect("readable"), None);
    }

    #[test]
    fn a_buffer_that_is_too_small_grows() {
        assert_eq!(group_with_buffer(1, "root").expect("the database can be read"), Some(0));
        let several = groups_with_buffer(1, "root", 4242).expect("readable");
        assert_eq!(several, groups_of("root", 4242).expect("readable"));
    }

    #[test]
    fn an_entry_that_never_fits_is_an_error() {
        let call = |_entry: *mut libc::passwd, _buffer, _size, _found| libc::ERANGE;
        let error = look_up(1, |_: &libc::passwd| (), call).expect_err("no buffer is large enough");
        assert_eq!(error.raw_os_error(), Some(libc::ERANGE));
    }

    #[test]
    fn a_source_that_does_not_answer_is_an_error() {
        let answer = |code| look_up(1, |_: &libc::passwd| (), move |_, _, _, _| code);
        assert_eq!(answer(libc::ENOENT).expect("no such entry"), None);
        assert_eq!(answer(libc::EIO).expect_err("an error").raw_os_error(), Some(libc::EIO));
    }

    #[test]
    fn the_groups_of_a_user_begin_with_the_given_one_and_name_it_once() {
        let groups = groups_of("root", 4242).expect("readable");
        assert_eq!(groups.first(), Some(&4242));
        assert_eq!(groups.iter().filter(|group| **group == 4242).count(), 1);
        assert_eq!(groups_of("no-such-name-here", 7).expect("readable"), [7]);
    }
}
