//! libuv's own tests, all in one worker: most of them use one port, one after the other.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::batch;
use super::job::Job;
use super::sources::{self, Source};
use super::suite::{Outcome, Results, Selection, Suite};
use crate::tools::Need;

pub(super) struct Libuv;

const SOURCE: Source = Source { package: "libuv1", release: "bookworm", archive: "libuv1_", members: &[] };

/// The exit status of a test that cannot run, TEST_SKIP in libuv's test/task.h.
const SKIPPED: i32 = 7;

/// Without it, libuv's tests do not run as root.
const AS_ROOT: &str = "UV_RUN_AS_ROOT";

/// The slowest test takes 10 s.
const TEST_LIMIT: Duration = Duration::from_secs(40);

fn program(cache: &Path) -> PathBuf {
    cache.join("libuv1/build/uv_run_tests_a")
}

impl Suite for Libuv {
    fn name(&self) -> &'static str {
        "libuv"
    }

    fn needs(&self) -> Vec<Need> {
        vec![Need::program("cmake", &["cmake"]), Need::program("cc", &["gcc"])]
    }

    fn prepare(&self, cache: &Path) -> Result<()> {
        let folder = sources::fetch(cache, &SOURCE)?;
        sources::build_once(&program(cache), || {
            sources::cmake(&folder, &["-DCMAKE_BUILD_TYPE=Release"], "uv_run_tests_a")
        })
    }

    fn job(&self, cache: &Path, scratch: &Path, selection: Selection<'_>) -> Result<Job> {
        let program = program(cache);
        let listed = Command::new(&program).arg("--list").env(AS_ROOT, "1").output();
        let listed = String::from_utf8(listed.context("listing libuv's tests")?.stdout)?;
        // After a name may come those of its helpers.
        let names = listed.lines().filter_map(|line| line.split_whitespace().next());
        let names = names.map(str::to_owned).collect();
        Ok(Job {
            words: batch::words(scratch, batch::selected(names, selection), [program], TEST_LIMIT)?,
            cwd: cache.join("libuv1"),
            env: vec![(AS_ROOT, "1".into())],
            limit: Duration::from_secs(900),
        })
    }

    fn read(&self, output: &str) -> Results {
        batch::read(output, |status, printed| match status {
            0 if printed.contains("# SKIP") => Outcome::Skipped,
            0 => Outcome::Passed,
            SKIPPED => Outcome::Skipped,
            _ => Outcome::Failed,
        })
    }

    fn reruns_everything(&self) -> bool {
        true
    }
}
