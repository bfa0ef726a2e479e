//! Ruby's tests of its socket library, run with the installed Ruby.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::job::Job;
use super::sources::{self, Source};
use super::suite::{Outcome, Results, Selection, Suite};
use crate::tools::Need;

pub(super) struct Ruby;

const SOURCE: Source = Source {
    package: "ruby3.1",
    release: "bookworm",
    archive: "ruby3.1_",
    members: &["*/tool", "*/test/socket", "*/test/lib"],
};

/// What Ruby's own `make test-all` runs, with the libraries of the installed Ruby.
const RUN: &str = "exit Test::Unit::AutoRunner.run(true, nil, ARGV)";

impl Suite for Ruby {
    fn name(&self) -> &'static str {
        "ruby"
    }

    fn needs(&self) -> Vec<Need> {
        vec![Need::program("ruby", &["ruby"])]
    }

    fn prepare(&self, cache: &Path) -> Result<()> {
        sources::fetch(cache, &SOURCE).map(|_| ())
    }

    fn job(&self, cache: &Path, _scratch: &Path, selection: Selection<'_>) -> Result<Job> {
        let folder = cache.join("ruby3.1");
        let mut words: Vec<std::ffi::OsString> =
            ["ruby", "-Itool/lib", "-rtest/unit", "-e", RUN, "--", "--verbose", "--test-order=sorted"]
                .map(Into::into)
                .to_vec();
        if let Some(selection) = selection {
            let names: Vec<String> = selection
                .iter()
                .map(|name| name.replace("::", ".*"))
                .map(|name| format!("({name})"))
                .collect();
            words.push(format!("--name=/^({})$/", names.join("|")).into());
        }
        let mut files: Vec<_> = fs::read_dir(folder.join("test/socket"))
            .context("Ruby's tests")?
            .flatten()
            .map(|file| file.path())
            .collect();
        files.sort();
        words.extend(files.into_iter().map(Into::into));
        Ok(Job { words, cwd: folder, env: Vec::new(), limit: Duration::from_secs(300) })
    }

    fn read(&self, output: &str) -> Results {
        let mut results = Results::new();
        let mut verdict = None;
        for line in output.lines() {
            if let Some(outcome) = verdict.take() {
                // `Class#test [file:line]:`, or with a colon alone.
                let name = line.trim().split([' ', ':']).next().unwrap_or_default();
                let name = line.trim().find(" [").map_or(name, |end| &line.trim()[..end]);
                results.insert(name.trim_end_matches(':').to_owned(), outcome);
                continue;
            }
            // `[3/39] Class#test = 0.00 s` when it has ended.
            if let Some((_, rest)) = line.strip_prefix('[').and_then(|rest| rest.split_once("] "))
                && let Some((name, time)) = rest.split_once(" = ")
            {
                let outcome = if time.is_empty() { Outcome::Missing } else { Outcome::Passed };
                results.entry(name.to_owned()).or_insert(outcome);
            }
            verdict = heading(line);
        }
        results
    }

    fn reruns_everything(&self) -> bool {
        true
    }
}

/// The outcome that a line such as `  1) Failure:` announces for the test that the next one names.
fn heading(line: &str) -> Option<Outcome> {
    let (number, kind) = line.trim().split_once(") ")?;
    number.parse::<u32>().ok()?;
    match kind {
        "Failure:" | "Error:" | "Timeout:" => Some(Outcome::Failed),
        "Skipped:" => Some(Outcome::Skipped),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::suite::{Outcome, Suite};
    use super::Ruby;

    #[test]
    fn failures_are_told_at_the_end() {
        let output = "[1/3] TestSocket#test_a = 0.00 s\n[2/3] TestSocket#test_b = 0.10 s\n\n  1) Failure:\n\
                      TestSocket#test_b [test/socket/test_socket.rb:10]:\nExpected 1\n";
        let results: Vec<_> = Ruby.read(output).into_iter().collect();
        let expected = [("TestSocket#test_a", Outcome::Passed), ("TestSocket#test_b", Outcome::Failed)];
        assert_eq!(results, expected.map(|(name, outcome)| (name.to_owned(), outcome)));
    }
}
