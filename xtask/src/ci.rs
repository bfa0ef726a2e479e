//! Everything that CI checks, in one command.

use std::fmt::Write as _;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::{conformance, docs, ebpf, packaging, run, tools, vm};

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

/// The targets of the release artefacts, which are static: one for each kind of CPU.
const RELEASE_TARGETS: [&str; 2] = ["x86_64-unknown-linux-musl", "aarch64-unknown-linux-musl"];

/// What the static binary is tested with: start, users and groups, signals at the start, where the C library matters; and the
/// image, whose binary it is.
const STATIC_TESTS: [&str; 2] = ["starting::", "image::"];

/// The suites of other projects that take about a minute or less, what has to be fetched and built included. Those of
/// Node are not among them: they must be of the version of the installed Node, which need not be Debian's.
const SUITES: [&str; 4] = ["cpython-asyncio", "go-net", "go-http", "ruby"];

fn steps() -> Result<Vec<(&'static str, Work)>> {
    let binary = run::target_dir()?.join("release/master-process");
    let (tested, of_units) = (binary.clone(), binary.clone());
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
        ("check for other CPUs", Box::new(check_other_cpus)),
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
        ("units on a real systemd", Box::new(move || vm::systemd(&of_units))),
        ("static build and its tests", Box::new(test_static)),
        ("other projects' suites", Box::new(move || conformance::run(&SUITES, Some(&tested)))),
        (
            "captures of the README",
            Box::new(|| {
                let binary = run::target_dir()?.join("release/master-process");
                run::run(
                    Command::new("python3")
                        .arg(run::root().join("examples/captures.py"))
                        .arg("--check")
                        .arg(binary),
                )
            }),
        ),
        ("files for orchestrators", Box::new(packaging::check)),
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

/// Compiles the program for the release targets of other kinds of CPU, without linking: what it takes from the kernel differs
/// there.
fn check_other_cpus() -> Result<()> {
    for target in RELEASE_TARGETS.iter().filter(|target| !is_ours(target)) {
        let mut cargo = match tools::add_target(target) {
            Ok(()) => run::cargo(["check"]),
            Err(error) => {
                println!("{error:#}: compiling it from source");
                let (mut cargo, _) = tools::cargo_with_library()?;
                cargo.args(["check", "-Zbuild-std=std,panic_abort", "--target-dir"]);
                // Another compiler than that of the other steps.
                cargo.arg(run::target_dir()?.join("other-cpus"));
                cargo
            }
        };
        run::run(cargo.args(["--locked", "--package", "master-process", "--target", target]))?;
    }
    Ok(())
}

/// Builds the release artefact of this kind of CPU and runs the tests that depend on the C library with it.
fn test_static() -> Result<()> {
    let target = RELEASE_TARGETS.into_iter().find(|target| is_ours(target));
    let target = target.context("there is no release target for this CPU")?;
    tools::add_target(target)?;
    let mut build = run::cargo(["build", "--release", "--package", "master-process", "--target", target]);
    run::run(ebpf::with_fresh_object(&mut build)?)?;
    let binary = run::target_dir()?.join(target).join("release/master-process");
    let tests = ["--package", "master-process-tests", "--test", "e2e"];
    let (runner, filter): (&[&str], &[&str]) = match run::find("cargo-nextest") {
        Some(_) => (&["nextest", "run", "--no-fail-fast"], &[]),
        None => (&["test"], &["--"]),
    };
    run::run(
        run::cargo(runner)
            .args(tests)
            .args(filter)
            .args(STATIC_TESTS)
            .env("MASTER_PROCESS_BIN", binary)
            .env("MASTER_PROCESS_NO_SKIP", "1"),
    )
}

/// Whether a target is of the CPU that this program runs on.
fn is_ours(target: &str) -> bool {
    target.split('-').next() == Some(std::env::consts::ARCH)
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
