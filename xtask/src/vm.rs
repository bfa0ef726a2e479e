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

/// The tests that are ignored on hosts like those of CI, whose controllers version 1 has, and that a machine can run.
const LIMITS: &str = "cgroup_limits::";

/// The kernels without a function that eBPF needs.
const WITHOUT_EBPF: [&str; 2] = ["5.10", "6.1"];

/// The kernel of the machine with a systemd and all controllers: that of Debian's release.
const SYSTEMD_KERNEL: &str = "6.12";

/// The time for the main tests of a kernel on a busy host, and for all of them, in seconds.
const TIMES: [u32; 2] = [1800, 6 * 3600];

/// How many times as long a condition may take as on this host.
const SLOW: &str = "10";

/// What was found on a kernel.
#[derive(Default)]
struct Outcome {
    kernel: String,
    release: String,
    /// The exit code of a supervisor with `--monitor ebpf`: 0 if it has started.
    ebpf: Option<i32>,
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
        let mut on_systemd = |name: &str, result: Result<()>| {
            is_failed |= result.is_err_and(|error| {
                println!("{name}: {error:#}");
                true
            });
        };
        on_systemd("systemd", suite_on_systemd(&folder, &binary, &tests));
        on_systemd("limits on systemd", limits_on_systemd(&folder, &binary));
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
    let expected = if all { None } else { Some(MAIN.len() + ignored(&tests)?) };
    let mut outcomes = Vec::new();
    for kernel in &kernels {
        println!("==> {kernel}");
        let outcome = on_kernel(&folder, kernel, (&binary, &tests), all)?;
        for complaint in outcome.complaints(expected) {
            println!("{kernel}: {complaint}");
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
    Ok((binary, build_tests()?))
}

fn build_tests() -> Result<PathBuf> {
    let words =
        ["test", "--no-run", "--package", "master-process-tests", "--test", "e2e", "--message-format=json"];
    let output = run::cargo(words).stderr(Stdio::inherit()).output().context("cargo test --no-run")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let executable = |line: &str| {
        let (_, rest) = line.split_once("\"executable\":\"")?;
        Some(PathBuf::from(rest.split('"').next()?))
    };
    text.lines().filter_map(executable).next_back().context("cargo has built no tests")
}

/// The number of tests that only a machine can run.
fn ignored(tests: &Path) -> Result<usize> {
    let output =
        Command::new(tests).args(["--list", "--ignored", LIMITS]).output().context("listing the tests")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let count = text.lines().filter(|line| line.ends_with(": test")).count();
    anyhow::ensure!(count > 0, "there are no tests {LIMITS}");
    Ok(count)
}

/// The suite of the units with this program, as a step of CI: it takes no machine, and a minute or two.
pub(crate) fn systemd(binary: &Path) -> Result<()> {
    suite_on_systemd(&folder()?, binary, &build_tests()?)
}

/// Runs the suite of the units in a systemd that is pid 1, on the kernel of this host.
fn suite_on_systemd(folder: &Path, binary: &Path, tests: &Path) -> Result<()> {
    let boot = run::root().join("xtask/vm/run-systemd");
    // Without a test of this name, its runner would be content.
    anyhow::ensure!(suite("suite.sh").is_file(), "tests/systemd/suite.sh is missing");
    let mut command = Command::new(tests);
    command.args(["--ignored", "--nocapture", "systemd_units::"]).current_dir(run::root().join("tests"));
    command.env("VMDIR", folder).env("MASTER_PROCESS_BIN", binary).env("MASTER_PROCESS_SYSTEMD", boot);
    command.env("MASTER_PROCESS_NO_SKIP", "1");
    run::run(&mut command)
}

/// Runs the suite of the limits in a machine: a systemd on the kernel of this host has no controllers where version 1 has them.
fn limits_on_systemd(folder: &Path, binary: &Path) -> Result<()> {
    run::run(script(folder, "setup")?.arg(SYSTEMD_KERNEL))?;
    let [seconds, _] = TIMES;
    let mut command = script(folder, "run")?;
    command.args(["--systemd", SYSTEMD_KERNEL, &seconds.to_string(), "env"]);
    command.arg(format!("MASTER_PROCESS_SLOW={SLOW}")).args([
        suite("limits.sh"),
        binary.into(),
        run::root().to_owned(),
    ]);
    run::run(&mut command)
}

fn suite(name: &str) -> PathBuf {
    run::root().join("tests/systemd").join(name)
}

fn on_kernel(folder: &Path, kernel: &str, (binary, tests): (&Path, &Path), all: bool) -> Result<Outcome> {
    let filter = if all { String::new() } else { format!("--exact {}", MAIN.join(" ")) };
    let (binary, tests) = (binary.display(), tests.display());
    // A worker that ends its supervisor: the exit code says whether that has started.
    let ends = "-- sh -c 'kill $PPID; exec sleep 60'";
    let task = format!(
        "echo \"release: $(uname -r)\"; {binary} doctor; {binary} --monitor ebpf --ready none {ends} 2>&1; echo \"--monitor ebpf: $?\"; \
         export MASTER_PROCESS_SLOW={SLOW} MASTER_PROCESS_BIN={binary}; {tests} --test-threads=1 --show-output {filter}; \
         export MASTER_PROCESS_NO_SKIP=1; {tests} --test-threads=1 --show-output --ignored {LIMITS}"
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

/// Reads what the runs of the tests have printed, of which each begins with their number.
fn outcome(kernel: &str, text: &str) -> Outcome {
    let (before, runs) = text.split_once("\nrunning ").unwrap_or((text, ""));
    let mut outcome = Outcome { kernel: kernel.to_owned(), ..Outcome::default() };
    let value = |name: &str| before.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    outcome.release = value("release: ").to_owned();
    outcome.ebpf = value("--monitor ebpf: ").parse().ok();
    outcome.doctor =
        before.lines().filter(|line| !line.starts_with("release: ")).map(str::to_owned).collect();
    for run in runs.split("\nrunning ") {
        outcome.add(run);
    }
    outcome
}

impl Outcome {
    /// Adds what one run has printed.
    fn add(&mut self, text: &str) {
        let summary = text.lines().rev().find_map(|line| line.strip_prefix("test result: "));
        let Some(summary) = summary else {
            self.failed.push("no result".to_owned());
            return;
        };
        let count = |word: &str| -> u32 {
            let parts = summary.split([';', '.']).map(str::trim);
            parts.filter_map(|part| part.strip_suffix(word)?.trim().parse().ok()).next().unwrap_or(0)
        };
        let skipped = text.lines().filter(|line| line.starts_with("SKIPPED: ")).count();
        let skipped = u32::try_from(skipped).unwrap_or(u32::MAX);
        self.skipped += skipped;
        // A test that was skipped has passed as far as its runner knows.
        self.passed += count("passed").saturating_sub(skipped);
        // The list at the end, after the output of each.
        let list = text.rsplit("\nfailures:\n").next().filter(|_| count("failed") > 0).unwrap_or_default();
        let names = list.lines().map(str::trim).take_while(|line| !line.starts_with("test result"));
        self.failed.extend(names.filter(|line| line.contains("::")).map(str::to_owned));
    }

    /// What is not as it should be there, besides the tests that have failed. `expected`: how many there are.
    fn complaints(&self, expected: Option<usize>) -> Vec<String> {
        let mut complaints = Vec::new();
        let found = usize::try_from(self.passed + self.skipped).unwrap_or(usize::MAX) + self.failed.len();
        if let Some(expected) = expected.filter(|expected| *expected != found) {
            complaints.push(format!("{found} of {expected} tests have a result"));
        }
        let code = if WITHOUT_EBPF.contains(&self.kernel.as_str()) { 1 } else { 0 };
        if KERNELS.contains(&self.kernel.as_str()) && self.ebpf != Some(code) {
            complaints.push(format!("--monitor ebpf ends with {:?} instead of {code}", self.ebpf));
        }
        complaints
    }
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
        let first = "running 3 tests\ntest a::b ... ok\ntest a::c ... FAILED\ntest a::d ... ok\n\nsuccesses:\n\n\
                     ---- a::d stdout ----\nSKIPPED: a::d: it needs root\n\nfailures:\n\n---- a::c stdout ----\nthread panicked\n\n\
                     failures:\n    a::c\n\ntest result: FAILED. 2 passed; 1 failed; 0 ignored\n";
        let second =
            "\nrunning 1 test\ntest limits::a ... ok\n\ntest result: ok. 1 passed; 0 failed; 0 ignored\n";
        let head = "release: 6.1.0\nmonitor  ebpf\n--monitor ebpf: 1\n\n";
        let read = outcome("6.1", &format!("{head}{first}{second}"));
        assert_eq!((read.release.as_str(), read.passed, read.skipped, read.ebpf), ("6.1.0", 2, 1, Some(1)));
        assert_eq!(
            (read.failed.as_slice(), read.doctor[0].as_str()),
            (&["a::c".to_owned()][..], "monitor  ebpf")
        );
        assert_eq!(read.complaints(Some(13)), ["4 of 13 tests have a result"]);
        assert!(read.complaints(None).is_empty() && read.complaints(Some(4)).is_empty());
        // The second run has no result.
        let cut = outcome("6.1", &format!("{head}{first}\nrunning 1 test\n"));
        assert_eq!(cut.failed, ["a::c", "no result"]);
        let nothing = outcome("6.12", "release: 6.12.0\n");
        assert_eq!(nothing.failed, ["no result"]);
        assert_eq!(nothing.complaints(None), ["--monitor ebpf ends with None instead of 0"]);
    }
}
