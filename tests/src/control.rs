//! The control socket and the commands, against the binary under test.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::supervisor::{Builder, binary};
use crate::wait::{TIMEOUT, eventually, scaled};

/// A folder with a control socket in it.
#[derive(Debug)]
pub struct Controlled {
    folder: TempDir,
    /// The socket.
    pub path: PathBuf,
}

impl Default for Controlled {
    fn default() -> Controlled {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("example.sock");
        Controlled { folder, path }
    }
}

impl Controlled {
    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Has a supervisor use the socket.
    pub fn on(&self, builder: Builder) -> Builder {
        builder.args(["--control".as_ref(), self.path.as_os_str()])
    }

    /// Runs a command for this supervisor.
    ///
    /// # Panics
    /// When it does not end.
    #[must_use]
    pub fn run(&self, words: &[&str]) -> Ran {
        self.begin(words).wait()
    }

    /// Starts a command for this supervisor.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn begin(&self, words: &[&str]) -> Running {
        let mut command = command(words);
        command.arg("--control").arg(&self.path);
        Running::of(command)
    }

    /// Waits until a client can connect, and connects.
    ///
    /// # Panics
    /// When the socket does not come.
    #[must_use]
    pub fn client(&self) -> Client {
        eventually(TIMEOUT, "the control socket is open", || UnixStream::connect(&self.path).is_ok());
        Client::connect(&self.path)
    }

    /// The state, as the supervisor tells it.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    pub fn status(&self) -> Value {
        self.client().ask(r#"{"command":"status"}"#)["status"].take()
    }

    /// Waits until so many workers are ready.
    ///
    /// # Panics
    /// When they are not.
    pub fn await_ready(&self, workers: u64) {
        // The one that answers next may not be there yet, and the one before have just been killed.
        let ready = || {
            let mut client = Client::of(UnixStream::connect(&self.path).ok()?);
            writeln!(client.stream(), r#"{{"command":"status"}}"#).ok()?;
            let answer: Value = serde_json::from_str(&client.line()?).ok()?;
            answer["status"]["workers_ready"].as_u64()
        };
        eventually(TIMEOUT, &format!("{workers} workers are ready"), || ready() == Some(workers));
    }
}

/// A command of the binary under test, without the variables of the tests' own surroundings.
#[must_use]
pub fn command(words: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for name in ["MASTER_PROCESS_NAME", "MASTER_PROCESS_CONTROL", "COLUMNS", "NO_COLOR"] {
        command.env_remove(name);
    }
    command
}

/// A command that runs.
#[derive(Debug)]
pub struct Running(std::process::Child);

impl Running {
    /// Starts it.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn of(mut command: Command) -> Running {
        Running(command.spawn().expect("the binary is there"))
    }

    /// Whether it has ended.
    ///
    /// # Panics
    /// When the kernel does not know it, which no test can cause.
    pub fn has_ended(&mut self) -> bool {
        self.0.try_wait().expect("it is our child").is_some()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not come.
    #[must_use]
    pub fn wait(mut self) -> Ran {
        eventually(TIMEOUT, "the command ends", || self.has_ended());
        Ran::of(&self.0.wait_with_output().expect("it has ended"))
    }
}

/// What a command printed, and its exit code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// The exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Ran {
    fn of(output: &Output) -> Ran {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ran { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    }
}

/// A client that writes and reads lines.
#[derive(Debug)]
pub struct Client(BufReader<UnixStream>);

impl Client {
    /// Connects.
    ///
    /// # Panics
    /// When nobody listens.
    #[must_use]
    pub fn connect(path: &Path) -> Client {
        Client::of(UnixStream::connect(path).expect("it listens"))
    }

    fn of(stream: UnixStream) -> Client {
        stream.set_read_timeout(Some(scaled(TIMEOUT))).expect("a time-out");
        Client(BufReader::new(stream))
    }

    /// The connection.
    pub fn stream(&mut self) -> &mut UnixStream {
        self.0.get_mut()
    }

    /// Sends a line.
    ///
    /// # Panics
    /// When it is not taken.
    pub fn send(&mut self, line: &str) {
        self.stream().write_all(format!("{line}\n").as_bytes()).expect("it is taken");
    }

    /// The next line; `None` at the end.
    ///
    /// # Panics
    /// When nothing comes.
    pub fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(line.trim_end().to_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("nothing came: {error}"),
        }
    }

    /// Sends a line and reads the answer.
    ///
    /// # Panics
    /// When none comes.
    pub fn ask(&mut self, line: &str) -> Value {
        self.send(line);
        let answer = self.line().expect("an answer");
        serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{answer}: {error}"))
    }

    /// Reads events until one has this name.
    ///
    /// # Panics
    /// When it does not come.
    pub fn await_event(&mut self, name: &str) -> Value {
        loop {
            let line = self.line().unwrap_or_else(|| panic!("the end before {name}"));
            let event: Value = serde_json::from_str(&line).expect("JSON");
            if event["event"] == name {
                return event;
            }
        }
    }

    /// Waits until the supervisor closes the connection. Returns what it has sent before.
    ///
    /// # Panics
    /// When it does not.
    pub fn await_end(&mut self, within: Duration) -> Vec<String> {
        self.stream().set_read_timeout(Some(scaled(within))).expect("a time-out");
        std::iter::from_fn(|| self.line()).collect()
    }
}
