//! `top`: one instance, live in a terminal.
//!
//! One connection has it all: the events, which the supervisor sends by itself, and one snapshot a second. The state is a
//! [`Model`]; the keys change it and [`view`] draws it, both without a terminal.

mod model;
mod screen;
mod view;

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{ArgMatches, Command};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, kill_current_process_group};

use self::model::{Action, Link, Model};
use self::screen::Screen;
use super::connection::{Connection, Failure, PATIENCE, Received};
use super::exit::codes;
use super::{arguments, find, show, status};
use crate::control::{Line, Reply, Request};
use crate::sys::signalfd::{self, SignalFd};

/// The time between two snapshots, and between two tries to connect.
const REFRESH: Duration = Duration::from_secs(1);

/// The lines that are taken in before the screen and the keys have their turn.
const LINES: usize = 1000;

/// The signals that have an effect. The others stay blocked, except those of faults.
const SIGNALS: [i32; 7] =
    [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGTSTP, libc::SIGCONT, libc::SIGWINCH];

const AFTER_HELP: &str = "\
Keys: q quits, ? shows the others. With --json it prints the state each second,
one object a line, and needs no terminal.";

pub(super) fn arguments(command: Command) -> Command {
    arguments::of_one(command).after_help(AFTER_HELP)
}

pub(super) fn run(matches: &ArgMatches) -> Result<u8, Failure> {
    if matches.get_flag("json") {
        return print(&mut find::connect(matches)?);
    }
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        let why = "top needs a terminal on standard input and output: see status, or top --json";
        return Err(Failure::new(codes::USAGE, why));
    }
    let connection = find::connect(matches)?;
    let failed = |error: io::Error| Failure::new(codes::UNKNOWN, format!("terminal: {error}"));
    // From here on, no signal may end `top` before the terminal is restored.
    signalfd::block();
    let signals = SignalFd::new(SIGNALS.into_iter()).map_err(failed)?;
    let mut screen = Screen::enter().map_err(failed)?;
    let mut top = Top::new(connection);
    let end = top.run(&mut screen, &signals).or_else(|error| match error.raw_os_error() {
        // The terminal hung up while it was written to.
        Some(libc::EIO) => Ok(End::Signal(libc::SIGHUP)),
        _other => Err(error),
    });
    drop(screen);
    match end.map_err(failed)? {
        End::Quit => Ok(top.code()),
        End::Signal(number) => {
            // The shell sees that it was the signal.
            signalfd::take_default_action(number);
            Ok(codes::UNKNOWN)
        }
    }
}

/// Prints the state each second, until the supervisor ends or nobody reads it.
fn print(connection: &mut Connection) -> Result<u8, Failure> {
    let mut next = Instant::now();
    loop {
        let (_, text) = status::ask(connection)?;
        let mut stdout = io::stdout();
        if writeln!(stdout, "{}", status::inner(&text)).and_then(|()| stdout.flush()).is_err() {
            return Ok(codes::OK);
        }
        next += REFRESH;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

/// How it ended.
enum End {
    Quit,
    Signal(i32),
}

struct Top {
    model: Model,
    path: PathBuf,
    name: String,
    colours: bool,
    connection: Option<Connection>,
    /// When the snapshot was asked for that has not come yet.
    asked: Option<Instant>,
    /// When to ask for the next one, or to connect again.
    next: Instant,
    /// An error that is not the answer to a request: the supervisor closes the connection after it.
    last_words: Option<String>,
    /// Whether the screen is not what the model is.
    is_changed: bool,
}

impl Top {
    fn new(connection: Connection) -> Top {
        let mut top = Top {
            model: Model::new(),
            path: connection.path.clone(),
            name: show::plain(&connection.name()),
            colours: show::has_colour(),
            connection: None,
            asked: None,
            next: Instant::now(),
            last_words: None,
            is_changed: true,
        };
        top.use_connection(connection);
        top
    }

    /// The exit code at the end.
    fn code(&self) -> u8 {
        match self.model.link {
            Link::Up => codes::OK,
            Link::Silent => codes::UNKNOWN,
            Link::Lost(_) => codes::NOT_RUNNING,
        }
    }

    fn run(&mut self, screen: &mut Screen, signals: &SignalFd) -> io::Result<End> {
        loop {
            self.refresh();
            if self.is_changed && screen.is_idle() {
                let (model, name, colours) = (&self.model, &self.name, self.colours);
                screen.show(|buffer| view::draw(model, name, colours, buffer))?;
                self.is_changed = false;
            }
            let has_keys = self.wait(screen, signals)?;
            if let Some(end) = self.take_signals(screen, signals)? {
                return Ok(end);
            }
            screen.flush()?;
            let Some(keys) = (if has_keys { screen.keys()? } else { Some(Vec::new()) }) else {
                return Ok(End::Signal(libc::SIGHUP));
            };
            for key in keys {
                self.is_changed = true;
                let layout = view::Layout::of(&self.model, show::size().1);
                match self.model.press(key, layout.workers) {
                    Action::Nothing => {}
                    Action::Quit => return Ok(End::Quit),
                    // A wrapper such as sudo has to stop with us. Our own signal is in `signals` now.
                    Action::Suspend => _ = kill_current_process_group(Signal::TSTP),
                    Action::Redraw => screen.redraw(),
                    Action::Send(request) => self.send(request),
                }
            }
            self.receive();
        }
    }

    /// Waits until something happens. Returns whether the terminal has keys, or is gone.
    fn wait(&self, screen: &Screen, signals: &SignalFd) -> io::Result<bool> {
        let stdin = io::stdin();
        let mut polled = vec![PollFd::new(&stdin, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
        polled.extend(self.connection.as_ref().map(|connection| PollFd::new(connection, PollFlags::IN)));
        if !screen.is_idle() {
            polled.push(PollFd::from_borrowed_fd(screen.output(), PollFlags::OUT));
        }
        let left = self.deadline().saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
        match poll(&mut polled, Some(&left)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(!polled[0].revents().is_empty())
    }

    fn deadline(&self) -> Instant {
        match self.asked {
            _any if self.connection.as_ref().is_some_and(Connection::has_more) => Instant::now(),
            Some(asked) if self.model.link == Link::Up => asked + PATIENCE,
            Some(_silent) => Instant::now() + REFRESH,
            None => self.next,
        }
    }

    /// Asks for a snapshot, or connects, when it is time to.
    fn refresh(&mut self) {
        let now = Instant::now();
        if let Some(asked) = self.asked {
            if now >= asked + PATIENCE && self.model.link == Link::Up {
                self.model.link = Link::Silent;
                self.is_changed = true;
            }
            return;
        }
        if now < self.next {
            return;
        }
        self.next = now + REFRESH;
        if self.connection.is_some() {
            self.asked = Some(now);
            self.send(Request::Status);
            return;
        }
        self.is_changed = true;
        match Connection::open(&self.path) {
            Ok(connection) => {
                self.model.reconnected();
                self.use_connection(connection);
            }
            Err(failure) => self.model.lost(&failure.why),
        }
    }

    fn use_connection(&mut self, connection: Connection) {
        self.connection = Some(connection);
        self.send(Request::Events { since: 0, follow: true });
        self.asked = Some(Instant::now());
        self.send(Request::Status);
    }

    fn send(&mut self, request: Request) {
        let Some(connection) = &mut self.connection else { return };
        if let Err(failure) = connection.send(request) {
            self.lose(&failure.why);
        }
    }

    fn lose(&mut self, why: &str) {
        (self.connection, self.asked) = (None, None);
        let why = self.last_words.take().unwrap_or_else(|| why.to_owned());
        self.model.lost(&why);
        self.next = Instant::now() + REFRESH;
        self.is_changed = true;
    }

    /// Takes in what the supervisor has sent.
    fn receive(&mut self) {
        for _ in 0..LINES {
            let Some(connection) = &mut self.connection else { return };
            if !connection.has_more() {
                return;
            }
            match connection.receive(Some(Instant::now())) {
                Ok(Received::Line(Line::Event(event), _)) => self.model.add_event(&event),
                Ok(Received::Line(Line::Reply(reply), _)) => self.take_reply(*reply),
                Ok(Received::Nothing) => return,
                Ok(Received::End) => return self.lose("the supervisor has ended"),
                Err(failure) => return self.lose(&failure.why),
            }
            self.is_changed = true;
        }
    }

    fn take_reply(&mut self, reply: Reply) {
        if let Some(snapshot) = reply.status {
            self.asked = None;
            self.model.update(*snapshot);
        }
        if let Some(accepted) = reply.accepted {
            self.model.accepted(&accepted);
            // What it has changed is to be seen at once.
            self.next = self.next.min(Instant::now() + REFRESH / 10);
        }
        if let Some(error) = reply.error {
            self.model.refused(&error.message);
            let is_last = matches!(error.code.as_str(), "closed" | "too_many_clients" | "not_permitted");
            self.last_words = is_last.then_some(error.message);
        }
    }

    fn take_signals(&mut self, screen: &mut Screen, signals: &SignalFd) -> io::Result<Option<End>> {
        while let Some(signal) = signals.next() {
            match signal.number {
                libc::SIGHUP if signals.hup_was_ignored() => {}
                libc::SIGINT | libc::SIGTERM | libc::SIGHUP | libc::SIGQUIT => {
                    return Ok(Some(End::Signal(signal.number)));
                }
                libc::SIGTSTP => {
                    screen.release();
                    signalfd::take_default_action(libc::SIGTSTP);
                    screen.take()?;
                }
                // After a SIGSTOP, the shell has set the terminal for itself.
                libc::SIGCONT => screen.take()?,
                _window_size => {}
            }
            self.is_changed = true;
        }
        Ok(None)
    }
}
