//! One program, run by itself and as a worker: what it does by itself is what it must do as a worker.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use master_process_tests::load::{Load, Outcome, Tally};
use master_process_tests::traffic::pass;
use master_process_tests::{Supervisor, TIMEOUT, await_some, process, scaled};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::network;

/// A busy machine may need longer than the default to answer what an old worker has accepted; and a crash on purpose
/// is not to cost a second.
pub(crate) const OPTIONS: [&str; 4] = ["--drain", "1s", "--throttle", "100ms"];

/// Between two requests of one client: the programs that start during a reload need most of a small machine.
pub(crate) const PACE: Duration = Duration::from_millis(5);

/// How long the kernel may take to end what was killed.
const GONE_WITHIN: Duration = Duration::from_secs(5);

/// Requests that must be answered before the first reload, and after each one.
const REQUESTS: u64 = 50;

/// A program that runs: by itself or under a supervisor.
pub(crate) trait Running {
    /// The lines that it, or every worker, has written to stdout.
    fn lines(&self) -> Vec<String>;

    /// Whether it, or its supervisor, has not ended.
    fn is_running(&self) -> bool;

    /// Waits until `look` finds something, and fails when the program ends before.
    fn wait_for<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        await_some(TIMEOUT, what, || {
            let found = look();
            assert!(found.is_some() || self.is_running(), "the program ended before: {what}");
            found
        })
    }

    /// The first line of stdout that begins with this word, without it.
    fn said(&self, word: &str) -> String {
        self.wait_for(&format!("it says `{word}`"), || {
            self.lines().iter().find_map(|line| Some(line.strip_prefix(word)?.trim().to_owned()))
        })
    }
}

impl Running for Supervisor {
    fn lines(&self) -> Vec<String> {
        self.output()
    }

    fn is_running(&self) -> bool {
        self.exited().is_none()
    }
}

/// A program without a supervisor. Dropped, it and its descendants are killed.
pub(crate) struct Alone {
    child: Child,
    output: PathBuf,
    _folder: TempDir,
}

impl Alone {
    pub(crate) fn start(command: &[String], env: &[(&str, &str)]) -> Alone {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let output = folder.path().join("output");
        let file = File::create(&output).expect("the folder can be written");
        let mut program = Command::new(&command[0]);
        program.args(&command[1..]).env("WORKER_INDEX", "0").env("RELOAD_INDEX", "0");
        program.envs(env.iter().copied()).stdin(Stdio::null()).stdout(file);
        let child = program.spawn().unwrap_or_else(|error| panic!("{}: {error}", command[0]));
        Alone { child, output, _folder: folder }
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("pids are small")
    }

    /// Waits for its end.
    pub(crate) fn ended(&mut self, what: &str) -> ExitStatus {
        await_some(TIMEOUT, what, || self.child.try_wait().expect("it is our child"))
    }

    /// TERM, and the end.
    pub(crate) fn stop(mut self) {
        process::signal(self.pid(), Signal::TERM);
        self.ended("it ends by SIGTERM");
    }

    pub(crate) fn descendants(&self) -> Vec<process::Stat> {
        process::descendants(self.pid())
    }
}

impl Running for Alone {
    fn lines(&self) -> Vec<String> {
        fs::read_to_string(&self.output).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    fn is_running(&self) -> bool {
        process::alive(self.pid())
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        // Stopped first: it must not fork while its children are being found.
        process::signal(self.pid(), Signal::STOP);
        let descendants = self.descendants();
        descendants.iter().copied().for_each(process::kill_exactly);
        let _ = self.child.kill();
        let _ = self.child.wait();
        let start = Instant::now();
        while start.elapsed() < scaled(GONE_WITHIN) && descendants.iter().any(|one| process::alive(one.pid)) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A program and its options under a supervisor.
pub(crate) fn supervised(options: &[&str], command: &[String]) -> Supervisor {
    Supervisor::builder().args(OPTIONS).args(options).command(command).spawn()
}

/// The result of a request, by whatever protocol.
pub(crate) trait Client: Fn() -> Outcome + Clone + Send + 'static {}
impl<C: Fn() -> Outcome + Clone + Send + 'static> Client for C {}

/// Waits until the program answers. What it did instead is in the output of a test that fails.
pub(crate) fn answers(program: &impl Running, client: &impl Client) {
    let mut last = None;
    program.wait_for("it answers", || {
        let outcome = client();
        if matches!(outcome, Outcome::Ok(_)) {
            return Some(());
        }
        if last.as_ref() != Some(&outcome) {
            println!("no answer yet: {outcome:?}");
        }
        last = Some(outcome);
        None
    });
}

/// Clients that send requests all the time, at a pace that leaves CPU time to others.
pub(crate) fn load(clients: usize, client: &impl Client) -> Load {
    Load::repeat(clients, || {
        let client = client.clone();
        move || {
            let outcome = client();
            std::thread::sleep(PACE);
            outcome
        }
    })
}

fn no_failure(tally: &Tally) {
    assert_eq!(tally.lost() + tally.inexcusable(), 0, "{tally}");
}

/// Runs the program alone, under the same clients: what fails here is a fault of the test.
pub(crate) fn alone_serves(command: &[String], clients: usize, client: &impl Client) {
    println!("alone");
    network::enter();
    let alone = Alone::start(command, &[]);
    answers(&alone, client);
    let clients = load(clients, client);
    alone.wait_for("requests are served", || (clients.tally().served() >= REQUESTS).then_some(()));
    no_failure(&clients.stop());
    alone.stop();
}

/// Reloads this many times under load. No request fails, and each generation has its share.
pub(crate) fn reloads(
    supervisor: &Supervisor,
    workers: usize,
    count: usize,
    clients: usize,
    client: &impl Client,
) {
    supervisor.await_workers(workers);
    let clients = load(clients, client);
    pass(supervisor, &clients, REQUESTS);
    for _ in 0..count {
        supervisor.reload(workers);
        pass(supervisor, &clients, REQUESTS);
    }
    let tally = clients.stop();
    println!("{count} reloads: {tally}");
    no_failure(&tally);
    assert!(tally.ok.len() > count, "every generation has answered: {tally}");
}

/// A program that answers with its pid: alone, as several workers, and in several reloads.
pub(crate) fn serves_and_reloads(workers: usize, count: usize, command: &[String], client: &impl Client) {
    const CLIENTS: usize = 6;
    alone_serves(command, CLIENTS, client);
    println!("as {workers} workers");
    network::enter();
    let supervisor = supervised(&["-w", &workers.to_string()], command);
    answers(&supervisor, client);
    reloads(&supervisor, workers, count, CLIENTS, client);
    assert_eq!(supervisor.stop(), 0);
}

/// Writes a file of the test's own, and gives its path as text.
pub(crate) fn write(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    fs::write(&path, text).expect("the folder is the test's own");
    text_of(&path)
}

/// A path as text.
pub(crate) fn text_of(path: &Path) -> String {
    path.to_str().expect("paths of the tests are UTF-8").to_owned()
}

/// The words of a command line.
pub(crate) fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}
