//! `cargo xtask packaging`: checks the files for orchestrators by tools from PyPI, which have the schemas in them.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use xtask::{run, tools};

/// What has the schemas of Kubernetes, and what reads HCL.
const PACKAGES: [&str; 2] = ["kubernetes-validate==1.37.0", "python-hcl2==8.1.4"];

/// The check, which these packages run.
const CHECK: &str = include_str!("packaging.py");

/// What is checked.
const FILES: [&str; 2] = ["packaging/kubernetes/deployment.yaml", "packaging/nomad/job.hcl"];

pub(crate) fn check() -> Result<()> {
    let python = python()?;
    run::run(Command::new(python).current_dir(run::root()).args(["-c", CHECK]).args(FILES))
}

/// A python environment with the packages in it, made when it is not there yet.
fn python() -> Result<PathBuf> {
    let folder = run::target_dir()?.join("tools/packaging");
    let python = folder.join("bin/python");
    let installed = run::output(&python, &["-m", "pip", "freeze"]).unwrap_or_default();
    if !PACKAGES.iter().all(|package| installed.lines().any(|line| line == *package)) {
        tools::install(&tools::for_packaging())?;
        println!("installing {}", PACKAGES.join(", "));
        run::run(Command::new(master_process_tests::fixtures::python()).args(["-m", "venv"]).arg(&folder))?;
        let words = ["-m", "pip", "install", "--quiet"];
        run::run(Command::new(&python).args(words).args(PACKAGES))?;
    }
    Ok(python)
}
