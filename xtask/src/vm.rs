//! `cargo xtask vm`: the end-to-end tests on other kernels, each in a virtual machine, and on a real systemd.
//!
//! The scripts in `xtask/vm` fetch what that takes, once, and run a command in a machine. This program builds what is tested, runs
//! it on each kernel, and prints the results as a table.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use xtask::run;

/// The kernels that the program is tried on: the oldest one that it supports, those of Debian's releases, and new ones.
pub(crate) const KERNELS: [&str; 5] = ["5.10", "6.1", "6.12", "6.18", "7.3"];

/// What is run where not everything is: sharing, reloads, the process tree and signals, where they depend on what not every kernel
/// has in the same way. `doctor` tells the rest. An interpreter takes seconds to start in such a machine, so these are few.
const MAIN: [&str; 5] = [
    "image::the_image_serves_reloads_and_stops_as_pid_1_with_a_read_only_root",
    "listen_fds::a_listen_socket_survives_crashes_and_reloads",
    "pid_one::as_pid_1_it_serves_replaces_and_stops_on_term",
    "preload::nobody_can_change_the_file",
    "signals::two_stop_signals_at_once_are_one",
];

/// The time for the main tests of a kernel on a busy host, and for all of them, in seconds.
const TIMES: [u32; 2] = [1800, 6 * 3600];

/// How many times as long a condition may take as on this host.
const SLOW: &str = "10";

/// What was found on a kernel.
struct Outcome {
    kernel: String,
    release: String,
    passed: u32,
    failed: Vec<String>,
    skipped: u32,
    doctor: Vec<String>,
}

pub(crate) fn run(kernels: &[String], all: bool, systemd: bool) -> Result<()> {
    let folder = folder()?;
    let (binary, tests) = build()?;
    let mut is_failed = false;
    if systemd {
        is_failed |= on_systemd(&folder, &binary, &tests).is_err_and(|error| {
            println!("systemd: {error:#}");
            true
        });
    }
    let kernels: Vec<String> = match kernels {
        [] if systemd => Vec::new(),
        [] => KERNELS.map(str::to_owned).to_vec(),
        some => some.to_vec(),
    };
    if !kernels.is_empty() {
        println!("fetching what is missing of the kernels {}", kernels.join(", "));
        run::run(script(&folder, "setup")?.args(&kernels))?;
    }
    let mut outcomes = Vec::new();
    for kernel in &kernels {
        println!("==> {kernel}");
        let outcome = on_kernel(&folder, kernel, (&binary, &tests), all)?;
        let found = usize::try_from(outcome.passed + outcome.skipped)? + outcome.failed.len();
        if !all && found != MAIN.len() {
            println!("{kernel}: {found} of the {} main tests have a result", MAIN.len());
            is_failed = true;
        }
        is_failed |= !outcome.failed.is_empty();
        outcomes.push(outcome);
    }
    print(&outcomes);
    if is_failed { bail!("a test failed") } else { Ok(()) }
}

/// Where the kernels lie, and what emulates a machine.
fn folder() -> Result<PathBuf> {
    let folder = match std::env::var_os("VMDIR") {
        Some(given) => PathBuf::from(given),
        None => run::target_dir()?.join("vm"),
    };
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    folder.canonicalize().context("the folder of the machines")
}

fn script(folder: &Path, name: &str) -> Result<Command> {
    let mut command = Command::new(run::root().join("xtask/vm").join(name));
    command.env("VMDIR", folder).current_dir(run::root());
    Ok(command)
}

/// Builds the program, unless `MASTER_PROCESS_BIN` names one, and its tests, and returns where they lie: cargo does not run in
/// the machines.
fn build() -> Result<(PathBuf, PathBuf)> {
    let binary = match std::env::var_os("MASTER_PROCESS_BIN") {
        Some(given) => PathBuf::from(given).canonicalize().context("MASTER_PROCESS_BIN")?,
        None => {
            let target = run::target_dir()?;
            run::run(&mut run::cargo(["build", "--release", "--package", "master-process"]))?;
            target.join("release/master-process")
        }
    };
    let words =
        ["test", "--no-run", "--package", "master-process-tests", "--test", "e2e", "--message-format=json"];
    let output = run::cargo(words).stderr(Stdio::inherit()).output().context("cargo test --no-run")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let executable = |line: &str| {
        let (_, rest) = line.split_once("\"executable\":\"")?;
        Some(PathBuf::from(rest.split('"').next()?))
    };
    let tests = text.lines().filter_map(executable).next_back().context("cargo has built no tests")?;
    Ok((binary, tests))
}

/// Runs the suite of the units in a systemd that is pid 1, on the kernel of this host.
fn on_systemd(folder: &Path, binary: &Path, tests: &Path) -> Result<()> {
    let boot = run::root().join("xtask/vm/run-systemd");
    // Without a test of this name, its runner would be content.
    anyhow::ensure!(
        run::root().join("tests/systemd/suite.sh").is_file(),
        "tests/systemd/suite.sh is missing"
    );
    let mut command = Command::new(tests);
    command.args(["--ignored", "--nocapture", "systemd_units::"]).current_dir(run::root().join("tests"));
    command.env("VMDIR", folder).env("MASTER_PROCESS_BIN", binary).env("MASTER_PROCESS_SYSTEMD", boot);
    run::run(&mut command)
}

fn on_kernel(folder: &Path, kernel: &str, (binary, tests): (&Path, &Path), all: bool) -> Result<Outcome> {
    let filter = if all { String::new() } else { format!("--exact {}", MAIN.join(" ")) };
    let (binary, tests) = (binary.display(), tests.display());
    let task = format!(
        "echo \"release: $(uname -r)\"; {binary} doctor; MASTER_PROCESS_SLOW={SLOW} MASTER_PROCESS_BIN={binary} {tests} \
         --test-threads=1 --show-output {filter}"
    );
    let [most, most_of_all] = TIMES;
    let seconds = if all { most_of_all } else { most }.to_string();
    let output = script(folder, "run")?
        .args([kernel, &seconds, "sh", "-c", &task])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("running a virtual machine")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{text}");
    Ok(outcome(kernel, &text))
}

/// Reads what the tests have printed.
fn outcome(kernel: &str, text: &str) -> Outcome {
    let release = text.lines().find_map(|line| line.strip_prefix("release: ")).unwrap_or_default().to_owned();
    let summary = text.lines().rev().find_map(|line| line.strip_prefix("test result: "));
    let count = |word: &str| -> Option<u32> {
        let parts = summary?.split([';', '.']).map(str::trim);
        parts.filter_map(|part| part.strip_suffix(word)?.trim().parse().ok()).next()
    };
    let skipped = text.lines().filter(|line| line.starts_with("SKIPPED: ")).count();
    let skipped = u32::try_from(skipped).unwrap_or(u32::MAX);
    // The list at the end, after the output of each.
    let list = text.rsplit("\nfailures:\n").next().filter(|_| count("failed") != Some(0)).unwrap_or_default();
    let names = list.lines().map(str::trim).take_while(|line| !line.starts_with("test result"));
    let mut failed: Vec<String> = names.filter(|line| line.contains("::")).map(str::to_owned).collect();
    if summary.is_none() {
        failed = vec!["no result".to_owned()];
    }
    let doctor = text.lines().skip_while(|line| !line.starts_with("release: ")).skip(1);
    let doctor = doctor.take_while(|line| !line.starts_with("running ")).map(str::to_owned).collect();
    // A test that was skipped has passed as far as its runner knows.
    let passed = count("passed").unwrap_or(0).saturating_sub(skipped);
    Outcome { kernel: kernel.to_owned(), release, passed, failed, skipped, doctor }
}

fn print(outcomes: &[Outcome]) {
    for Outcome { release, doctor, .. } in outcomes {
        println!("doctor on {release}:\n{}", doctor.join("\n"));
    }
    println!("| kernel | passed | failed | skipped |\n|---|---:|---:|---:|");
    for Outcome { kernel, release, passed, failed, skipped, .. } in outcomes {
        println!("| {kernel} ({release}) | {passed} | {} | {skipped} |", failed.len());
    }
    for Outcome { kernel, failed, .. } in outcomes.iter().filter(|outcome| !outcome.failed.is_empty()) {
        println!("{kernel}: failed: {}", failed.join(", "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_of_the_tests_is_read() {
        let text = "release: 6.1.0\nmonitor  ebpf\n\nrunning 3 tests\ntest a::b ... ok\ntest a::c ... FAILED\ntest a::d ... ok\n\n\
                    successes:\n\n---- a::d stdout ----\nSKIPPED: a::d: it needs root\n\nfailures:\n\n---- a::c stdout ----\n\
                    thread panicked\n\nfailures:\n    a::c\n\ntest result: FAILED. 2 passed; 1 failed; 0 ignored\n";
        let read = outcome("6.1", text);
        assert_eq!((read.release.as_str(), read.passed, read.skipped), ("6.1.0", 1, 1));
        assert_eq!(
            (read.failed, read.doctor),
            (vec!["a::c".to_owned()], vec!["monitor  ebpf".to_owned(), String::new()])
        );
        assert_eq!(outcome("6.1", "release: 6.1.0\n").failed, ["no result"]);
        let good = outcome(
            "6.1",
            "running 1 test\ntest a::b ... ok\n\ntest result: ok. 1 passed; 0 failed; 0 ignored\n",
        );
        assert_eq!((good.passed, good.failed.len()), (1, 0));
    }
}
