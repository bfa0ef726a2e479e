//! What it costs to look at a supervisor, and what clients that flood it cost its workers.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::running::Running;
use super::stats::{Summary, ratio, summary};
use super::subject::Subject;

/// A part of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// What answers about many workers cost.
    Answers,
    /// The list of many instances.
    List,
    /// Replacements during floods.
    Floods,
}

impl Part {
    pub(crate) const ALL: [(&'static str, Part); 3] =
        [("answers", Part::Answers), ("list", Part::List), ("floods", Part::Floods)];
}

/// What is run.
pub(crate) struct Options {
    pub(crate) parts: Vec<Part>,
    pub(crate) program: PathBuf,
    pub(crate) worker: PathBuf,
    pub(crate) listener: PathBuf,
    pub(crate) workers: u32,
    pub(crate) instances: u32,
    pub(crate) rounds: u32,
    /// A broken promise is a failure.
    pub(crate) check: bool,
}

/// The promises, in milliseconds of the supervisor's CPU time, of the command's time, and as a ratio. They are the goals, but
/// for the first, whose goal is 2.
const STATUS_MS: f64 = 4.0;
const SCRAPE_MS: f64 = 10.0;
const LIST_MS: f64 = 100.0;
const FLOOD_RATIO: f64 = 1.5;

/// The kills of each half of a round.
const KILLS: u32 = 10;

/// The connections of a flood that are open at a time.
const OPEN: usize = 1000;

/// The workers beside a flood.
const FEW: u32 = 4;

const TIMEOUT: Duration = Duration::from_secs(60);

/// The port of the workers that listen.
const PORT: &str = "18765";

/// A supervisor with both of its doors open.
pub(crate) struct Steered<'a> {
    pub(crate) program: &'a Path,
    pub(crate) folder: &'a Path,
    /// Whether its workers listen, and are ready when they do.
    pub(crate) listens: bool,
}

impl Steered<'_> {
    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

impl Subject for Steered<'_> {
    fn name(&self) -> &'static str {
        "master-process"
    }

    fn command(&self, workers: u32, worker: &Path) -> Command {
        let mut command = Command::new(self.program);
        command.args(["-w", &workers.to_string(), "--throttle", "0", "--throttle-max", "0"]);
        command.arg("--control").arg(self.socket("control.sock"));
        command.args(["--metrics", &format!("unix:{}", self.socket("metrics.sock").display())]);
        if !self.listens {
            command.args(["--ready", "none"]);
        }
        command.arg("--").arg(worker).args(self.listens.then_some(PORT));
        command
    }

    fn ends_its_workers(&self) -> bool {
        true
    }

    fn is_ours(&self) -> bool {
        true
    }
}

/// Measures, prints the table, and with `check` fails when a promise is broken.
pub(crate) fn run(options: &Options) -> Result<()> {
    let mut rows = Vec::new();
    if options.parts.contains(&Part::Answers) {
        rows.extend(answers(options)?);
    }
    if options.parts.contains(&Part::List) {
        rows.push(list(options)?);
    }
    if options.parts.contains(&Part::Floods) {
        rows.extend(floods(options)?);
    }
    println!("| | measured | promised |\n|---|---:|---:|");
    for Row { what, measured, most, unit, spread } in &rows {
        println!("| {what} | {measured:.2}{unit} ({spread}) | {most}{unit} |");
    }
    let broken: Vec<&Row> = rows.iter().filter(|row| row.measured > row.most).collect();
    for row in &broken {
        println!("BROKEN: {}: {:.2}{}, promised: {}{}", row.what, row.measured, row.unit, row.most, row.unit);
    }
    if options.check && !broken.is_empty() {
        bail!("{} promises are broken", broken.len());
    }
    Ok(())
}

struct Row {
    what: String,
    measured: f64,
    most: f64,
    unit: &'static str,
    spread: String,
}

impl Row {
    fn of_times(what: String, times: Vec<u64>, most: f64) -> Result<Row> {
        let Summary { median, low, high } = summary(times).context("nothing was measured")?;
        let ms = |ns: u64| ratio(ns, 1_000_000);
        let spread = format!("{:.2}–{:.2}", ms(low), ms(high));
        Ok(Row { what, measured: ms(median), most, unit: " ms", spread })
    }
}

/// The CPU time of an answer about many workers, each with a listener.
fn answers(options: &Options) -> Result<[Row; 2]> {
    let folder = tempfile::tempdir().context("a temporary folder")?;
    let steered = Steered { program: &options.program, folder: folder.path(), listens: true };
    let (running, _took) = Running::start(&steered, options.workers, &options.listener)?;
    let (control, metrics) = (steered.socket("control.sock"), steered.socket("metrics.sock"));
    let deadline = Instant::now() + TIMEOUT;
    let ready = format!("\"workers_ready\":{}", options.workers);
    while !status(&control).is_ok_and(|line| line.contains(&ready)) {
        ensure!(Instant::now() < deadline, "the workers are not ready");
        std::thread::sleep(Duration::from_millis(100));
    }
    let mut times = [Vec::new(), Vec::new()];
    // In turns: what else the machine does is the same for both.
    for _ in 0..options.rounds {
        times[0].push(cost(&running, || status(&control).map(|line| line.len()))?);
        times[1].push(cost(&running, || scrape(&metrics))?);
    }
    // The end of so many workers is not what is measured here.
    drop(running);
    let [of_status, of_scrape] = times;
    let workers = options.workers;
    Ok([
        Row::of_times(
            format!("CPU time of the supervisor for a `status` of {workers} workers"),
            of_status,
            STATUS_MS,
        )?,
        Row::of_times(
            format!("CPU time of the supervisor for a scrape of {workers} workers"),
            of_scrape,
            SCRAPE_MS,
        )?,
    ])
}

/// The CPU time of the supervisor for a request.
fn cost(running: &Running, request: impl FnOnce() -> Result<usize>) -> Result<u64> {
    let before = at_rest(running)?;
    let length = request()?;
    ensure!(length > 1000, "the answer has {length} bytes");
    Ok(at_rest(running)? - before)
}

/// Its CPU time, once it does nothing any more.
fn at_rest(running: &Running) -> Result<u64> {
    let deadline = Instant::now() + TIMEOUT;
    let mut before = running.cpu_ns()?;
    loop {
        std::thread::sleep(Duration::from_millis(100));
        let now = running.cpu_ns()?;
        if now == before {
            return Ok(now);
        }
        ensure!(Instant::now() < deadline, "the supervisor is never at rest");
        before = now;
    }
}

fn status(path: &Path) -> Result<String> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(b"{\"command\":\"status\"}\n")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(line)
}

fn scrape(path: &Path) -> Result<usize> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    ensure!(text.ends_with("# EOF\n"), "the scrape is not whole");
    Ok(text.len())
}

/// Supervisors that end with the benchmark.
struct Instances(Vec<Child>);

impl Drop for Instances {
    fn drop(&mut self) {
        for child in &self.0 {
            let _gone = kill_process(Pid::from_child(child), Signal::TERM);
        }
        for child in &mut self.0 {
            let _status = child.wait();
        }
    }
}

/// The time of `ls` over many instances.
fn list(options: &Options) -> Result<Row> {
    let folder = tempfile::tempdir().context("a temporary folder")?;
    let mut instances = Instances(Vec::new());
    for number in 0..options.instances {
        let mut command = Command::new(&options.program);
        command
            .args(["-q", "--ready", "none", "--name", &format!("bench-{number}"), "--"])
            .arg(&options.worker);
        command.env("RUNTIME_DIRECTORY", folder.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        instances.0.push(command.spawn().context("starting a supervisor")?);
    }
    let mut times = Vec::new();
    let deadline = Instant::now() + TIMEOUT;
    while times.len() < options.rounds as usize {
        let begun = Instant::now();
        let mut command = Command::new(&options.program);
        let listed = command.arg("ls").env("RUNTIME_DIRECTORY", folder.path()).output().context("ls")?;
        let took = begun.elapsed();
        let text = String::from_utf8_lossy(&listed.stdout);
        let known = text.lines().filter(|line| line.starts_with("bench-") && line.contains(" 1/1 ")).count();
        if known == options.instances as usize {
            times.push(u64::try_from(took.as_nanos())?);
        }
        ensure!(Instant::now() < deadline, "{known} of {} instances are ready", options.instances);
    }
    Row::of_times(format!("time of `ls` over {} instances", options.instances), times, LIST_MS)
}

/// The time from `kill -9` to the replacement's first instruction during a flood of connections, against two others: without
/// one, and during a flood of another supervisor, which takes the same of the machine. All three in turns.
fn floods(options: &Options) -> Result<Vec<Row>> {
    let (folder, aside) = (tempfile::tempdir(), tempfile::tempdir());
    let (folder, aside) = (folder.context("a temporary folder")?, aside.context("a temporary folder")?);
    let of = |folder| Steered { program: &options.program, folder, listens: false };
    let (steered, other) = (of(folder.path()), of(aside.path()));
    let (mut running, _took) = Running::start(&steered, FEW, &options.worker)?;
    let (bystander, _took) = Running::start(&other, FEW, &options.worker)?;
    let doors = [("the control socket", "control.sock"), ("the metrics", "metrics.sock")];
    for path in doors.iter().flat_map(|(_, name)| [steered.socket(name), other.socket(name)]) {
        let deadline = Instant::now() + TIMEOUT;
        while UnixStream::connect(&path).is_err() {
            ensure!(Instant::now() < deadline, "{} does not listen", path.display());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let mut ratios = [const { (Vec::new(), Vec::new()) }; 2];
    for _ in 0..options.rounds {
        for ((_, name), (of_none, of_other)) in doors.iter().zip(&mut ratios) {
            let quiet = replacements(&mut running)?;
            let elsewhere = during_a_flood(&other.socket(name), || replacements(&mut running))?;
            let flooded = during_a_flood(&steered.socket(name), || replacements(&mut running))?;
            // In thousandths.
            of_none.push(flooded * 1000 / quiet.max(1));
            of_other.push(flooded * 1000 / elsewhere.max(1));
        }
    }
    running.end()?;
    bystander.end()?;
    let row = |what: String, ratios: Vec<u64>| -> Result<Row> {
        let Summary { median, low, high } = summary(ratios).context("nothing was measured")?;
        let spread = format!("{:.2}–{:.2}", ratio(low, 1000), ratio(high, 1000));
        Ok(Row { what, measured: ratio(median, 1000), most: FLOOD_RATIO, unit: "", spread })
    };
    let mut rows = Vec::new();
    for ((door, _), (of_none, of_other)) in doors.into_iter().zip(ratios) {
        let what = format!(
            "replacement of a killed worker while {OPEN} connections of {door} are open and more come, against"
        );
        rows.push(row(format!("{what} none"), of_none)?);
        rows.push(row(format!("{what} the same at another supervisor"), of_other)?);
    }
    Ok(rows)
}

/// The median of some replacements, in nanoseconds.
fn replacements(running: &mut Running) -> Result<u64> {
    let times = (0..KILLS).map(|_| running.kill_one()).collect::<Result<Vec<u64>>>()?;
    Ok(summary(times).context("nothing was measured")?.median)
}

/// Opens connections without a pause meanwhile, and keeps the latest of them open.
fn during_a_flood<T>(path: &Path, measure: impl FnOnce() -> Result<T>) -> Result<T> {
    let (stop, begun) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut open = VecDeque::new();
            while !stop.load(Ordering::Relaxed) {
                open.extend(UnixStream::connect(path).ok());
                if open.len() > OPEN {
                    open.pop_front();
                    begun.store(true, Ordering::Relaxed);
                }
            }
        });
        let deadline = Instant::now() + TIMEOUT;
        while !begun.load(Ordering::Relaxed) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        let measured = measure();
        stop.store(true, Ordering::Relaxed);
        measured
    })
}
