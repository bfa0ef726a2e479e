//! The tests of tokio that bind a socket, each a process of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::batch;
use super::job::Job;
use super::sources;
use super::suite::{Outcome, Results, Selection, Suite};
use crate::run;
use crate::tools::Need;

pub(super) struct Tokio;

/// The published crate has its tests with it, and a lock file of what they are built with.
const VERSION: &str = "1.54.1";

/// What every file of tests contains that is run.
const BINDS: &str = "bind(";

/// Runs the test `$1`, which is `file::test`, of the programs in the folder `$0`.
const RUN: &str = r#"exec "$0/${1%%::*}" --exact "${1#*::}" --nocapture"#;

/// The slowest test takes a few seconds.
const TEST_LIMIT: Duration = Duration::from_secs(60);

/// Where the programs of the tests lie, one for each file.
fn programs(cache: &Path) -> PathBuf {
    cache.join("tokio/programs")
}

impl Suite for Tokio {
    fn name(&self) -> &'static str {
        "tokio"
    }

    fn needs(&self) -> Vec<Need> {
        // What builds this project builds tokio.
        Vec::new()
    }

    fn prepare(&self, cache: &Path) -> Result<()> {
        let folder = sources::vendor(cache, "tokio", VERSION)?;
        sources::build_once(&programs(cache), || build(&folder, &programs(cache)))
    }

    fn job(&self, cache: &Path, scratch: &Path, selection: Selection<'_>) -> Result<Job> {
        let programs = programs(cache);
        let mut names = Vec::new();
        for program in fs::read_dir(&programs).context("tokio's tests")?.flatten() {
            let file = program.file_name().to_string_lossy().into_owned();
            let listed = Command::new(program.path())
                .args(["--list", "--format", "terse"])
                .output()
                .with_context(|| format!("listing the tests of {file}"))?;
            let listed = String::from_utf8(listed.stdout)?;
            let tests = listed.lines().filter_map(|line| line.strip_suffix(": test"));
            names.extend(tests.map(|test| format!("{file}::{test}")));
        }
        names.sort();
        let command: [std::ffi::OsString; 4] = ["sh".into(), "-c".into(), RUN.into(), programs.into()];
        Ok(Job {
            words: batch::words(scratch, batch::selected(names, selection), command, TEST_LIMIT)?,
            // Some read the crate's manifest.
            cwd: cache.join("tokio"),
            env: Vec::new(),
            limit: Duration::from_secs(900),
        })
    }

    fn read(&self, output: &str) -> Results {
        batch::read(output, |status, printed| match status {
            0 if printed.contains("; 1 ignored;") => Outcome::Skipped,
            0 => Outcome::Passed,
            _ => Outcome::Failed,
        })
    }
}

/// Builds the tests of the crate in `folder`, and puts their programs into a new folder.
fn build(folder: &Path, programs: &Path) -> Result<()> {
    let mut command = run::cargo(["test", "--no-run", "--locked", "--features", "full"]);
    command.args(["--message-format", "json-render-diagnostics", "--target-dir"]);
    command.arg(folder.join("target")).current_dir(folder);
    for file in files(&folder.join("tests"))? {
        command.args(["--test", &file]);
    }
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("starting cargo")?;
    if !output.status.success() {
        bail!("building tokio's tests: cargo ended with {}", output.status);
    }
    // Moved when it is complete.
    let fresh = programs.with_extension("new");
    let _ = fs::remove_dir_all(&fresh);
    fs::create_dir_all(&fresh).context("making the folder of the programs")?;
    for program in executables(&String::from_utf8_lossy(&output.stdout)) {
        let file = file_of(&program).with_context(|| format!("the name of {}", program.display()))?;
        fs::copy(&program, fresh.join(file)).context("copying a program")?;
    }
    fs::rename(&fresh, programs).context("moving the programs to their place")
}

/// The names of the files that bind something.
fn files(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for file in fs::read_dir(folder).context("tokio's tests")?.flatten() {
        let name = file.file_name().to_string_lossy().into_owned();
        if let Some(name) = name.strip_suffix(".rs")
            && fs::read_to_string(file.path())?.contains(BINDS)
        {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// The programs that cargo names in its messages, one in a line.
fn executables(messages: &str) -> Vec<PathBuf> {
    let programs = messages.lines().filter_map(|line| {
        let (_, rest) = line.split_once(r#""executable":""#)?;
        rest.split_once('"').map(|(path, _)| path.into())
    });
    programs.collect()
}

/// The file that a program was built from: cargo appends a hash.
fn file_of(program: &Path) -> Option<String> {
    let (file, _) = program.file_name()?.to_str()?.rsplit_once('-')?;
    Some(file.to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::suite::{Outcome, Suite};
    use super::{Tokio, executables, file_of};

    #[test]
    fn the_programs_are_found_in_cargos_messages() {
        let messages = "{\"reason\":\"compiler-artifact\",\"executable\":null,\"fresh\":true}\n\
                        {\"reason\":\"compiler-artifact\",\"executable\":\"/t/deps/tcp_accept-0f3a\",\"fresh\":false}\n\
                        {\"reason\":\"build-finished\",\"success\":true}\n";
        let programs = executables(messages);
        let names: Vec<_> = programs.iter().filter_map(|program| file_of(program)).collect();
        assert_eq!(names, ["tcp_accept"]);
    }

    #[test]
    fn a_test_that_is_ignored_is_skipped() {
        let output = "test a ... ignored\n\ntest result: ok. 0 passed; 0 failed; 1 ignored; 0 measured\n\
                      @@RESULT 0 udp::a\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured\n\
                      @@RESULT 0 udp::b\n@@RESULT 101 udp::c\n";
        let results: Vec<_> = Tokio.read(output).into_iter().collect();
        let expected =
            [("udp::a", Outcome::Skipped), ("udp::b", Outcome::Passed), ("udp::c", Outcome::Failed)];
        assert_eq!(results, expected.map(|(name, outcome)| (name.to_owned(), outcome)));
    }
}
