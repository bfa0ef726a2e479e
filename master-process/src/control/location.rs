//! Where the control socket of a supervisor is, and how instances are found.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use crate::sys::control_socket::has_lock_file;
use crate::sys::runtime_directory::{self, NAME, ROOT};

/// The end of the file name of a control socket.
const SUFFIX: &str = ".sock";

/// The longest name: the path must fit into the 108 bytes of a socket address.
pub const MAX_NAME: usize = 64;

/// The number of supervisors with the same default name that are told apart by a short number.
pub const MAX_NUMBER: u32 = 99;

/// Whether a text can be the name of an instance, which is part of a file name.
pub fn is_name(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !text.is_empty() && text.len() <= MAX_NAME && !text.starts_with('.') && text.chars().all(fits)
}

/// The name of an instance that has none: the base name of its command.
pub fn default_name(command: &OsStr) -> String {
    let base = Path::new(command).file_name().unwrap_or(command).to_string_lossy();
    let fits = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' };
    // Room for a number after it.
    let name: String = base.chars().map(fits).take(MAX_NAME - 12).collect();
    let name = name.trim_start_matches('.');
    if name.is_empty() { "app".to_owned() } else { name.to_owned() }
}

/// The file name of an instance's socket.
pub fn file_name(name: &str) -> String {
    format!("{name}{SUFFIX}")
}

/// The name of the instance whose socket this is.
pub fn name_of(path: &Path) -> String {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    file.strip_suffix(SUFFIX).unwrap_or(&file).to_owned()
}

/// The directories of control sockets, the preferred one first.
pub fn directories(var: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let service = runtime_directory::of_service(&var);
    let user = runtime_directory::base_of_user(&var).map(|base| base.join(NAME));
    [service, Some(PathBuf::from(ROOT)), user].into_iter().flatten().collect()
}

/// Creates the directory if it is one that nobody else creates.
///
/// # Errors
/// Those of mkdir(2). That it exists is not an error.
pub fn create(directory: &Path, is_root: bool) -> io::Result<()> {
    let is_ours = if directory == Path::new(ROOT) {
        is_root
    } else {
        directory.file_name().is_some_and(|name| name == NAME)
    };
    if is_ours { runtime_directory::create(directory) } else { Ok(()) }
}

/// The control sockets in these directories and, from the kernel's list of sockets, everywhere else. Some may be leftovers.
pub fn instances(directories: &[PathBuf]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for directory in directories {
        let entries = std::fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
        found.extend(entries.map(|entry| entry.path()).filter(|path| is_control_socket(path)));
    }
    if let Ok(listed) = std::fs::read("/proc/net/unix") {
        found.extend(listening(&listed).filter(|path| has_lock_file(path)));
    }
    found.sort();
    found.dedup();
    found
}

fn is_control_socket(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == &SUFFIX[1..]) && has_lock_file(path)
}

/// The paths of the listening sockets in `/proc/net/unix`: the flags are in the fourth column, the path in the eighth.
fn listening(text: &[u8]) -> impl Iterator<Item = PathBuf> {
    /// `__SO_ACCEPTCON` of the kernel.
    const LISTENS: &[u8] = b"00010000";
    text.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut columns = line.splitn(8, |byte| *byte == b' ');
        let flags = columns.nth(3)?;
        let rest = columns.nth(3)?;
        let path = rest.iter().position(|byte| *byte == b'/').map(|at| &rest[at..])?;
        let path = <OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(path);
        (flags == LISTENS).then(|| PathBuf::from(path))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_name_is_the_command_as_a_file_name() {
        for (command, name) in [
            ("node", "node"),
            ("/usr/bin/python3", "python3"),
            ("./my app", "my-app"),
            ("/srv/.hidden", "hidden"),
            ("/", "-"),
            ("...", "app"),
        ] {
            assert_eq!(default_name(OsStr::new(command)), name, "{command}");
            assert!(is_name(name));
        }
        assert!(is_name(&default_name(OsStr::new(&"x".repeat(500)))));
    }

    #[test]
    fn a_name_is_a_plain_file_name() {
        for bad in ["", ".", "..", ".a", "a/b", "a b", "ä", &"x".repeat(65)] {
            assert!(!is_name(bad), "{bad:?}");
        }
        assert_eq!(name_of(Path::new("/run/master-process/api.sock")), "api");
        assert_eq!(name_of(Path::new("/srv/control")), "control");
    }

    #[test]
    fn directories_are_absolute_and_in_order() {
        let vars = [("RUNTIME_DIRECTORY", "/run/app:/run/b"), ("XDG_RUNTIME_DIR", "/run/user/7")];
        let var = |name: &str| vars.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        let expected = ["/run/app", "/run/master-process", "/run/user/7/master-process"];
        assert_eq!(directories(var), expected.map(PathBuf::from));
        assert_eq!(directories(|_| Some("".into())), [PathBuf::from(ROOT)]);
    }

    #[test]
    fn listening_sockets_are_read_from_the_list_of_the_kernel() {
        let text = b"Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 12345 /run/a b.sock\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 12346 /run/connected\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 12347 @abstract\n\
            0000000000000000: 00000002 00000000 00010000 0001 01  1234 /run/padded\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 12348\n";
        assert_eq!(
            listening(text).collect::<Vec<_>>(),
            [PathBuf::from("/run/a b.sock"), "/run/padded".into()]
        );
    }
}
