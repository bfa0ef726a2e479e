//! The terminal: raw, on its alternate screen, and as it was before afterwards.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossterm::terminal::{
    Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use crossterm::{cursor, queue};
use ratatui::backend::{Backend, CrosstermBackend};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::termios::tcgetpgrp;

use super::model::Key;
use crate::client::show;
use crate::sys::signalfd;
use crate::sys::terminal::{is_group_orphaned, own_group};

/// How long the terminal may take to read the end of the output. One that does not read at all must not keep `top` from
/// ending.
const PATIENCE: Duration = Duration::from_millis(500);

/// Whether the terminal is ours and has to be restored.
static IS_OURS: AtomicBool = AtomicBool::new(false);

/// Standard output without waiting: a terminal that does not read must not keep `top` from its signals. It is a file
/// description of its own, because the shell shares that of standard output.
static OUTPUT: OnceLock<OwnedFd> = OnceLock::new();

fn output() -> BorrowedFd<'static> {
    static STDOUT: OnceLock<io::Stdout> = OnceLock::new();
    match OUTPUT.get() {
        Some(fd) => fd.as_fd(),
        None => STDOUT.get_or_init(io::stdout).as_fd(),
    }
}

/// The terminal while `top` has it. Dropped, it is as before.
#[derive(Debug)]
pub(super) struct Screen {
    /// What the terminal shows.
    shown: Buffer,
    /// What it has not read yet.
    pending: Vec<u8>,
}

impl Screen {
    /// Takes the terminal over. A panic gives it back before its message is printed.
    pub(super) fn enter() -> io::Result<Screen> {
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        // Another user's terminal, after `su`, cannot be opened; then standard output itself is used.
        if let Ok(fd) = rustix::fs::open("/proc/self/fd/1", flags, Mode::empty()) {
            let _second_time = OUTPUT.set(fd);
        }
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            previous(panic);
        }));
        let mut screen = Screen { shown: Buffer::empty(Rect::ZERO), pending: Vec::new() };
        screen.take()?;
        Ok(screen)
    }

    /// Takes the terminal over, also again: after a stop, a shell may have changed it.
    pub(super) fn take(&mut self) -> io::Result<()> {
        restore();
        await_foreground();
        enable_raw_mode()?;
        IS_OURS.store(true, Ordering::SeqCst);
        self.pending.clear();
        queue!(self.pending, EnterAlternateScreen, cursor::Hide)?;
        self.redraw();
        self.flush()
    }

    /// Gives the terminal back, for example for the time of a stop.
    pub(super) fn release(&mut self) {
        self.pending.clear();
        restore();
    }

    /// Draws everything anew next time.
    pub(super) fn redraw(&mut self) {
        self.shown = Buffer::empty(Rect::ZERO);
    }

    /// Whether the terminal has read what was written. Until then it gets nothing new.
    pub(super) fn is_idle(&self) -> bool {
        self.pending.is_empty()
    }

    /// Shows what is drawn.
    pub(super) fn show(&mut self, draw: impl FnOnce(&mut Buffer)) -> io::Result<()> {
        let (columns, rows) = show::size();
        let clip = |size: usize| u16::try_from(size.clamp(1, 1000)).unwrap_or(1000);
        let area = Rect::new(0, 0, clip(columns), clip(rows));
        if area != self.shown.area {
            queue!(self.pending, Clear(ClearType::All))?;
            self.shown = Buffer::empty(area);
        }
        let mut next = Buffer::empty(area);
        draw(&mut next);
        CrosstermBackend::new(&mut self.pending).draw(self.shown.diff(&next).into_iter())?;
        self.shown = next;
        self.flush()
    }

    /// Writes what the terminal takes now.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        while !self.pending.is_empty() {
            match rustix::io::write(output(), &self.pending) {
                Ok(written) => _ = self.pending.drain(..written),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Where the terminal reads, for poll(2).
    pub(super) fn output(&self) -> BorrowedFd<'static> {
        output()
    }

    /// The keys that were pressed, after poll(2) has found some. `None`: the terminal is gone.
    ///
    /// This does not use crossterm's events: their reader never returns from a terminal that hung up, nor from a key of
    /// which the second half is late.
    pub(super) fn keys(&self) -> io::Result<Option<Vec<Key>>> {
        let mut bytes = [0; 256];
        match rustix::io::read(io::stdin(), &mut bytes) {
            Ok(0) | Err(Errno::IO) => Ok(None),
            Ok(length) => Ok(Some(keys_of(&String::from_utf8_lossy(&bytes[..length])))),
            Err(Errno::AGAIN | Errno::INTR) => Ok(Some(Vec::new())),
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.release();
    }
}

/// Gives the terminal back, if we have it.
fn restore() {
    if !IS_OURS.swap(false, Ordering::SeqCst) {
        return;
    }
    let mut end = Vec::new();
    // Writing to memory does not fail. A frame may have been cut off in the middle of a sequence: CAN ends it.
    let _never_fails = queue!(end, crossterm::style::Print('\x18'), crossterm::style::ResetColor);
    let _never_fails = queue!(end, crossterm::style::SetAttribute(crossterm::style::Attribute::Reset));
    let _never_fails = queue!(end, LeaveAlternateScreen, cursor::Show);
    write_for(&end, PATIENCE);
    // The terminal may be gone, and then there is nothing to restore.
    let _gone = disable_raw_mode();
}

/// Writes as much as the terminal takes in this time.
fn write_for(mut text: &[u8], patience: Duration) {
    let until = Instant::now() + patience;
    while !text.is_empty() {
        match rustix::io::write(output(), text) {
            Ok(written) => text = &text[written..],
            Err(Errno::AGAIN) => {
                let left = until.saturating_duration_since(Instant::now());
                let Ok(left) = Timespec::try_from(left) else { return };
                let mut polled = [PollFd::from_borrowed_fd(output(), PollFlags::OUT)];
                if !poll(&mut polled, Some(&left)).is_ok_and(|ready| ready > 0) {
                    return;
                }
            }
            Err(Errno::INTR) => {}
            Err(_gone) => return,
        }
    }
}

/// Stops while another process group has the terminal, as the kernel does with a process that has SIGTTOU not blocked.
fn await_foreground() {
    let is_behind = || match (tcgetpgrp(io::stdin()), own_group()) {
        (Ok(foreground), Some(own)) => foreground != own,
        _not_ours => false,
    };
    while is_behind() && !is_group_orphaned() {
        signalfd::take_default_action(libc::SIGTTOU);
    }
}

/// The keys in what a terminal sends. A sequence that is cut off, or of a key without a use here, is like Escape: no answer
/// to a question.
fn keys_of(text: &str) -> Vec<Key> {
    let mut keys = Vec::new();
    let mut rest = text.chars();
    while let Some(letter) = rest.next() {
        keys.push(match letter {
            '\x03' => Key::Interrupt,
            '\x0c' => Key::Redraw,
            '\x1a' => Key::Suspend,
            '\x1b' if rest.as_str().starts_with(['[', 'O']) => {
                rest.next();
                let sequence = rest.as_str();
                let end =
                    sequence.find(|c: char| ('@'..='~').contains(&c)).map_or(sequence.len(), |at| at + 1);
                rest = sequence[end..].chars();
                match &sequence[..end] {
                    "A" => Key::Up,
                    "B" => Key::Down,
                    "H" | "1~" | "7~" => Key::Home,
                    "F" | "4~" | "8~" => Key::End,
                    "5~" => Key::PageUp,
                    "6~" => Key::PageDown,
                    _other => Key::Escape,
                }
            }
            control if control.is_control() => Key::Escape,
            letter => Key::Char(letter),
        });
    }
    keys
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use master_process_tests::pty::{ITS_TERMINAL, Pty};
    use rustix::termios::tcgetattr;

    use super::*;

    #[test]
    fn keys_are_read_as_terminals_send_them() {
        for (text, keys) in [
            ("qR", &[Key::Char('q'), Key::Char('R')][..]),
            ("\x03\x1a\x0c", &[Key::Interrupt, Key::Suspend, Key::Redraw]),
            ("\x1b[A\x1bOB", &[Key::Up, Key::Down]),
            ("\x1b[5~\x1b[6~\x1b[H\x1b[4~", &[Key::PageUp, Key::PageDown, Key::Home, Key::End]),
            ("\x1b", &[Key::Escape]),
            ("\x1b[", &[Key::Escape]),
            ("\x1b[1;5Ay", &[Key::Escape, Key::Char('y')]),
            ("\x1b[15~", &[Key::Escape]),
            ("\r\té", &[Key::Escape, Key::Escape, Key::Char('é')]),
            ("", &[]),
        ] {
            assert_eq!(keys_of(text), keys, "{text:?}");
        }
    }

    /// Runs in a terminal of its own, started by the test below.
    #[test]
    #[ignore = "a part of a_panic_gives_the_terminal_back"]
    fn panics_with_the_terminal() {
        let _screen = Screen::enter().expect("a terminal");
        panic!("the words of the panic");
    }

    #[test]
    fn a_panic_gives_the_terminal_back() {
        let pty = Pty::open();
        let slave = pty.slave();
        let before = format!("{:?}", tcgetattr(&slave).expect("a terminal"));
        let program = std::env::current_exe().expect("this test");
        let mut child = Command::new(ITS_TERMINAL[0])
            .args(&ITS_TERMINAL[1..])
            .arg(program)
            .args([
                "--exact",
                "client::top::screen::tests::panics_with_the_terminal",
                "--ignored",
                "--nocapture",
            ])
            .stdin(Stdio::from(pty.slave()))
            .stdout(Stdio::from(pty.slave()))
            .stderr(Stdio::from(pty.slave()))
            .spawn()
            .expect("it starts");
        let mut text = String::new();
        while !text.contains("test result") {
            text.push_str(&pty.read());
        }
        child.wait().expect("it ends");
        let place = |words: &str| text.find(words).unwrap_or_else(|| panic!("no {words:?} in {text:?}"));
        assert!(place("\x1b[?1049h") < place("\x1b[?1049l"), "{text:?}");
        assert!(place("\x1b[?1049l") < place("the words of the panic"), "it can be read: {text:?}");
        assert!(text.contains("\x1b[?25h"), "the cursor: {text:?}");
        assert_eq!(format!("{:?}", tcgetattr(&slave).expect("a terminal")), before);
    }
}
