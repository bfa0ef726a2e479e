//! The tests of Go's packages net and net/http, compiled with the installed Go.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::job::Job;
use super::sources;
use super::suite::{Outcome, Results, Selection, Suite};
use crate::run;
use crate::tools::Need;

/// The tests of one package.
pub(super) struct Go {
    name: &'static str,
    package: &'static str,
}

impl Go {
    pub(super) fn net() -> Go {
        Go { name: "go-net", package: "net" }
    }

    pub(super) fn http() -> Go {
        Go { name: "go-http", package: "net/http" }
    }

    fn program(&self, cache: &Path) -> PathBuf {
        cache.join(format!("{}.test", self.name))
    }
}

impl Suite for Go {
    fn name(&self) -> &'static str {
        self.name
    }

    fn needs(&self) -> Vec<Need> {
        vec![Need::program("go", &["golang-go"])]
    }

    fn prepare(&self, cache: &Path) -> Result<()> {
        let program = self.program(cache);
        sources::build_once(&program, || {
            run::run(Command::new("go").args(["test", "-c", "-o"]).arg(&program).arg(self.package))
        })
    }

    fn job(&self, cache: &Path, _scratch: &Path, selection: Selection<'_>) -> Result<Job> {
        // Short: those that are not short go out to the world, of which there is none here.
        let mut words = vec![self.program(cache).into(), "-test.v".into(), "-test.short".into()];
        words.push("-test.timeout=300s".into());
        if let Some(selection) = selection {
            // A subtest is run with its parent.
            let names: Vec<&str> = selection.iter().filter_map(|name| name.split('/').next()).collect();
            words.push(format!("-test.run=^({})$", names.join("|")).into());
        }
        let root = run::output("go", &["env", "GOROOT"]).context("go has no root")?;
        Ok(Job {
            words,
            // Its tests read files beside their sources.
            cwd: Path::new(root.trim()).join("src").join(self.package),
            env: Vec::new(),
            limit: Duration::from_secs(330),
        })
    }

    fn read(&self, output: &str) -> Results {
        let mut results = Results::new();
        for line in output.lines() {
            // What a test prints itself may lack its last newline: the report then comes later in the line.
            let Some(line) = line.find("--- ").map(|start| &line[start..]) else {
                if let Some(name) = line.strip_prefix("=== RUN").map(str::trim) {
                    results.entry(name.to_owned()).or_insert(Outcome::Missing);
                }
                continue;
            };
            let outcomes =
                [("PASS: ", Outcome::Passed), ("FAIL: ", Outcome::Failed), ("SKIP: ", Outcome::Skipped)];
            for (word, outcome) in outcomes {
                let name = line.strip_prefix("--- ").and_then(|rest| rest.strip_prefix(word));
                if let Some(name) = name.and_then(|rest| rest.split(' ').next()) {
                    results.insert(name.to_owned(), outcome);
                }
            }
        }
        results
    }

    fn reruns_everything(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::suite::{Outcome, Suite};
    use super::Go;

    #[test]
    fn a_test_that_began_and_did_not_end_is_missing() {
        let output = "=== RUN   TestA\n--- PASS: TestA (0.00s)\n=== RUN   TestB\nwords--- FAIL: TestB (1.00s)\n    \
                      --- SKIP: TestB/sub (0.00s)\n=== RUN   TestC\npanic: gone\n";
        let results: Vec<_> = Go::net().read(output).into_iter().collect();
        let expected = [
            ("TestA", Outcome::Passed),
            ("TestB", Outcome::Failed),
            ("TestB/sub", Outcome::Skipped),
            ("TestC", Outcome::Missing),
        ];
        assert_eq!(results, expected.map(|(name, outcome)| (name.to_owned(), outcome)));
    }
}
