//! Redis' own tests, run with the installed server of the same version.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::job::Job;
use super::sources::{self, Source};
use super::suite::{Outcome, Results, Selection, Suite};
use crate::run;
use crate::tools::Need;

pub(super) struct Redis;

const SOURCE: Source = Source {
    package: "redis",
    release: "bookworm",
    archive: "redis_",
    members: &["*/tests", "*/runtest", "*/redis.conf", "*/sentinel.conf", "*/utils"],
};

/// The programs that the tests start, which they look for under `src`.
const PROGRAMS: [&str; 4] = ["redis-server", "redis-cli", "redis-benchmark", "redis-check-aof"];

/// What opens and closes ports and Unix sockets, and restarts servers on the port that they had.
const UNITS: [&str; 9] = [
    "unit/networking",
    "unit/introspection",
    "unit/auth",
    "unit/limits",
    "unit/protocol",
    "unit/querybuf",
    "unit/other",
    "integration/logging",
    "integration/aof",
];

impl Suite for Redis {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn needs(&self) -> Vec<Need> {
        vec![
            Need::program("redis-server", &["redis-server"]),
            Need::program("redis-benchmark", &["redis-tools"]),
            Need::program("tclsh8.6", &["tcl8.6"]),
        ]
    }

    fn prepare(&self, cache: &Path) -> Result<()> {
        let folder = sources::fetch(cache, &SOURCE)?;
        fs::create_dir_all(folder.join("src")).context("making a folder for the programs")?;
        for name in PROGRAMS {
            let link = folder.join("src").join(name);
            let program = run::find(name).with_context(|| format!("{name} is not installed"))?;
            if !link.exists() {
                symlink(program, link).context("linking a program")?;
            }
        }
        Ok(())
    }

    fn job(&self, cache: &Path, _scratch: &Path, _selection: Selection<'_>) -> Result<Job> {
        let mut words: Vec<std::ffi::OsString> = vec!["./runtest".into(), "--clients".into(), "1".into()];
        for unit in UNITS {
            words.extend(["--single".into(), unit.into()]);
        }
        Ok(Job { words, cwd: cache.join("redis"), env: Vec::new(), limit: Duration::from_secs(600) })
    }

    fn read(&self, output: &str) -> Results {
        let mut results = Results::new();
        for line in output.lines() {
            // Colours are for a terminal, but some lines have them all the same.
            let line = plain(line);
            let outcomes =
                [("[ok]: ", Outcome::Passed), ("[err]: ", Outcome::Failed), ("[skip]: ", Outcome::Skipped)];
            for (word, outcome) in outcomes {
                if let Some(rest) = line.find(word).map(|start| &line[start + word.len()..]) {
                    results.insert(title(rest).to_owned(), outcome);
                }
            }
        }
        results
    }

    fn reruns_everything(&self) -> bool {
        true
    }
}

/// The title of a test, without the time, the file or the reason that may follow it.
fn title(text: &str) -> &str {
    let end = [" (", " in tests/", ": "].iter().filter_map(|mark| text.rfind(mark)).min();
    text[..end.unwrap_or(text.len())].trim()
}

/// A line without its escape sequences.
fn plain(line: &str) -> String {
    let mut parts = line.split('\u{1b}');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text.push_str(part.split_once('m').map_or("", |(_, rest)| rest));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{plain, title};

    #[test]
    fn a_title_is_the_same_whatever_became_of_the_test() {
        assert_eq!(title("CONFIG SET port number (12 ms)"), "CONFIG SET port number");
        assert_eq!(title("CONFIG SET port number in tests/unit/networking.tcl"), "CONFIG SET port number");
        assert_eq!(plain("\u{1b}[32;1m[ok]\u{1b}[0m: x"), "[ok]: x");
    }
}
