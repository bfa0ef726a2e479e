//! One run of a command to its end, alone or as the only worker, walled in.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use master_process_tests::network;

/// With a supervisor or without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Alone,
    Worker,
}

impl Way {
    pub(super) const BOTH: [Way; 2] = [Way::Alone, Way::Worker];

    pub(super) fn name(self) -> &'static str {
        match self {
            Way::Alone => "alone",
            Way::Worker => "worker",
        }
    }
}

/// A command and what it finds.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) words: Vec<OsString>,
    pub(super) cwd: PathBuf,
    pub(super) env: Vec<(&'static str, OsString)>,
    /// After it everything is killed, and what was printed until then counts.
    pub(super) limit: Duration,
}

/// Where a job runs and leaves its traces.
pub(super) struct Site<'a> {
    /// The supervisor's program.
    pub(super) binary: &'a Path,
    /// A fresh folder: home and temporary files.
    pub(super) scratch: &'a Path,
    /// Of the files with what the command and the supervisor print, without an extension.
    pub(super) log: &'a Path,
}

/// Longer than every job: a command that has ended is not started again, and one that is never ready is not stopped.
const NEVER: &str = "5h";

/// The command with its output in the file `$1`; at the end, its exit status in the file `$0`.
const RECORD: &str = r#"status=$0 output=$1; shift; "$@" > "$output" 2>&1; echo $? > "$status""#;

/// The first process of a process namespace: it reaps the processes that it adopts, whichever way the job is run.
const INIT: &str = r#""$@"; exit"#;

/// Between two looks for the end. Jobs take seconds to minutes.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Runs a job in namespaces of its own, of processes, mounts and network: nothing outlives it, no port is taken, and
/// there is no way out to the world. Gives what it printed; running out of time is not an error.
pub(super) fn run(job: &Job, way: Way, site: &Site<'_>) -> Result<String> {
    // A thread of its own, which is the one that enters the network.
    thread::scope(|scope| scope.spawn(|| run_here(job, way, site)).join())
        .unwrap_or_else(|_| Err(anyhow!("the thread of a run panicked")))
}

fn run_here(job: &Job, way: Way, site: &Site<'_>) -> Result<String> {
    network::enter_own().map_err(|reason| anyhow!(reason))?;
    let (output, status) = (site.log.with_extension("output"), site.scratch.join("exit-status"));
    let supervisor_log = File::create(site.log.with_extension("supervisor")).context("making a log file")?;
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", INIT, "init"]);
    if way == Way::Worker {
        command.arg(site.binary).args(["--workers", "1", "--monitor", "off"]);
        command.args(["--throttle", NEVER, "--throttle-max", NEVER]);
        // No suite says READY=1, so the worker never counts as ready: else what it binds some seconds after its first
        // `listen` would not be shared, and most tests would test nothing.
        command.args(["--ready", "notify", "--ready-timeout", NEVER, "--"]);
    }
    command.args(["sh", "-c", RECORD]).arg(&status).arg(&output).args(&job.words);
    command.current_dir(&job.cwd).process_group(0);
    command.env_clear().envs([("LANG", "C.UTF-8"), ("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")]);
    command.env("HOME", site.scratch).env("TMPDIR", site.scratch);
    command.envs(job.env.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(supervisor_log);
    let mut walled = Walled(command.spawn().context("starting unshare")?);

    let begun = Instant::now();
    while !fs::read_to_string(&status).is_ok_and(|text| text.ends_with('\n')) {
        if let Some(ended) = walled.0.try_wait()? {
            // The job may have ended between the two looks.
            if status.exists() {
                break;
            }
            bail!("{} ended before the job ({ended}); see {}", way.name(), site.log.display());
        }
        if begun.elapsed() > job.limit {
            eprintln!("    out of time after {} s", job.limit.as_secs());
            break;
        }
        thread::sleep(LOOK_EVERY);
    }
    drop(walled);
    let printed = fs::read(&output).with_context(|| format!("reading {}", output.display()))?;
    Ok(String::from_utf8_lossy(&printed).into_owned())
}

/// The process whose death takes the namespace with it.
struct Walled(Child);

impl Drop for Walled {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
