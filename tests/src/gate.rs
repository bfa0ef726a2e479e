//! A file for which workers wait until the test creates it.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::script::script_with;

/// The gate, closed until [`open`](Gate::open). Workers of every user can see it.
#[derive(Debug)]
pub struct Gate {
    path: PathBuf,
    _folder: TempDir,
}

impl Gate {
    /// A closed gate.
    ///
    /// # Panics
    /// When no folder can be made.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "a gate is made of a folder")]
    pub fn new() -> Gate {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("the folder is ours");
        Gate { path: folder.path().join("gate"), _folder: folder }
    }

    /// Lets the workers go on.
    ///
    /// # Panics
    /// When the file cannot be made.
    pub fn open(&self) {
        fs::write(&self.path, "").expect("the folder is ours");
    }

    /// The file, for programs that wait for it in another way.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A python program whose `wait()` returns when the gate is open.
    #[must_use]
    pub fn script(&self, text: &str, address: SocketAddr) -> Vec<String> {
        script_with(text, address, [&self.path])
    }
}
