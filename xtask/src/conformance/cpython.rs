//! Python's own tests of sockets, of what is built on them, and of asyncio.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use master_process_tests::fixtures;

use super::job::Job;
use super::suite::{Outcome, Results, Selection, Suite};
use crate::run;
use crate::tools::Need;

/// Some of Python's test modules.
pub(super) struct CPython {
    name: &'static str,
    modules: &'static [&'static str],
}

/// Runs the modules and prints a line for each test.
const RUNNER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/conformance/unittest_results.py");

const RESULT: &str = "@@RESULT ";

impl CPython {
    pub(super) fn sockets() -> CPython {
        CPython {
            name: "cpython-socket",
            modules: &[
                "test.test_socket",
                "test.test_socketserver",
                "test.test_asyncore",
                "test.test_asynchat",
                "test.test_ssl",
                "test.test_ftplib",
                "test.test_httplib",
            ],
        }
    }

    pub(super) fn asyncio() -> CPython {
        CPython {
            name: "cpython-asyncio",
            modules: &[
                "test.test_asyncio.test_base_events",
                "test.test_asyncio.test_buffered_proto",
                "test.test_asyncio.test_events",
                "test.test_asyncio.test_selector_events",
                "test.test_asyncio.test_sendfile",
                "test.test_asyncio.test_server",
                "test.test_asyncio.test_sock_lowlevel",
                "test.test_asyncio.test_sslproto",
                "test.test_asyncio.test_streams",
                "test.test_asyncio.test_unix_events",
            ],
        }
    }
}

impl Suite for CPython {
    fn name(&self) -> &'static str {
        self.name
    }

    fn needs(&self) -> Vec<Need> {
        let present = || run::output(fixtures::python(), &["-c", "import test.test_socket"]).is_some();
        vec![Need::program("python3", &["python3"]), Need::apt(present, &["libpython3.11-testsuite"])]
    }

    fn prepare(&self, _cache: &Path) -> Result<()> {
        run::output(fixtures::python(), &["-c", "import test.test_socket"])
            .map(|_| ())
            .context("python has no tests")
    }

    fn job(&self, _cache: &Path, scratch: &Path, selection: Selection<'_>) -> Result<Job> {
        let mut words: Vec<std::ffi::OsString> =
            vec![fixtures::python().into(), "-u".into(), "-B".into(), RUNNER.into()];
        words.extend(self.modules.iter().map(Into::into));
        if let Some(selection) = selection {
            words.push("--".into());
            words.extend(selection.iter().map(Into::into));
        }
        Ok(Job { words, cwd: scratch.to_owned(), env: Vec::new(), limit: Duration::from_secs(900) })
    }

    fn read(&self, output: &str) -> Results {
        let lines = output.lines().filter_map(|line| line.strip_prefix(RESULT)?.split_once(' '));
        lines
            .map(|(word, name)| {
                let outcome = match word {
                    "passed" => Outcome::Passed,
                    "skipped" => Outcome::Skipped,
                    "failed" => Outcome::Failed,
                    _ => Outcome::Missing,
                };
                (name.to_owned(), outcome)
            })
            .collect()
    }
}
