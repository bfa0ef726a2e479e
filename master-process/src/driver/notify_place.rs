//! Where the notify socket is.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use tracing::{debug, info};

use crate::config::Identity;
use crate::sys::notify::{NotifySocket, Sender, make_base};

/// Where a supervisor of root has its directories when no service manager made one for it.
const OF_ROOT: &str = "/run/master-process";

/// Opens the notify socket where the workers can send to it and no other ordinary user can; where there is no such
/// place, under an abstract address.
pub(super) fn open(identity: Option<&Identity>) -> std::io::Result<NotifySocket> {
    let own = rustix::process::geteuid();
    let sender = Sender {
        uid: identity.and_then(|identity| identity.uid).unwrap_or(own.as_raw()),
        gid: identity.map(|identity| identity.gid),
        groups: identity.map_or(&[], |identity| &identity.groups),
    };
    for base in bases(|name| std::env::var_os(name), own.is_root()) {
        if base == Path::new(OF_ROOT)
            && let Err(error) = make_base(&base)
        {
            debug!(
                "cannot make the directory {} for the notify socket: {error}; trying another",
                base.display()
            );
            continue;
        }
        match NotifySocket::in_directory(&base, sender) {
            Ok(socket) => return Ok(socket),
            Err(error) => {
                debug!("cannot put the notify socket in {}: {error}; trying another", base.display())
            }
        }
    }
    info!("no private directory for the notify socket: using an abstract address, open to every local user");
    NotifySocket::with_abstract_address()
}

/// The directories to try, the best first.
fn bases(var: impl Fn(&str) -> Option<OsString>, is_root: bool) -> Vec<PathBuf> {
    // systemd separates several by colons; see systemd.exec(5).
    let runtime = var("RUNTIME_DIRECTORY");
    let runtime = runtime.as_ref().and_then(|list| std::env::split_paths(list).next());
    let of_user = var("XDG_RUNTIME_DIR").map(PathBuf::from);
    let of_root = is_root.then(|| PathBuf::from(OF_ROOT));
    let all = [runtime, of_root, of_user, Some(PathBuf::from("/tmp"))];
    all.into_iter().flatten().filter(|path| path.is_absolute()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried(vars: &[(&str, &str)], is_root: bool) -> Vec<PathBuf> {
        bases(|name| vars.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into()), is_root)
    }

    fn paths(texts: &[&str]) -> Vec<PathBuf> {
        texts.iter().map(PathBuf::from).collect()
    }

    #[test]
    fn the_service_managers_directory_comes_first() {
        let vars = [("RUNTIME_DIRECTORY", "/run/app:/run/other"), ("XDG_RUNTIME_DIR", "/run/user/7")];
        assert_eq!(tried(&vars, true), paths(&["/run/app", "/run/master-process", "/run/user/7", "/tmp"]));
        assert_eq!(tried(&vars, false), paths(&["/run/app", "/run/user/7", "/tmp"]));
    }

    #[test]
    fn what_is_unset_empty_or_relative_is_passed_over() {
        assert_eq!(tried(&[], false), paths(&["/tmp"]));
        assert_eq!(tried(&[("RUNTIME_DIRECTORY", ""), ("XDG_RUNTIME_DIR", "run")], false), paths(&["/tmp"]));
    }
}
