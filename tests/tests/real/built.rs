//! Programs that are made once, under cargo's target folder: compiled C and C++, a python environment, and yarn.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use master_process_tests::fixtures;

use crate::run::text_of;

/// What the environment holds. The versions are those that the tests were written with.
const PACKAGES: [&str; 3] = ["granian==2.8.9", "gunicorn==27.0.1", "uvicorn==0.54.0"];

/// The last version of yarn that is a program of its own, and not a loader of others.
const YARN: &str = "yarn@1.22.22";

/// Tests are processes of their own: one makes the thing, the others wait.
fn once(
    name: &str,
    is_made: impl Fn(&Path) -> bool,
    make: impl Fn(&Path) -> Result<(), String>,
) -> Result<PathBuf, String> {
    let folder = fixtures::target_folder().join("fixtures");
    fs::create_dir_all(&folder).expect("the target folder can be written");
    let lock = File::create(folder.join(format!("{name}.lock"))).expect("the lock file can be made");
    lock.lock().expect("the lock can be taken");
    let made = folder.join(name);
    if !is_made(&made) {
        make(&made)?;
    }
    Ok(made)
}

fn succeeds(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// A C++ program of the fixtures, and the libraries that it is linked with.
pub(crate) fn cpp(name: &str, libraries: &[&str]) -> String {
    compiled(name, "cpp", &["g++", "-std=c++17", "-pthread"], libraries)
}

/// A C program of the fixtures.
pub(crate) fn c(name: &str) -> String {
    compiled(name, "c", &["cc", "-pthread"], &[])
}

fn compiled(name: &str, language: &str, compiler: &[&str], libraries: &[&str]) -> String {
    let source = fixtures::folder().join(format!("{name}.{language}"));
    let modified = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    let built = once(
        name,
        |made| modified(made) >= modified(&source),
        |made| {
            let new = made.with_extension("new");
            let mut command = Command::new(compiler[0]);
            command.args(&compiler[1..]).arg("-o").arg(&new).arg(&source).args(libraries);
            succeeds(&mut command)?;
            fs::rename(&new, made).map_err(|error| error.to_string())
        },
    );
    text_of(&built.unwrap_or_else(|error| panic!("{error}")))
}

/// A program of the python environment, or why there is none: it comes from PyPI.
pub(crate) fn python(program: &str) -> Result<String, String> {
    let venv = once(
        "python",
        |made| fs::read_to_string(made.join("packages")).is_ok_and(|made| made == PACKAGES.join(" ")),
        |made| {
            // What an interrupted start has left is of no use.
            let _ = fs::remove_dir_all(made);
            succeeds(Command::new(fixtures::python()).args(["-m", "venv"]).arg(made))?;
            let mut pip = Command::new(made.join("bin/python"));
            pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
            succeeds(pip.args(PACKAGES))?;
            fs::write(made.join("packages"), PACKAGES.join(" ")).map_err(|error| error.to_string())
        },
    )?;
    Ok(text_of(&venv.join("bin").join(program)))
}

/// yarn, or why there is none: it comes from the npm registry.
pub(crate) fn yarn() -> Result<String, String> {
    let folder = once(
        "yarn",
        |made| fs::read_to_string(made.join("packages")).is_ok_and(|made| made == YARN),
        |made| {
            let _ = fs::remove_dir_all(made);
            fs::create_dir_all(made).map_err(|error| error.to_string())?;
            let mut npm = Command::new("npm");
            npm.args(["install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier"]);
            succeeds(npm.arg("--prefix").arg(made).arg(YARN))?;
            fs::write(made.join("packages"), YARN).map_err(|error| error.to_string())
        },
    )?;
    Ok(text_of(&folder.join("node_modules/yarn/bin/yarn.js")))
}
