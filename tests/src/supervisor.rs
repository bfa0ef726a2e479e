//! The real binary under test, and what is known of its workers.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::process::{self, Stat};
use crate::wait::{TIMEOUT, await_some, eventually, scaled};

/// Marks everything that a supervisor of the tests started: inherited by whatever a worker forks, however far away.
const TAG: &str = "SUPERVISED_BY_TEST";

/// How many processes a wrapper is at most: `sudo` is two, and a shell before it is one.
const DEEPEST_WRAPPER: usize = 4;

/// How long a worker that is out of rotation still serves, where a test does not say.
const DEFAULT_DRAIN: Duration = Duration::from_millis(200);

/// The binary under test: `MASTER_PROCESS_BIN`, or the one that was built last beside the tests.
///
/// # Panics
/// When there is none, saying how to build it.
#[must_use]
pub fn binary() -> PathBuf {
    if let Some(given) = std::env::var_os("MASTER_PROCESS_BIN") {
        let given = PathBuf::from(given);
        return given
            .canonicalize()
            .unwrap_or_else(|_| panic!("MASTER_PROCESS_BIN={}: no such file", given.display()));
    }
    let target = crate::fixtures::target_folder();
    let modified = |path: &PathBuf| path.metadata().and_then(|metadata| metadata.modified()).ok();
    let built = ["release", "debug"].map(|profile| target.join(profile).join("master-process"));
    let newest = built.into_iter().filter(|path| path.exists()).max_by_key(modified);
    newest.unwrap_or_else(|| {
        panic!(
            "no master-process under {}: run `cargo build --release -p master-process` first, or name one in \
             MASTER_PROCESS_BIN",
            target.display()
        )
    })
}

/// How to start a supervisor.
#[derive(Debug)]
#[must_use]
pub struct Builder {
    wrapper: Vec<OsString>,
    program: Option<PathBuf>,
    args: Vec<OsString>,
    command: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    cwd: Option<PathBuf>,
    stdin: Option<Stdio>,
}

impl Builder {
    /// Adds options.
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets what comes after `--`.
    pub fn command<S: AsRef<OsStr>>(mut self, command: impl IntoIterator<Item = S>) -> Self {
        self.command = command.into_iter().map(|word| word.as_ref().to_owned()).collect();
        self
    }

    /// Adds a variable to the supervisor's environment.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Adds a variable to the supervisor's environment, unless the test has set it already.
    pub fn env_first(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.insert(0, (name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Sets the supervisor's working directory.
    pub fn cwd(mut self, folder: impl AsRef<Path>) -> Self {
        self.cwd = Some(folder.as_ref().to_owned());
        self
    }

    /// Puts words in front of the whole command line: `prlimit`, `setpriv`, a shell that ends in `exec "$@"`.
    pub fn wrap<S: AsRef<OsStr>>(mut self, wrapper: impl IntoIterator<Item = S>) -> Self {
        self.wrapper.extend(wrapper.into_iter().map(|word| word.as_ref().to_owned()));
        self
    }

    /// Starts this file instead of the binary under test: a copy that the test replaces, for example.
    pub fn program(mut self, path: impl AsRef<Path>) -> Self {
        self.program = Some(path.as_ref().to_owned());
        self
    }

    /// Sets the supervisor's standard input.
    pub fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.stdin = Some(stdin.into());
        self
    }

    /// Starts it.
    ///
    /// # Panics
    /// When there is no binary to start.
    #[must_use]
    pub fn spawn(self) -> Supervisor {
        let mut words = self.wrapper;
        let program = self.program.unwrap_or_else(binary);
        words.push(program.clone().into());
        words.extend(self.args);
        if !self.command.is_empty() {
            words.push("--".into());
            words.extend(self.command);
        }
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.stdin(self.stdin.unwrap_or_else(Stdio::null));
        // What the tests' own surroundings say must not reach the supervisor.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            let foreign =
                ["MASTER_PROCESS_", "LISTEN_", "WATCHDOG_", "NOTIFY_", "WORKER", "RUST_LOG", "DEBUG"];
            if foreign.iter().any(|prefix| text.starts_with(prefix)) || text == "MAX_KILL_TIMEOUT" {
                command.env_remove(&name);
            }
        }
        // The tests run beside each other, and their starts must not wait for each other.
        command.env("MASTER_PROCESS_START_GATE", "off");
        // What an answer takes, and so what a worker needs to finish it, grows with everything else.
        let drain = scaled(DEFAULT_DRAIN);
        if drain > DEFAULT_DRAIN {
            command.env("MASTER_PROCESS_DRAIN", format!("{}ms", drain.as_millis()));
        }
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let tag = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        command.env(TAG, &tag).envs(self.env);
        if let Some(cwd) = self.cwd {
            command.current_dir(cwd);
        }
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", words[0].display()));
        let stderr = child.stderr.take().expect("stderr is a pipe");
        let stdout = child.stdout.take().expect("stdout is a pipe");
        let pipes = [stderr.as_raw_fd(), stdout.as_raw_fd()].map(|fd| {
            std::fs::read_link(format!("/proc/self/fd/{fd}")).expect("our own descriptors can be looked at")
        });
        let (log, output) = (capture(stderr), capture(stdout));
        Supervisor {
            wrapped: i32::try_from(child.id()).expect("pids are positive and small"),
            child: Mutex::new(child),
            program,
            tag: format!("{TAG}={tag}"),
            pipes,
            log,
            output,
        }
    }

    /// Starts it and waits for its end.
    ///
    /// # Panics
    /// When it does not end.
    pub fn run(self) -> Finished {
        let supervisor = self.spawn();
        let status = supervisor.wait_exit(TIMEOUT);
        supervisor.finished(status)
    }
}

/// Lines as they come in.
#[derive(Debug, Clone, Default)]
struct Lines {
    lines: Arc<Mutex<Vec<String>>>,
    closed: Arc<Mutex<bool>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A test that has failed in another thread still wants to print its log.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn capture(from: impl Read + Send + 'static) -> Lines {
    let lines = Lines::default();
    let into = lines.clone();
    std::thread::spawn(move || {
        let mut reader = BufReader::new(from);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            locked(&into.lines).push(String::from_utf8_lossy(&line).trim_end().to_owned());
            line.clear();
        }
        *locked(&into.closed) = true;
    });
    lines
}

/// A line that a worker of the fixtures printed about itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// `started`, `ready`, `term`, `clean_up`, …
    pub name: String,
    /// The process.
    pub pid: i32,
    /// Its `WORKER_INDEX`.
    pub index: i32,
    /// Its `RELOAD_INDEX`.
    pub reload: i32,
    /// When, in seconds of the monotonic clock that all workers share.
    pub at: f64,
    /// The whole line.
    pub line: String,
}

impl Event {
    fn parse(line: &str) -> Option<Event> {
        let field = |name: &str| {
            line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned)
        };
        Some(Event {
            name: line.split(' ').next()?.to_owned(),
            pid: field("pid")?.parse().ok()?,
            index: field("index")?.parse().ok()?,
            reload: field("reload")?.parse().ok()?,
            at: field("at")?.parse().ok()?,
            line: line.to_owned(),
        })
    }

    /// Another field of the line.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&str> {
        self.line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    }
}

/// What a supervisor that has ended left.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// What it wrote to stderr.
    pub stderr: Vec<String>,
    /// What its workers wrote to stdout.
    pub stdout: Vec<String>,
}

/// A running supervisor. Dropped, it and everything that it ever started is killed.
#[derive(Debug)]
pub struct Supervisor {
    child: Mutex<Child>,
    /// The file that was started.
    program: PathBuf,
    wrapped: i32,
    tag: String,
    pipes: [PathBuf; 2],
    log: Lines,
    output: Lines,
}

impl Supervisor {
    /// A supervisor to be.
    pub fn builder() -> Builder {
        Builder {
            wrapper: Vec::new(),
            program: None,
            args: Vec::new(),
            command: Vec::new(),
            env: Vec::new(),
            cwd: None,
            stdin: None,
        }
    }

    /// Starts one with options and a command.
    #[must_use]
    pub fn start<S: AsRef<OsStr>>(options: &[&str], command: impl IntoIterator<Item = S>) -> Supervisor {
        Self::builder().args(options).command(command).spawn()
    }

    /// Whether a process executes the supervisor's program, or the one that was at that path before.
    fn executes_us(&self, pid: i32) -> bool {
        let Some(file) = process::executable(pid) else { return false };
        let replaced = file.to_str().and_then(|path| path.strip_suffix(" (deleted)"));
        file == self.program || replaced.is_some_and(|path| Path::new(path) == self.program)
    }

    /// The supervisor's own pid: that of the wrapper, unless the wrapper has forked it.
    ///
    /// # Panics
    /// When it never comes up.
    #[must_use]
    pub fn pid(&self) -> i32 {
        let ours = |pid: i32| self.executes_us(pid);
        if ours(self.wrapped) {
            return self.wrapped;
        }
        self.until("the supervisor runs", || {
            if ours(self.wrapped) {
                return Some(self.wrapped);
            }
            // Workers are ours too until they are past `exec`: the first level that has one of us has only us.
            let mut level = vec![self.wrapped];
            for _ in 0..DEEPEST_WRAPPER {
                level = level.into_iter().flat_map(process::children).map(|child| child.pid).collect();
                if let Some(found) = level.iter().find(|child| ours(**child)) {
                    return Some(*found);
                }
            }
            None
        })
    }

    /// Sends a signal to the supervisor.
    pub fn signal(&self, signal: Signal) {
        process::signal(self.pid(), signal);
    }

    /// Its exit status, if it has ended.
    ///
    /// # Panics
    /// When the kernel does not know it, which no test can cause.
    #[must_use]
    pub fn exited(&self) -> Option<ExitStatus> {
        locked(&self.child).try_wait().expect("it is our child")
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not end within `deadline`.
    #[must_use]
    pub fn wait_exit(&self, deadline: Duration) -> ExitStatus {
        let status = await_some(deadline, "the supervisor ends", || self.exited());
        self.await_pipes();
        status
    }

    /// Waits until what an ended supervisor has written is read.
    fn await_pipes(&self) {
        // What was written is complete when the pipes are closed; a process that escaped may hold them, and is not waited for.
        let start = Instant::now();
        let closed = || *locked(&self.log.closed) && *locked(&self.output.closed);
        while start.elapsed() < scaled(Duration::from_secs(2)) && !closed() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// TERM, and the exit code.
    ///
    /// # Panics
    /// When it does not end, ends by a signal, or leaves a process behind.
    #[must_use]
    pub fn stop(&self) -> i32 {
        self.signal(Signal::TERM);
        let status = self.wait_exit(TIMEOUT);
        // A killed grandchild may need a moment to die.
        eventually(Duration::from_secs(5), "nothing is left behind", || self.survivors().is_empty());
        status.code().unwrap_or_else(|| panic!("the supervisor was ended by a signal: {status}"))
    }

    /// TERM until it has ended, and the exit code. The supervisor takes signals within half a second for one; the first
    /// one after that is the second stop signal, which kills the workers.
    ///
    /// # Panics
    /// When it does not end.
    #[must_use]
    pub fn stop_twice(&self) -> Option<i32> {
        let pid = self.pid();
        let status = await_some(TIMEOUT, "the supervisor ends by the second stop signal", || {
            // Until its status is taken it keeps its pid.
            let status = self.exited();
            if status.is_none() {
                process::signal(pid, Signal::TERM);
            }
            status
        });
        status.code()
    }

    /// Everything about a supervisor that has ended.
    fn finished(&self, status: ExitStatus) -> Finished {
        Finished { code: status.code(), signal: status.signal(), stderr: self.log(), stdout: self.output() }
    }

    /// Waits until `cond` holds, and fails at once when the supervisor ends meanwhile.
    ///
    /// # Panics
    /// When the supervisor ends, or the deadline passes.
    pub fn eventually(&self, what: &str, mut cond: impl FnMut() -> bool) {
        self.until(what, || cond().then_some(()));
    }

    /// Waits until `look` finds something, and fails at once when the supervisor ends meanwhile.
    ///
    /// # Panics
    /// When the supervisor ends, or the deadline passes.
    pub fn until<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        await_some(TIMEOUT, what, || {
            if let Some(found) = look() {
                return Some(found);
            }
            let status = self.exited()?;
            // It may have written what is looked for just before its end.
            self.await_pipes();
            Some(look().unwrap_or_else(|| panic!("the supervisor ended ({status}) before: {what}")))
        })
    }

    /// The supervisor's running children, sorted: its workers, once they are past `exec`, and orphans handed to it.
    #[must_use]
    pub fn workers(&self) -> BTreeSet<i32> {
        let (binary, supervisor) = (binary(), self.pid());
        process::children(supervisor)
            .into_iter()
            .filter(|child| !matches!(child.state, 'Z' | 'X'))
            .filter(|child| process::executable(child.pid).is_some_and(|file| file != binary))
            .map(|child| child.pid)
            .collect()
    }

    /// Waits until exactly `count` workers run.
    ///
    /// # Panics
    /// When that does not come.
    pub fn await_workers(&self, count: usize) -> BTreeSet<i32> {
        self.until(&format!("{count} workers run"), || {
            Some(self.workers()).filter(|found| found.len() == count)
        })
    }

    /// HUP, and waits until `count` workers run none of which ran before. Gives the new ones.
    ///
    /// # Panics
    /// When that does not come.
    pub fn reload(&self, count: usize) -> BTreeSet<i32> {
        let old = self.workers();
        self.signal(Signal::HUP);
        // A dying process has no program any more, and counts as a worker until it is dead.
        let gone = || old.iter().all(|pid| !process::alive(*pid));
        self.until(&format!("{count} new workers have replaced the old"), || {
            Some(self.workers()).filter(|found| found.len() == count && found.is_disjoint(&old) && gone())
        })
    }

    /// Every process that the supervisor or anything below it started and that still runs, itself excepted.
    #[must_use]
    pub fn survivors(&self) -> Vec<i32> {
        let running = self.marked().into_iter().map(|process| process.pid);
        running.filter(|pid| *pid != self.wrapped && !self.executes_us(*pid)).collect()
    }

    fn marked(&self) -> Vec<Stat> {
        // A program that writes its title over its environment (nginx) is known by the pipes that it inherited.
        let piped = |process: &Stat| {
            let fd = |number: i32| std::fs::read_link(format!("/proc/{}/fd/{number}", process.pid));
            [1, 2].into_iter().filter_map(|number| fd(number).ok()).any(|file| self.pipes.contains(&file))
        };
        let ours = |process: &Stat| process::environment(process.pid).contains(&self.tag) || piped(process);
        let mut all = process::all();
        all.retain(|process| !matches!(process.state, 'Z' | 'X'));
        let (mut found, mut others): (Vec<Stat>, Vec<Stat>) = all.into_iter().partition(ours);
        // One that has neither any more (a child of php-fpm) is known by its parent.
        let mut index = 0;
        while let Some(parent) = found.get(index).map(|process| process.pid) {
            found.extend(others.extract_if(.., |process| process.ppid == parent));
            index += 1;
        }
        found
    }

    /// What the supervisor has logged.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        locked(&self.log.lines).clone()
    }

    /// The lines of the log that contain every one of `words`, in lower case.
    #[must_use]
    pub fn logged(&self, words: &[&str]) -> Vec<String> {
        let mut lines: Vec<String> = self.log().iter().map(|line| line.to_lowercase()).collect();
        lines.retain(|line| words.iter().all(|word| line.contains(word)));
        lines
    }

    /// What the workers have written to stdout.
    #[must_use]
    pub fn output(&self) -> Vec<String> {
        locked(&self.output.lines).clone()
    }

    /// What the workers said about themselves, in the order in which it came.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        self.output().iter().filter_map(|line| Event::parse(line)).collect()
    }

    /// The events of one name.
    #[must_use]
    pub fn events_named(&self, name: &str) -> Vec<Event> {
        self.events().into_iter().filter(|event| event.name == name).collect()
    }

    /// Waits for an event.
    ///
    /// # Panics
    /// When it does not come.
    pub fn await_event(&self, what: &str, mut wanted: impl FnMut(&Event) -> bool) -> Event {
        let found = self.until(what, || self.events().into_iter().find(&mut wanted));
        self.await_rest();
        found
    }

    /// Waits until `count` events of one name have come, and gives them.
    ///
    /// # Panics
    /// When they do not come.
    pub fn await_events(&self, count: usize, name: &str) -> Vec<Event> {
        let found = self.until(&format!("{count} workers said `{name}`"), || {
            Some(self.events_named(name)).filter(|found| found.len() >= count)
        });
        self.await_rest();
        found
    }

    /// Waits until `count` workers have said that they are ready, and gives their pids.
    ///
    /// # Panics
    /// When they do not.
    pub fn await_ready(&self, count: usize) -> BTreeSet<i32> {
        self.await_events(count, "ready").iter().map(|event| event.pid).collect()
    }

    /// Waits until the supervisor sleeps, or has ended. What a worker did before it said so has woken the supervisor
    /// then, so one look at it asleep means that it has dealt with that; only now may a signal be sent that must find
    /// the worker ready.
    pub fn await_rest(&self) {
        eventually(TIMEOUT, "the supervisor has nothing to do", || {
            self.exited().is_some()
                || process::stat(self.pid()).is_none_or(|found| found.state != 'R' && found.state != 'D')
        });
    }

    /// Waits until it has what it measures with, whose descriptors and memory count.
    pub fn await_measuring(&self) {
        self.eventually("it measures", || !self.logged(&["monitor: "]).is_empty());
    }

    /// Waits for the environment that some worker printed, matching `wanted`.
    ///
    /// # Panics
    /// When it does not come.
    pub fn await_environment(&self, mut wanted: impl FnMut(&serde_json::Value) -> bool) -> serde_json::Value {
        self.until("a worker printed its environment", || {
            let lines = self.output();
            let printed = lines.iter().filter_map(|line| line.strip_prefix("environment "));
            printed.filter_map(|text| serde_json::from_str(text).ok()).find(&mut wanted)
        })
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        let threads = if std::thread::panicking() { process::threads(self.wrapped) } else { Vec::new() };
        // Stopped first: it must not start another worker while its workers are being found. Found by mark, killed by
        // handle, until none is left.
        if self.exited().is_none() {
            process::signal(self.wrapped, Signal::STOP);
        }
        let start = Instant::now();
        loop {
            let left = self.marked();
            if left.is_empty() || start.elapsed() > scaled(Duration::from_secs(10)) {
                break;
            }
            left.into_iter().for_each(process::kill_exactly);
            std::thread::sleep(Duration::from_millis(2));
        }
        let mut child = locked(&self.child);
        let _ = child.kill();
        let _ = child.wait();
        drop(child);
        if std::thread::panicking() {
            let print = |what: &str, lines: Vec<String>| {
                let skipped = lines.len().saturating_sub(200);
                eprintln!("--- {what} ({} lines, {skipped} left out)", lines.len());
                lines[skipped..].iter().for_each(|line| eprintln!("{line}"));
            };
            print("the supervisor's log", self.log());
            print("the supervisor's threads", threads);
            print("the workers' output", self.output());
            eprintln!("---");
        }
    }
}

/// Waits until a process is gone, or a zombie.
///
/// # Panics
/// When it stays.
pub fn await_gone(pid: i32) {
    eventually(TIMEOUT, &format!("process {pid} is gone"), || !process::alive(pid));
}
