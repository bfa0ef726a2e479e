//! What a suite of another project is here: something that is prepared once, and run in one of two ways.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Result;

use super::job::Job;
use super::{cpython, go, libevent, libuv, node, redis, ruby, tokio};
use crate::tools::Need;

/// What became of one test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Outcome {
    Passed,
    Failed,
    Skipped,
    /// It did not run, or did not end: its suite crashed, hung, or ran out of time before.
    Missing,
}

impl Outcome {
    pub(super) fn name(self) -> &'static str {
        match self {
            Outcome::Passed => "passed",
            Outcome::Failed => "failed",
            Outcome::Skipped => "skipped",
            Outcome::Missing => "missing",
        }
    }
}

/// Every test by its name.
pub(super) type Results = BTreeMap<String, Outcome>;

/// Which tests are run: all, or those named.
pub(super) type Selection<'a> = Option<&'a BTreeSet<String>>;

/// The tests of another project, as they are run here.
pub(super) trait Suite {
    /// Its name on the command line and in the table.
    fn name(&self) -> &'static str;

    /// Programs and libraries that it takes.
    fn needs(&self) -> Vec<Need>;

    /// Fetches and builds it under `cache`, which keeps what was made before.
    fn prepare(&self, cache: &Path) -> Result<()>;

    /// How it is run: what the job prints is given to [`Suite::read`]. `scratch` is a fresh folder.
    fn job(&self, cache: &Path, scratch: &Path, selection: Selection<'_>) -> Result<Job>;

    /// The results in what the job printed.
    fn read(&self, output: &str) -> Results;

    /// Whether a re-run is of all tests and not only of those that differed: so where they run in one process or on one
    /// port, and what one leaves behind makes another fail.
    fn reruns_everything(&self) -> bool {
        false
    }
}

/// All of them, in the order in which they are run.
pub(super) fn all() -> Vec<Box<dyn Suite>> {
    vec![
        Box::new(libuv::Libuv),
        Box::new(cpython::CPython::sockets()),
        Box::new(cpython::CPython::asyncio()),
        Box::new(libevent::Libevent),
        Box::new(go::Go::net()),
        Box::new(go::Go::http()),
        Box::new(node::Node::net()),
        Box::new(node::Node::cluster()),
        Box::new(node::Node::http()),
        Box::new(ruby::Ruby),
        Box::new(redis::Redis),
        Box::new(tokio::Tokio),
    ]
}
