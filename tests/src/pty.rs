//! A terminal of a test's own.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

/// Makes the program that follows the leader of a session whose terminal is its standard input, as a terminal emulator
/// does it for its shell.
pub const ITS_TERMINAL: [&str; 2] = ["setsid", "--ctty"];

/// Ctrl-C.
pub const INTERRUPT: &str = "\x03";

/// Ctrl-\.
pub const QUIT: &str = "\x1c";

/// Ctrl-Z.
pub const SUSPEND: &str = "\x1a";

/// A pseudo-terminal. Dropped, it hangs up, as a window that is closed.
#[derive(Debug)]
pub struct Pty {
    master: File,
    slave: PathBuf,
}

impl Pty {
    /// A new one.
    ///
    /// # Panics
    /// When the machine has none left.
    #[must_use]
    pub fn open() -> Pty {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags).expect("a pseudo-terminal");
        rustix::pty::grantpt(&master).expect("it is ours");
        rustix::pty::unlockpt(&master).expect("it is ours");
        let slave = rustix::pty::ptsname(&master, Vec::new()).expect("it has a name");
        let slave = PathBuf::from(slave.into_string().expect("it is UTF-8"));
        Pty { master: File::from(master), slave }
    }

    /// The end that programs have, for their standard input.
    ///
    /// # Panics
    /// When it cannot be opened.
    #[must_use]
    pub fn slave(&self) -> OwnedFd {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        rustix::fs::open(&self.slave, flags, Mode::empty()).expect("it is there")
    }

    /// Presses keys.
    ///
    /// # Panics
    /// When the terminal takes none.
    pub fn press(&self, keys: &str) {
        (&self.master).write_all(keys.as_bytes()).expect("it takes keys");
    }

    /// What was written to it and not read yet: at least a byte.
    ///
    /// # Panics
    /// When it is hung up.
    #[must_use]
    pub fn read(&self) -> String {
        let mut text = [0; 4096];
        let length = (&self.master).read(&mut text).expect("a process has it open");
        String::from_utf8_lossy(&text[..length]).into_owned()
    }

    /// `stty tostop`: a background process that writes to it is stopped.
    ///
    /// # Panics
    /// When it cannot be set.
    pub fn set_tostop(&self) {
        let slave = self.slave();
        let mut modes = tcgetattr(&slave).expect("a terminal");
        modes.local_modes.insert(LocalModes::TOSTOP);
        tcsetattr(&slave, OptionalActions::Now, &modes).expect("a terminal");
    }

    /// Whether that is set.
    ///
    /// # Panics
    /// When it cannot be read.
    #[must_use]
    pub fn has_tostop(&self) -> bool {
        tcgetattr(self.slave()).expect("a terminal").local_modes.contains(LocalModes::TOSTOP)
    }
}
