//! Everything that CI checks, in one command.

use std::fmt::Write as _;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::{conformance, docs, ebpf, run, tools};

type Work = Box<dyn Fn() -> Result<()>>;

/// Runs every step, also after one that failed, so that the result is complete.
pub(crate) fn run() -> Result<()> {
    let mut done = Vec::new();
    for (name, work) in steps()? {
        println!("==> {name}");
        let begun = Instant::now();
        let result = work();
        let took = begun.elapsed();
        match &result {
            Ok(()) => println!("<== {name}: ok in {}\n", seconds(took)),
            Err(error) => println!("<== {name}: FAILED after {}: {error:#}\n", seconds(took)),
        }
        let failed = result.is_err();
        done.push((name, took, failed));
        // Without its tools nothing after it says anything about the code.
        if failed && name == TOOLS {
            break;
        }
    }
    summary(&done)
}

const TOOLS: &str = "tools";

/// The suites of other projects that take about a minute or less, what has to be fetched and built included. Those of
/// Node are not among them: they must be of the version of the installed Node, which need not be Debian's.
const SUITES: [&str; 4] = ["cpython-asyncio", "go-net", "go-http", "ruby"];

fn steps() -> Result<Vec<(&'static str, Work)>> {
    let binary = run::target_dir()?.join("release/master-process");
    let tested = binary.clone();
    let cargo = |words: &'static str| -> Work {
        Box::new(move || run::run(ebpf::with_fresh_object(&mut run::cargo(words.split_whitespace()))?))
    };
    Ok(vec![
        (
            TOOLS,
            Box::new(|| {
                let needs = [
                    tools::for_tests(),
                    tools::for_ebpf(),
                    tools::for_dependencies(),
                    conformance::needs(&SUITES),
                ];
                tools::install(&needs.concat())
            }),
        ),
        ("format", cargo("fmt --all --check")),
        ("format of the eBPF program", cargo("fmt --check --manifest-path master-process-ebpf/Cargo.toml")),
        // By this variable, which `cargo run` sets, it would find that cargo has not started it, and take its own name for a
        // folder.
        ("unused dependencies", Box::new(|| run::run(run::cargo(["machete"]).env_remove("CARGO_PKG_NAME")))),
        ("licenses and sources", Box::new(deny)),
        // Before whatever contains it: what is tested is the object that was built just now.
        ("eBPF build", Box::new(ebpf::check)),
        ("clippy", cargo("clippy --workspace --all-targets -- -D warnings")),
        ("check for aarch64", Box::new(check_aarch64)),
        ("build", cargo("build --workspace --all-targets")),
        ("release build", cargo("build --workspace --release")),
        (
            "tests",
            Box::new(move || {
                let runner = match run::find("cargo-nextest") {
                    Some(_) => "nextest run --workspace --no-fail-fast",
                    // The doc tests have a step of their own.
                    None => "test --workspace --lib --bins --tests --examples",
                };
                run::run(
                    ebpf::with_fresh_object(&mut run::cargo(runner.split_whitespace()))?
                        .env("MASTER_PROCESS_BIN", &binary)
                        // A test that cannot run where everything was installed for it is a failure.
                        .env("MASTER_PROCESS_NO_SKIP", "1"),
                )
            }),
        ),
        ("other projects' suites", Box::new(move || conformance::run(&SUITES, Some(&tested)))),
        ("tables of the documentation", Box::new(|| docs::run(true))),
        ("doc tests", cargo("test --workspace --doc")),
        (
            "documentation",
            Box::new(|| {
                run::run(run::cargo(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))
            }),
        ),
    ])
}

/// What `deny.toml` says of the dependencies, but for advisories: their database is not in a package registry.
fn deny() -> Result<()> {
    let program = tools::deny().context("cargo-deny is missing")?;
    run::run(
        Command::new(program)
            .current_dir(run::root())
            .args(["--locked", "check", "bans", "licenses", "sources"]),
    )
}

/// Compiles the program for another kind of CPU, without linking: what it takes from the kernel differs there.
fn check_aarch64() -> Result<()> {
    let (mut cargo, _) = tools::cargo_with_library()?;
    cargo
        .args(["check", "-Zbuild-std=std,panic_abort", "--locked", "--package", "master-process"])
        .args(["--target", "aarch64-unknown-linux-gnu", "--target-dir"])
        // Another compiler than that of the other steps.
        .arg(run::target_dir()?.join("aarch64"));
    run::run(&mut cargo)
}

fn summary(done: &[(&str, Duration, bool)]) -> Result<()> {
    let total = done.iter().map(|(_, took, _)| *took).sum();
    let mut failed = String::new();
    for (name, took, is_failed) in done {
        println!("{:<8}{name:<28}{:>10}", if *is_failed { "FAILED" } else { "ok" }, seconds(*took));
        if *is_failed {
            let comma = if failed.is_empty() { "" } else { ", " };
            write!(failed, "{comma}{name}")?;
        }
    }
    if !failed.is_empty() {
        println!("ci: FAILED in {}: {failed}", seconds(total));
        bail!("ci failed");
    }
    println!("ci: all {} steps passed in {}", done.len(), seconds(total));
    Ok(())
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
