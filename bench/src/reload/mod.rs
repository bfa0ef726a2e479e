//! What clients see of reloads and deaths: real programs under the real supervisor, every outcome counted.
//!
//! What promises are about is what the supervisor does by default. The tables are those of `docs/benchmarks.md`.

mod calls;
mod clients;
mod cost;
mod kill;
mod orphans;
mod program;
mod rolling;
mod site;
mod spread;

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::builder::{PossibleValuesParser, TypedValueParser};

use program::Programs;
use xtask::{run, tools};

/// One thing that can be measured by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Reload,
    Kill,
    Orphans,
    Spread,
    Cost,
    Calls,
}

impl Part {
    /// In the order in which they are shown.
    pub(crate) const ALL: [Part; 6] =
        [Part::Reload, Part::Kill, Part::Orphans, Part::Spread, Part::Cost, Part::Calls];

    fn name(self) -> &'static str {
        match self {
            Part::Reload => "reload",
            Part::Kill => "kill",
            Part::Orphans => "orphans",
            Part::Spread => "spread",
            Part::Cost => "cost",
            Part::Calls => "calls",
        }
    }

    /// For the command line.
    pub(crate) fn parser() -> impl TypedValueParser<Value = Part> {
        PossibleValuesParser::new(Part::ALL.map(Part::name)).try_map(|name| {
            Part::ALL.into_iter().find(|part| part.name() == name).context("clap has checked the name")
        })
    }
}

/// What is measured.
pub(crate) struct Options {
    /// Of each row of the reloads, at least.
    pub(crate) requests: u64,
    pub(crate) parts: Vec<Part>,
    /// Words one of which a program's name must contain; none: all programs.
    pub(crate) programs: Vec<String>,
    /// A broken promise is a failure.
    pub(crate) check: bool,
}

/// What one part has found.
#[derive(Default)]
struct Section {
    /// Markdown.
    text: String,
    /// What was promised and is not so.
    broken: Vec<String>,
}

/// Measures, prints the tables, and with `check` fails when a promise is broken.
pub(crate) fn run(options: &Options) -> Result<()> {
    let target = run::target_dir()?;
    if let Err(error) = tools::install(&[tools::for_fixtures(), tools::for_reloads()].concat()) {
        eprintln!("some programs will be left out: {error:#}");
    }
    let binary = settle_binary(&target)?;
    let programs = Programs::new(target.join("bench"), &options.programs);
    let sections: Vec<Section> = Part::ALL
        .into_iter()
        .filter(|part| options.parts.contains(part))
        .map(|part| {
            eprintln!("==> {}", part.name());
            match part {
                Part::Reload => rolling::measure(&programs, options.requests),
                Part::Kill => kill::measure(&programs),
                Part::Orphans => orphans::measure(&programs),
                Part::Spread => spread::measure(&programs),
                Part::Cost => cost::measure(&programs),
                Part::Calls => calls::measure(),
            }
        })
        .collect();

    println!("<!-- reload -->\n{}", heading(&binary));
    for section in &sections {
        println!("\n{}", section.text.trim_end());
    }
    println!("<!-- /reload -->");
    let broken: Vec<&String> = sections.iter().flat_map(|section| &section.broken).collect();
    for promise in &broken {
        println!("BROKEN: {promise}");
    }
    if options.check && !broken.is_empty() {
        bail!("{} promises are broken", broken.len());
    }
    Ok(())
}

/// The harness of the tests takes its binary from here.
const BINARY: &str = "MASTER_PROCESS_BIN";

/// Makes the harness run a copy of the binary, which no build replaces meanwhile: the one that was named, or
/// one built now. The harness reads its environment, which only a new program image can change without `unsafe`, so
/// at first this function starts this program again and does not return.
pub(crate) fn settle_binary(target: &Path) -> Result<PathBuf> {
    let copy = target.join("bench/master-process");
    let named = env::var_os(BINARY).filter(|path| !path.is_empty()).map(PathBuf::from);
    if named.as_ref() == Some(&copy) {
        return Ok(copy);
    }
    let built = match named {
        Some(path) => path,
        None => {
            run::run(&mut run::cargo(["build", "--release", "--package", "master-process"]))?;
            target.join("release/master-process")
        }
    };
    fs::create_dir_all(target.join("bench")).context("making the benchmark's folder")?;
    // Beside it and moved: one that still runs from an interrupted benchmark cannot be written to.
    let fresh = target.join("bench/master-process.new");
    fs::copy(&built, &fresh).with_context(|| format!("copying {}", built.display()))?;
    fs::rename(&fresh, &copy).context("moving the copy to its place")?;
    let error = Command::new("/proc/self/exe").args(env::args_os().skip(1)).env(BINARY, &copy).exec();
    Err(error).context("starting this program again")
}

fn heading(binary: &Path) -> String {
    let date = run::output("date", &["-u", "+%Y-%m-%d"]).unwrap_or_default();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let version = run::output(binary, &["--version"]).unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "Made by `cargo xtask bench reload` on {}, with {}, Linux {}, {cpus} CPUs, all of it on the loopback network.",
        date.trim(),
        version.trim(),
        kernel.trim()
    )
}

/// A table in Markdown: the first row is its head, the first column text, the others numbers.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        let _ = writeln!(text, "| {} |", row.join(" | "));
        if index == 0 {
            let _ = writeln!(text, "|---|{}", "---:|".repeat(row.len().saturating_sub(1)));
        }
    }
    text
}

/// A row whose measurement could not be made.
fn left_out(name: &str, columns: usize, why: &str) -> Vec<String> {
    let mut row = vec![format!("{name}: left out, {why}")];
    row.resize(columns, "–".into());
    row
}

pub(crate) fn row<const N: usize>(cells: [&dyn std::fmt::Display; N]) -> Vec<String> {
    cells.iter().map(ToString::to_string).collect()
}

/// What a measurement gives, or why it gave nothing: the harness panics, with the supervisor's log on standard error,
/// and the other rows are wanted all the same.
fn caught<T>(measure: impl FnOnce() -> Result<T>) -> Result<T> {
    let unwind = std::panic::catch_unwind(std::panic::AssertUnwindSafe(measure));
    unwind.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        bail!("{}", text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_its_rule_below_its_head() {
        let rows = [row([&"program", &"failed"]), row([&"node", &0])];
        assert_eq!(table(&rows), "| program | failed |\n|---|---:|\n| node | 0 |\n");
    }

    #[test]
    fn a_panic_of_the_harness_is_a_result() {
        let error = caught::<()>(|| panic!("not within 30s: {}", "a worker")).err().map(|e| e.to_string());
        assert_eq!(error.as_deref(), Some("not within 30s: a worker"));
    }
}
