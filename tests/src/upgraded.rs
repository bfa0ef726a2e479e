//! A supervisor whose program is replaced while it runs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::Supervisor;
use crate::control::Controlled;
use crate::supervisor::{Builder, binary};

/// A supervisor whose program is a copy that the test replaces.
#[derive(Debug)]
pub struct Upgraded {
    /// Its control socket, and the folder of the copy.
    pub controlled: Controlled,
    /// The copy.
    pub program: PathBuf,
}

impl Default for Upgraded {
    fn default() -> Upgraded {
        let controlled = Controlled::default();
        let program = controlled.folder().join("program");
        fs::copy(binary(), &program).expect("there is room for a copy");
        Upgraded { controlled, program }
    }
}

impl Upgraded {
    /// A copy that nothing has replaced.
    #[must_use]
    pub fn new() -> Upgraded {
        Upgraded::default()
    }

    /// A supervisor of it.
    pub fn builder(&self) -> Builder {
        self.controlled.on(Supervisor::builder().program(&self.program))
    }

    /// Puts another file at the path of the program.
    ///
    /// # Panics
    /// When it is not there.
    pub fn replace(&self, put: impl FnOnce(&Path)) {
        let beside = self.controlled.folder().join("new");
        put(&beside);
        fs::rename(&beside, &self.program).expect("the same folder");
    }

    /// Puts the same program there as another file.
    ///
    /// # Panics
    /// When there is no room for it.
    pub fn replace_by_copy(&self) {
        self.replace(|path| {
            fs::copy(binary(), path).expect("there is room for a copy");
        });
    }

    /// Puts a script there.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn replace_by_script(&self, text: &str) {
        self.replace(|path| {
            fs::write(path, text).expect("ours");
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("ours");
        });
    }

    /// An upgrade that succeeds.
    ///
    /// # Panics
    /// When it does not.
    pub fn upgrade(&self) {
        let ran = self.controlled.run(&["upgrade", "--wait"]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert!(ran.out.contains("upgraded from "), "{ran:?}");
    }

    /// An upgrade that fails, for a reason with these words.
    ///
    /// # Panics
    /// When it does not.
    pub fn is_refused(&self, words: &str) {
        let ran = self.controlled.run(&["upgrade", "--wait"]);
        assert_eq!(ran.code, Some(151), "{ran:?}");
        assert!(ran.out.contains("not upgraded: ") && ran.out.contains(words), "{ran:?}");
    }
}
