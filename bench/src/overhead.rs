//! The supervisor beside the baseline, in one run on one machine: only the ratio means anything elsewhere.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use rustix::process::{Resource, Rlimit, getpid, getrlimit, set_child_subreaper, setrlimit};

use super::subject::{Baseline, Subject, Supervisor};
use super::{measure, memory, timing};
use xtask::run;

/// What is measured, and how often.
pub(crate) struct Options {
    pub(crate) start: bool,
    pub(crate) respawn: bool,
    pub(crate) memory: bool,
    pub(crate) measure: bool,
    pub(crate) workers: u32,
    pub(crate) rounds: u32,
    pub(crate) kills: u32,
    pub(crate) bursts: u32,
    /// A broken promise is a failure.
    pub(crate) check: bool,
    /// The baseline in place of the supervisor.
    pub(crate) noise: bool,
}

/// Measures, prints the tables, and with `check` fails when a promise is broken.
pub(crate) fn run(options: &Options) -> Result<()> {
    // Before the build of what is measured, which is no other program's load.
    let load = load_average();
    let (subjects, worker) = prepare(options.noise)?;
    // Workers that a subject leaves behind become children of this process, which ends them.
    set_child_subreaper(Some(getpid())).context("becoming a subreaper")?;
    // One descriptor for each worker, here and in the baseline.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
        .context("raising RLIMIT_NOFILE")?;

    warn_if_busy(load);

    let mut broken = Vec::new();
    if options.start || options.respawn {
        broken.extend(timing::measure(&subjects, &worker, options)?);
    }
    if options.memory {
        broken.extend(memory::measure(&subjects, &worker, options.workers)?);
    }
    if options.measure {
        broken.extend(measure::measure(&run::target_dir()?.join("release/master-process"), &worker)?);
    }
    for promise in &broken {
        println!("BROKEN: {promise}");
    }
    if broken.is_empty() {
        println!("bench: every promise that was measured is kept");
    } else if options.check {
        bail!("{} promises are broken", broken.len());
    }
    Ok(())
}

/// Builds what [`super::dense`] runs.
pub(crate) fn prepare_dense() -> Result<[PathBuf; 3]> {
    let (_subjects, worker) = prepare(false)?;
    let dir = run::target_dir()?;
    let host = dir.join("bench/host");
    compile("host.c", &host, &[])?;
    Ok([dir.join("release/master-process"), worker, host])
}

/// Builds what [`super::control`] runs. A binary that `MASTER_PROCESS_BIN` names is not built.
pub(crate) fn prepare_control() -> Result<[PathBuf; 3]> {
    warn_if_busy(load_average());
    let dir = run::target_dir()?;
    let (worker, _baseline) = build(&dir.join("bench"))?;
    let listener = dir.join("bench/listener");
    compile("listener.c", &listener, &[])?;
    let named = std::env::var_os("MASTER_PROCESS_BIN").filter(|path| !path.is_empty());
    let program = match named {
        Some(path) => PathBuf::from(path),
        None => {
            run::run(&mut run::cargo(["build", "--release", "--package", "master-process"]))?;
            dir.join("release/master-process")
        }
    };
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
        .context("raising RLIMIT_NOFILE")?;
    Ok([program, worker, listener])
}

/// Above this load other programs are what the benchmark measures: with two busy ones on two CPUs the baseline was seen
/// at 0.7 times itself.
const BUSY: f64 = 1.5;

fn warn_if_busy(load: Option<f64>) {
    if let Some(load) = load.filter(|load| *load > BUSY) {
        println!("the machine is busy (load {load:.1}): believe no ratio, see the spreads");
    }
}

/// How many threads wanted to run, over the last minute.
fn load_average() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}

/// Builds everything that will run. The first subject is what the others are compared with.
fn prepare(noise: bool) -> Result<(Vec<Box<dyn Subject>>, PathBuf)> {
    let target = run::target_dir()?;
    let (worker, baseline) = build(&target.join("bench"))?;
    let mut subjects: Vec<Box<dyn Subject>> =
        vec![Box::new(Baseline { name: "baseline", program: baseline.clone(), filters: false })];
    if noise {
        subjects.push(Box::new(Baseline { name: "baseline again", program: baseline, filters: false }));
    } else {
        subjects.push(Box::new(Baseline { name: "  with a filter", program: baseline, filters: true }));
        run::run(&mut run::cargo(["build", "--release", "--package", "master-process"]))?;
        let program = target.join("release/master-process");
        subjects.push(Box::new(Supervisor {
            name: "master-process",
            program: program.clone(),
            options: &[],
        }));
        // Once, before the first worker, eBPF is loaded: which takes milliseconds that have nothing to do with workers.
        let procfs = ["--monitor", "procfs"].as_slice();
        subjects.push(Box::new(Supervisor {
            name: "  --monitor procfs",
            program: program.clone(),
            options: procfs,
        }));
        let bare = ["--monitor", "procfs", "--share", "off"].as_slice();
        subjects.push(Box::new(Supervisor { name: "  the same, --share off", program, options: bare }));
    }
    Ok((subjects, worker))
}

/// Builds the worker and the baseline in a directory.
fn build(dir: &Path) -> Result<(PathBuf, PathBuf)> {
    std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let (worker, baseline) = (dir.join("worker"), dir.join("baseline"));
    // Stack protectors need the libc that is not there.
    compile("worker.c", &worker, &["-nostdlib", "-fno-stack-protector", "-fno-pie", "-no-pie"])?;
    // Static, so that its own start is not that of a loader.
    compile("baseline.c", &baseline, &[])?;
    Ok((worker, baseline))
}

fn compile(source: &str, program: &Path, flags: &[&str]) -> Result<()> {
    let source = run::root().join("bench/programs").join(source);
    run::run(
        Command::new("cc")
            .args(["-O2", "-static", "-Wall", "-Wextra", "-Werror"])
            .args(flags)
            .arg("-o")
            .arg(program)
            .arg(source),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::running::Running;

    /// The baseline, under a name and with a claim of the test's choice.
    struct Claims {
        baseline: Baseline,
        ends_its_workers: bool,
    }

    impl Subject for Claims {
        fn name(&self) -> &str {
            self.baseline.name()
        }

        fn command(&self, workers: u32, worker: &Path) -> Command {
            self.baseline.command(workers, worker)
        }

        fn ends_its_workers(&self) -> bool {
            self.ends_its_workers
        }

        fn is_ours(&self) -> bool {
            false
        }
    }

    /// A directory of its own for each test: they run at the same time, and one must not run what another writes.
    fn prepared(test: &str) -> Result<(Baseline, PathBuf)> {
        let dir = std::env::temp_dir().join(format!("xtask-bench-{}-{test}", std::process::id()));
        let (worker, program) = build(&dir)?;
        set_child_subreaper(Some(getpid()))?;
        Ok((Baseline { name: "baseline", program, filters: false }, worker))
    }

    fn cleaned(worker: &Path) -> Result<()> {
        Ok(std::fs::remove_dir_all(worker.parent().context("the worker lies in no directory")?)?)
    }

    #[test]
    fn the_baseline_starts_replaces_and_is_ended_with_its_workers() -> Result<()> {
        let (baseline, worker) = prepared("baseline")?;
        let (mut running, start) = Running::start(&baseline, 5, &worker)?;
        assert!(start > 0);
        for _ in 0..7 {
            assert!(running.kill_one()? > 0);
        }
        assert!(running.kill_all()? > 0);
        assert!(running.pss_kib()? > 0);
        // It succeeds only when no process holds the workers' output.
        running.end()?;
        cleaned(&worker)
    }

    #[test]
    fn a_subject_that_leaves_its_workers_behind_is_found_out() -> Result<()> {
        let (baseline, worker) = prepared("leaves")?;
        let (running, _) = Running::start(&Claims { baseline, ends_its_workers: true }, 3, &worker)?;
        let error = running.end().err().context("the failure was not noticed")?;
        assert_eq!(error.to_string(), "baseline left 3 workers behind");
        cleaned(&worker)
    }

    #[test]
    fn a_subject_that_ends_early_is_an_error_and_not_a_hang() -> Result<()> {
        let (_, worker) = prepared("early")?;
        let early = Baseline { name: "early", program: "/bin/true".into(), filters: false };
        let error = Running::start(&early, 2, &worker).err().context("the failure was not noticed")?;
        assert_eq!(error.to_string(), "early ended with 0 of 2 workers started");
        cleaned(&worker)
    }
}
