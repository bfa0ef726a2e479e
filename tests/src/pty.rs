//! A terminal of a test's own.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{Mode, OFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::{LocalModes, OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize};

use crate::{TIMEOUT, eventually};

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

    /// Its modes, to be compared.
    ///
    /// # Panics
    /// When they cannot be read.
    #[must_use]
    pub fn modes(&self) -> String {
        format!("{:?}", tcgetattr(self.slave()).expect("a terminal"))
    }

    /// Sets its size, as a terminal emulator whose window changes.
    ///
    /// # Panics
    /// When it cannot be set.
    pub fn resize(&self, columns: u16, rows: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.master, size).expect("a terminal");
    }

    /// Reads everything from now on, until it is hung up.
    ///
    /// # Panics
    /// When this process has no descriptors left.
    #[must_use]
    pub fn record(&self) -> Recording {
        let slave = self.slave();
        let mut master = self.master.try_clone().expect("a descriptor");
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let written = Arc::clone(&bytes);
        std::thread::spawn(move || {
            let mut part = [0; 4096];
            while let Ok(length) = master.read(&mut part)
                && length > 0
            {
                written.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&part[..length]);
            }
        });
        Recording { bytes, slave }
    }
}

/// What programs write to a terminal.
#[derive(Debug)]
pub struct Recording {
    bytes: Arc<Mutex<Vec<u8>>>,
    /// While no process has it open, reading fails.
    slave: OwnedFd,
}

impl Recording {
    /// All of it.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// What a terminal shows after all that was written before this call, which may be read later.
    ///
    /// # Panics
    /// When it is not read within the time-out.
    #[must_use]
    pub fn shown_at_last(&self) -> Shown {
        // A terminal keeps the order, and shows nothing for this.
        const MARK: &str = "\0";
        let marks = || self.text().matches(MARK).count();
        let before = marks();
        rustix::io::write(&self.slave, MARK.as_bytes()).expect("it takes text");
        eventually(TIMEOUT, "all that was written is read", || marks() > before);
        self.shown()
    }

    /// What a terminal shows after what has been read.
    #[must_use]
    pub fn shown(&self) -> Shown {
        Shown::after(&self.text())
    }
}

/// What a terminal shows, as far as full-screen programs need it: moves of the cursor, text, clearing.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Shown {
    /// The lines, without spaces at their end.
    pub lines: Vec<String>,
    /// Whether it is on the alternate screen.
    pub alternate: bool,
    /// Whether the cursor is hidden.
    pub hides_cursor: bool,
}

impl Shown {
    fn after(text: &str) -> Shown {
        let mut shown = Shown::default();
        let mut cells: Vec<Vec<char>> = Vec::new();
        let (mut row, mut column) = (0, 0);
        let mut chars = text.chars();
        while let Some(char) = chars.next() {
            match char {
                '\x1b' if chars.as_str().starts_with('[') => {
                    chars.next();
                    let mut sequence = String::new();
                    for char in chars.by_ref() {
                        sequence.push(char);
                        if char.is_ascii_alphabetic() {
                            break;
                        }
                    }
                    match sequence.as_str() {
                        "2J" => cells.clear(),
                        "J" | "0J" => {
                            cells.truncate(row + 1);
                            if let Some(line) = cells.get_mut(row) {
                                line.truncate(column);
                            }
                        }
                        "?1049h" => shown.alternate = true,
                        "?1049l" => {
                            shown.alternate = false;
                            cells.clear();
                        }
                        "?25l" => shown.hides_cursor = true,
                        "?25h" => shown.hides_cursor = false,
                        other => {
                            if let Some((to_row, to_column)) =
                                other.strip_suffix('H').and_then(|to| to.split_once(';'))
                            {
                                row = to_row.parse().unwrap_or(1) - 1;
                                column = to_column.parse().unwrap_or(1) - 1;
                            } else if let Some(up) = other.strip_suffix('A') {
                                row = row.saturating_sub(up.parse().unwrap_or(1));
                            }
                        }
                    }
                }
                '\n' => row += 1,
                '\r' => column = 0,
                char if char.is_control() => {}
                char => {
                    if cells.len() <= row {
                        cells.resize(row + 1, Vec::new());
                    }
                    let line = &mut cells[row];
                    if line.len() <= column {
                        line.resize(column + 1, ' ');
                    }
                    line[column] = char;
                    column += 1;
                }
            }
        }
        shown.lines =
            cells.iter().map(|line| line.iter().collect::<String>().trim_end().to_owned()).collect();
        shown
    }

    /// Whether a line has these words.
    #[must_use]
    pub fn has(&self, words: &str) -> bool {
        self.lines.iter().any(|line| line.contains(words))
    }
}
