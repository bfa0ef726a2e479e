//! Other projects' test suites as the only worker, against the same suites alone.

mod batch;
mod cpython;
mod go;
mod job;
mod known;
mod libevent;
mod libuv;
mod node;
mod redis;
mod report;
mod rounds;
mod ruby;
mod sources;
mod suite;
mod tokio;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use self::job::{Site, Way};
use self::report::Report;
use self::rounds::{MAX_ROUNDS, Rounds, Verdict};
use self::suite::{Results, Selection, Suite};
use crate::{run, tools};

/// The names of the suites, for the command line.
pub(crate) fn names() -> Vec<&'static str> {
    suite::all().iter().map(|suite| suite.name()).collect()
}

/// What the suites take that are named.
pub(crate) fn needs(named: &[&str]) -> Vec<tools::Need> {
    suite::all()
        .iter()
        .filter(|suite| named.contains(&suite.name()))
        .flat_map(|suite| suite.needs())
        .collect()
}

/// Runs the suites that are named, or all, prints what differs, and fails when a difference is not known. `built`: the
/// binary that is tested; without it, the one named in `MASTER_PROCESS_BIN`, or one built now.
pub(crate) fn run<S: AsRef<str>>(named: &[S], built: Option<&Path>) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("only root can make the namespaces that the suites run in");
    }
    let cache = run::target_dir()?.join("conformance");
    fs::create_dir_all(&cache).context("making the folder of the suites")?;
    let folder = tempfile::tempdir_in(&cache).context("making a folder for the binary")?;
    let binary = binary(folder.path(), built)?;
    let mut reports = Vec::new();
    for suite in suite::all() {
        if named.is_empty() || named.iter().any(|name| name.as_ref() == suite.name()) {
            println!("==> {}", suite.name());
            let report = compare(suite.as_ref(), &cache, &binary).unwrap_or_else(|error| {
                println!("    not run: {error:#}");
                Report::failed(suite.name(), &error)
            });
            report.print();
            reports.push(report);
        }
    }
    report::table(&reports);
    let unknown: usize = reports.iter().map(Report::unknown).sum();
    let not_run = reports.iter().filter(|report| report.is_failed()).count();
    if unknown + not_run > 0 {
        bail!("{unknown} unknown differences, {not_run} suites not run");
    }
    Ok(())
}

/// A copy of the binary that is tested, which no build replaces between two runs.
fn binary(folder: &Path, built: Option<&Path>) -> Result<PathBuf> {
    let named = std::env::var_os("MASTER_PROCESS_BIN").filter(|path| !path.is_empty()).map(PathBuf::from);
    let built = match built.map(Path::to_owned).or(named) {
        Some(path) => path,
        None => {
            run::run(&mut run::cargo(["build", "--release", "--package", "master-process"]))?;
            run::target_dir()?.join("release/master-process")
        }
    };
    let copy = folder.join("master-process");
    fs::copy(&built, &copy).with_context(|| format!("copying {}", built.display()))?;
    Ok(copy)
}

/// Runs a suite in both ways, and again what differed, until it is clear what differs.
fn compare(suite: &dyn Suite, cache: &Path, binary: &Path) -> Result<Report> {
    tools::install(&suite.needs())?;
    suite.prepare(cache)?;
    let begun = Instant::now();
    let mut rounds = Rounds::default();
    let mut first = None;
    for round in 0..MAX_ROUNDS {
        let open = rounds.with(Verdict::Open);
        if round > 0 && open.is_empty() {
            break;
        }
        let selection = Some(&open).filter(|_| round > 0 && !suite.reruns_everything());
        let mut results = Vec::new();
        for way in Way::BOTH {
            results.push(once(suite, cache, binary, way, round, selection)?);
        }
        if let [alone, worker] = results.as_slice() {
            rounds.add(alone, worker);
        }
        first.get_or_insert_with(|| begun.elapsed());
    }
    Ok(Report::of(suite.name(), &rounds, first.unwrap_or_default(), begun.elapsed()))
}

/// One run of a suite.
fn once(
    suite: &dyn Suite,
    cache: &Path,
    binary: &Path,
    way: Way,
    round: usize,
    selection: Selection<'_>,
) -> Result<Results> {
    let logs = cache.join("logs");
    fs::create_dir_all(&logs).context("making the folder of the logs")?;
    // Short: the paths of Unix sockets are below it.
    let scratch = tempfile::Builder::new().prefix("c").tempdir().context("making a folder for a suite")?;
    let log = logs.join(format!("{}-{round}-{}", suite.name(), way.name()));
    let site = Site { binary, scratch: scratch.path(), log: &log };
    let begun = Instant::now();
    let results = suite.read(&job::run(&suite.job(cache, scratch.path(), selection)?, way, &site)?);
    println!(
        "    round {round}, {}: {} tests in {:.1} s",
        way.name(),
        results.len(),
        begun.elapsed().as_secs_f64()
    );
    // As a worker, it is a difference in all of them.
    if way == Way::Alone && results.is_empty() {
        bail!("no results alone; see {}.output", log.display());
    }
    Ok(results)
}
