//! libevent's regression tests.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::batch;
use super::job::Job;
use super::sources::{self, Source};
use super::suite::{Outcome, Results, Selection, Suite};
use crate::tools::Need;

pub(super) struct Libevent;

const SOURCE: Source =
    Source { package: "libevent", release: "bookworm", archive: "libevent_", members: &[] };

/// What stands behind the name of a test that only runs when it is selected.
const OFF: &str = "Off by default";

/// The slowest test takes 20 s.
const TEST_LIMIT: Duration = Duration::from_secs(60);

fn program(cache: &Path) -> PathBuf {
    cache.join("libevent/build/bin/regress")
}

impl Suite for Libevent {
    fn name(&self) -> &'static str {
        "libevent"
    }

    fn needs(&self) -> Vec<Need> {
        vec![
            Need::program("cmake", &["cmake"]),
            Need::program("cc", &["gcc"]),
            Need::file("/usr/include/openssl/ssl.h", &["libssl-dev"]),
            Need::file("/usr/include/zlib.h", &["zlib1g-dev"]),
        ]
    }

    fn prepare(&self, cache: &Path) -> Result<()> {
        let folder = sources::fetch(cache, &SOURCE)?;
        let options = [
            "-DCMAKE_BUILD_TYPE=Release",
            "-DEVENT__LIBRARY_TYPE=STATIC",
            "-DEVENT__DISABLE_SAMPLES=ON",
            "-DEVENT__DISABLE_BENCHMARK=ON",
            // Its tests do not compile with OpenSSL's newest version, and TLS binds nothing.
            "-DEVENT__DISABLE_MBEDTLS=ON",
        ];
        sources::build_once(&program(cache), || sources::cmake(&folder, &options, "regress"))
    }

    fn job(&self, cache: &Path, scratch: &Path, selection: Selection<'_>) -> Result<Job> {
        let program = program(cache);
        // The names are indented, below some lines of help.
        let listed =
            Command::new(&program).arg("--list-tests").output().context("listing libevent's tests")?;
        let listed = String::from_utf8(listed.stdout)?;
        let names = listed.lines().filter_map(|line| line.strip_prefix("    ")).map(str::trim);
        let names =
            names.filter(|name| name.contains('/') && !name.contains(OFF)).map(str::to_owned).collect();
        Ok(Job {
            words: batch::words(scratch, batch::selected(names, selection), [program], TEST_LIMIT)?,
            cwd: scratch.to_owned(),
            env: Vec::new(),
            limit: Duration::from_secs(900),
        })
    }

    fn read(&self, output: &str) -> Results {
        batch::read(output, |status, printed| match status {
            0 if printed.contains("SKIPPED") => Outcome::Skipped,
            0 => Outcome::Passed,
            _ => Outcome::Failed,
        })
    }

    fn reruns_everything(&self) -> bool {
        true
    }
}
