//! Node's own tests of net, http and cluster, run with the installed node.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::batch;
use super::job::Job;
use super::sources::{self, Source};
use super::suite::{Outcome, Results, Selection, Suite};
use crate::run;
use crate::tools::Need;

/// The tests of one module.
pub(super) struct Node {
    name: &'static str,
    prefix: &'static str,
}

const SOURCE: Source = Source {
    package: "nodejs",
    release: "trixie",
    archive: "nodejs_",
    members: &[
        "*/test/parallel/test-net-*",
        "*/test/parallel/test-http-*",
        "*/test/parallel/test-cluster-*",
        "*/test/common",
        "*/test/fixtures",
        "*/src/node_version.h",
    ],
};

/// A test's name is its file; its first lines may name flags of node that it takes.
const RUN: &str = r#"exec node $(sed -n 's#^// Flags:##p' "$0") "$0""#;

/// Node's own runner gives each test 120 s; those of these modules take a few at most.
const TEST_LIMIT: Duration = Duration::from_secs(30);

impl Node {
    pub(super) fn net() -> Node {
        Node { name: "node-net", prefix: "test-net-" }
    }

    pub(super) fn http() -> Node {
        Node { name: "node-http", prefix: "test-http-" }
    }

    pub(super) fn cluster() -> Node {
        Node { name: "node-cluster", prefix: "test-cluster-" }
    }
}

impl Suite for Node {
    fn name(&self) -> &'static str {
        self.name
    }

    fn needs(&self) -> Vec<Need> {
        vec![Need::program("node", &["nodejs"])]
    }

    fn prepare(&self, cache: &Path) -> Result<()> {
        let folder = sources::fetch(cache, &SOURCE)?;
        let header = fs::read_to_string(folder.join("src/node_version.h")).context("node's version")?;
        let major = header
            .lines()
            .find_map(|line| line.strip_prefix("#define NODE_MAJOR_VERSION "))
            .context("no major version in node's header")?;
        let installed = run::output("node", &["--version"]).context("node does not run")?;
        if !installed.starts_with(&format!("v{}.", major.trim())) {
            bail!("the tests are of node {major}, and {} is installed", installed.trim());
        }
        Ok(())
    }

    fn job(&self, cache: &Path, scratch: &Path, selection: Selection<'_>) -> Result<Job> {
        let folder = cache.join("nodejs/test/parallel");
        let files = fs::read_dir(&folder).context("node's tests")?.flatten();
        let names = files.filter_map(|file| file.file_name().into_string().ok());
        let mut names: Vec<String> =
            names.filter(|name| name.starts_with(self.prefix) && name.ends_with("js")).collect();
        names.sort();
        Ok(Job {
            words: batch::words(scratch, batch::selected(names, selection), ["sh", "-c", RUN], TEST_LIMIT)?,
            cwd: folder,
            // Where node's tests put their files and sockets.
            env: vec![("NODE_TEST_DIR", scratch.into())],
            limit: Duration::from_secs(1800),
        })
    }

    fn read(&self, output: &str) -> Results {
        batch::read(output, |status, printed| match status {
            0 if printed.contains("1..0 # Skipped") => Outcome::Skipped,
            0 => Outcome::Passed,
            _ => Outcome::Failed,
        })
    }
}
