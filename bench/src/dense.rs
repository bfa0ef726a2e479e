//! Hundreds of supervisors on one machine: what one of them weighs, what all of them cost at rest, and what they make the
//! rest of the host pay.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::stats::ratio;

/// What is run, and how much of it.
pub(crate) struct Options {
    pub(crate) program: PathBuf,
    pub(crate) worker: PathBuf,
    pub(crate) host: PathBuf,
    pub(crate) supervisors: u32,
    pub(crate) workers: u32,
    /// Times that the host is measured with and without them, in turns.
    pub(crate) pairs: u32,
}

/// How long all supervisors are watched at rest.
const WATCHED: Duration = Duration::from_secs(20);

/// How long they have after the start: they give memory back when they have come to rest.
const AFTER_START: Duration = Duration::from_secs(10);

/// How long hundreds of starts may take on a small machine.
const TIMEOUT: Duration = Duration::from_secs(300);

/// The parts of the host's work that are measured, each in nanoseconds: see `host`.
const PARTS: [&str; 3] = ["round trip of two processes on one CPU", "a signal", "fork and exit"];

/// Measures and prints both sources, in turns with the host alone.
pub(crate) fn run(options: &Options) -> Result<()> {
    let Options { supervisors, workers, .. } = *options;
    println!("{supervisors} supervisors with {workers} idle workers each\n");
    println!("{:<54}{:>20}{:>20}", "", "procfs", "eBPF");
    let procfs = Measured::take(options, "procfs")?;
    // eBPF as it is by default: loaded after the first workers have been started.
    let ebpf = Measured::take(options, "auto")?;
    let row = |what: &str, of: &dyn Fn(&Measured) -> String| {
        println!("{what:<54}{:>20}{:>20}", of(&procfs), of(&ebpf));
    };
    row("memory of one (PSS), KiB", &|of| of.pss_kib.to_string());
    row("kernel memory that measuring takes, KiB", &|of| {
        of.kernel_kib.map_or_else(|| "unknown".to_owned(), |kib| kib.to_string())
    });
    row("CPU time of all at rest, ms in a second", &|of| format!("{:.2}", of.rest_ms));
    row("wake-ups of all at rest, in a second", &|of| format!("{:.1}", of.wakes));
    row("start of all at once, s", &|of| format!("{:.1}", of.start.as_secs_f64()));
    row("CPU time of all for that, s", &|of| format!("{:.1}", of.start_cpu.as_secs_f64()));
    row("reload of all at once, s", &|of| format!("{:.1}", of.reload.as_secs_f64()));
    for (number, part) in PARTS.iter().enumerate() {
        row(&format!("{part}, beside them / without"), &|of| {
            let Spread { median, low, high } = of.host[number];
            format!("{median:.2} ({low:.2}–{high:.2})")
        });
    }
    Ok(())
}

/// The median of some ratios, the lowest and the highest.
#[derive(Clone, Copy)]
struct Spread {
    median: f64,
    low: f64,
    high: f64,
}

impl Spread {
    fn of(mut ratios: Vec<f64>) -> Spread {
        ratios.sort_by(f64::total_cmp);
        let at = |index: usize| ratios.get(index).copied().unwrap_or(f64::NAN);
        Spread { median: at(ratios.len() / 2), low: at(0), high: at(ratios.len().saturating_sub(1)) }
    }
}

/// The numbers of one source.
struct Measured {
    pss_kib: u64,
    kernel_kib: Option<i64>,
    rest_ms: f64,
    wakes: f64,
    start: Duration,
    start_cpu: Duration,
    reload: Duration,
    host: [Spread; 3],
}

impl Measured {
    fn take(options: &Options, source: &'static str) -> Result<Measured> {
        let mut ratios = [const { Vec::new() }; 3];
        let mut first = None;
        let mut before = host(&options.host)?;
        for _ in 0..options.pairs {
            let begun = Instant::now();
            let all = Supervisors::start(options, source)?;
            let (start, start_cpu) = (begun.elapsed(), all.cpu()?);
            // What they do after the start is over.
            std::thread::sleep(AFTER_START);
            let with = host(&options.host)?;
            if first.is_none() {
                let (rest_ms, wakes) = all.at_rest()?;
                let (pss_kib, kernel_kib) = (all.pss_kib()?, measuring_kib(options, source)?);
                let reload = all.reload(options.workers)?;
                first = Some((pss_kib, kernel_kib, rest_ms, wakes, start, start_cpu, reload));
            }
            drop(all);
            // The host without them is measured before and after, since it becomes faster and slower by itself.
            let after = host(&options.host)?;
            for (number, ratios) in ratios.iter_mut().enumerate() {
                ratios.push(ratio(2 * with[number], before[number] + after[number]));
            }
            before = after;
        }
        let (pss_kib, kernel_kib, rest_ms, wakes, start, start_cpu, reload) =
            first.context("--pairs is at least 1")?;
        let host = ratios.map(Spread::of);
        Ok(Measured { pss_kib, kernel_kib, rest_ms, wakes, start, start_cpu, reload, host })
    }
}

/// Starts a supervisor by a command that takes its arguments.
fn supervisor(mut command: Command, options: &Options, source: &str) -> Result<Child> {
    command.args(["-q", "-w", &options.workers.to_string(), "--ready", "none", "--monitor", source]);
    command.arg("--").arg(&options.worker);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().context("starting a supervisor")
}

/// Supervisors that end with the benchmark.
struct Supervisors(Vec<Child>);

impl Supervisors {
    /// Starts all of them, and waits until each has its workers.
    fn start(options: &Options, source: &str) -> Result<Supervisors> {
        let mut all = Supervisors(Vec::new());
        for _ in 0..options.supervisors {
            all.0.push(supervisor(Command::new(&options.program), options, source)?);
        }
        all.await_workers(options.workers, &[])?;
        Ok(all)
    }

    /// Waits until each supervisor has this many workers, none of which is in `old`.
    fn await_workers(&self, workers: u32, old: &[u32]) -> Result<()> {
        let deadline = Instant::now() + TIMEOUT;
        for child in &self.0 {
            loop {
                let now = children(child.id());
                if now.len() == workers as usize && !now.iter().any(|pid| old.binary_search(pid).is_ok()) {
                    break;
                }
                ensure!(Instant::now() < deadline, "the workers of {} do not run", child.id());
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(())
    }

    /// The CPU time that all have used, without their workers.
    fn cpu(&self) -> Result<Duration> {
        let each = self.0.iter().map(|child| cpu_of(child.id()));
        each.sum::<Result<Duration>>()
    }

    /// CPU milliseconds and wake-ups in a second.
    fn at_rest(&self) -> Result<(f64, f64)> {
        let before = (self.cpu()?, self.wakes()?);
        std::thread::sleep(WATCHED);
        let after = (self.cpu()?, self.wakes()?);
        let seconds = WATCHED.as_secs_f64();
        Ok(((after.0 - before.0).as_secs_f64() * 1e3 / seconds, ratio(after.1 - before.1, 1) / seconds))
    }

    fn wakes(&self) -> Result<u64> {
        let each = self.0.iter().map(|child| of_threads(child.id(), "status", "voluntary_ctxt_switches:"));
        each.sum::<Result<u64>>()
    }

    /// The mean of the proportional set sizes.
    fn pss_kib(&self) -> Result<u64> {
        let each = self.0.iter().map(|child| {
            let path = format!("/proc/{}/smaps_rollup", child.id());
            number_after(&std::fs::read_to_string(&path).context(path)?, "Pss:")
        });
        Ok(each.sum::<Result<u64>>()? / self.0.len().max(1) as u64)
    }

    fn reload(&self, workers: u32) -> Result<Duration> {
        let mut old: Vec<u32> = self.0.iter().flat_map(|child| children(child.id())).collect();
        old.sort_unstable();
        let begun = Instant::now();
        for child in &self.0 {
            kill_process(Pid::from_child(child), Signal::HUP)?;
        }
        self.await_workers(workers, &old)?;
        Ok(begun.elapsed())
    }
}

impl Drop for Supervisors {
    fn drop(&mut self) {
        for child in &self.0 {
            let _gone = kill_process(Pid::from_child(child), Signal::TERM);
        }
        for child in &mut self.0 {
            let _status = child.wait();
        }
    }
}

fn children(pid: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// The CPU time of all threads, to the nanosecond: proc_pid_schedstat(5).
fn cpu_of(pid: u32) -> Result<Duration> {
    of_threads(pid, "schedstat", "").map(Duration::from_nanos)
}

/// The sum over all threads of the number that follows this text in a file.
fn of_threads(pid: u32, file: &str, after: &str) -> Result<u64> {
    let mut sum = 0;
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).context("a supervisor has ended")? {
        // A thread may have ended meanwhile.
        let Ok(text) = std::fs::read_to_string(thread?.path().join(file)) else { continue };
        sum += number_after(&text, after)?;
    }
    Ok(sum)
}

fn number_after(text: &str, after: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(after));
    let number = line.and_then(|line| line.split_whitespace().next()).and_then(|word| word.parse().ok());
    number.with_context(|| format!("no number after {after:?}"))
}

/// The kernel memory that is charged to one more supervisor because it measures; `None` where there is no cgroup for it.
fn measuring_kib(options: &Options, source: &str) -> Result<Option<i64>> {
    let of = |source| charged_kib(options, source);
    Ok(of(source)?.zip(of("off")?).map(|(with, without)| with - without))
}

/// The kernel memory of a supervisor and its workers in a cgroup of their own.
fn charged_kib(options: &Options, source: &str) -> Result<Option<i64>> {
    let name = format!("master-process-bench-{}", std::process::id());
    // The second is version 1, in which the controllers have a hierarchy each.
    let places = [("/sys/fs/cgroup", "memory.stat"), ("/sys/fs/cgroup/memory", "memory.kmem.usage_in_bytes")];
    for (root, file) in places {
        let cgroup = Path::new(root).join(&name);
        if std::fs::create_dir(&cgroup).is_err() {
            continue;
        }
        let charged = if cgroup.join(file).exists() {
            charged_in(options, source, &cgroup, file).map(Some)
        } else {
            Ok(None)
        };
        std::fs::remove_dir(&cgroup).with_context(|| format!("removing {}", cgroup.display()))?;
        if let Some(kib) = charged? {
            return Ok(Some(kib));
        }
    }
    Ok(None)
}

fn charged_in(options: &Options, source: &str, cgroup: &Path, file: &str) -> Result<i64> {
    let mut shell = Command::new("sh");
    shell.args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""]).arg(cgroup).arg(&options.program);
    let all = Supervisors(vec![supervisor(shell, options, source)?]);
    all.await_workers(options.workers, &[])?;
    // What it does after the start is over.
    std::thread::sleep(AFTER_START);
    let text = std::fs::read_to_string(cgroup.join(file)).context("reading what is charged")?;
    drop(all);
    // Version 2 has lines with names, version 1 the number alone.
    let bytes = number_after(&text, "kernel ").or_else(|_| number_after(&text, ""))?;
    Ok(i64::try_from(bytes / 1024)?)
}

/// What the rest of the host pays, in nanoseconds, in the order of [`PARTS`].
fn host(program: &Path) -> Result<[u64; 3]> {
    let output = Command::new(program).output().context("starting the program that measures the host")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let numbers: Vec<u64> = text.lines().filter_map(|line| line.parse().ok()).collect();
    numbers.try_into().map_err(|_| anyhow!("it prints {text:?} instead of three numbers"))
}
