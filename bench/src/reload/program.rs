//! The programs, none of which is written for a supervisor.

use std::cell::OnceCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};
use master_process_tests::fixtures;

use xtask::run;

/// What is supervised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Program {
    NodePlain,
    NodeGraceful,
    Go,
    Hyper,
    PythonHttp,
    Uvicorn,
    Nginx,
    Redis,
}

impl Program {
    pub(super) const ALL: [Program; 8] = [
        Program::NodePlain,
        Program::NodeGraceful,
        Program::Go,
        Program::Hyper,
        Program::PythonHttp,
        Program::Uvicorn,
        Program::Nginx,
        Program::Redis,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Program::NodePlain => "node, no signal handler",
            Program::NodeGraceful => "node, graceful",
            Program::Go => "Go net/http, static",
            Program::Hyper => "tokio and hyper",
            Program::PythonHttp => "python http.server",
            Program::Uvicorn => "uvicorn",
            Program::Nginx => "nginx",
            Program::Redis => "redis",
        }
    }
}

/// The version is fixed, so that a later run measures the same program.
const UVICORN: &str = "uvicorn==0.34.0";

/// The programs as far as they are on this machine. Each is built when it is first wanted, once.
pub(super) struct Programs {
    /// Where they are built.
    folder: PathBuf,
    words: Vec<String>,
    made: [OnceCell<Result<Vec<String>>>; Program::ALL.len()],
}

impl Programs {
    pub(super) fn new(folder: PathBuf, words: &[String]) -> Self {
        Self { folder, words: words.to_vec(), made: Default::default() }
    }

    /// Whether the command line selects it.
    pub(super) fn wanted(&self, program: Program) -> bool {
        let name = program.name().to_lowercase();
        self.words.is_empty() || self.words.iter().any(|word| name.contains(&word.to_lowercase()))
    }

    /// The command line of a program that is to listen at `listen`, with its files under `scratch`.
    pub(super) fn command(&self, program: Program, listen: &str, scratch: &Path) -> Result<Vec<String>> {
        let made = self.made[program as usize].get_or_init(|| self.make(program));
        let mut command = match made {
            Ok(command) => command.clone(),
            Err(error) => return Err(anyhow!("{error:#}")),
        };
        match program {
            Program::Nginx => command = fixtures::nginx(scratch, listen).context("it is not installed")?,
            Program::Redis => {
                let (host, port) = listen.rsplit_once(':').context("redis is given no port")?;
                command.extend(["--bind", host, "--port", port, "--dir"].map(str::to_owned));
                command.push(text(scratch)?);
            }
            Program::NodePlain
            | Program::NodeGraceful
            | Program::Go
            | Program::Hyper
            | Program::PythonHttp
            | Program::Uvicorn => {}
        }
        Ok(command)
    }

    fn make(&self, program: Program) -> Result<Vec<String>> {
        match program {
            Program::NodePlain => found("node").map(|_| fixtures::node("plain.js")),
            Program::NodeGraceful => found("node").map(|_| fixtures::node("graceful.js")),
            Program::Go => self.go(),
            Program::Hyper => self.hyper(),
            Program::PythonHttp => found("python3").map(|_| fixtures::python_http()),
            Program::Uvicorn => self.uvicorn(),
            Program::Nginx => found("nginx").map(|_| Vec::new()),
            Program::Redis => {
                let mut command = vec![text(&found("redis-server")?)?];
                // Nothing of it is to be kept.
                command
                    .extend(["--save", "", "--appendonly", "no", "--loglevel", "warning"].map(str::to_owned));
                Ok(command)
            }
        }
    }

    fn go(&self) -> Result<Vec<String>> {
        let built = self.folder.join("go-server");
        quietly(
            Command::new(found("go")?)
                .args(["build", "-o"])
                .arg(&built)
                .arg(fixtures::folder().join("server.go"))
                .env("CGO_ENABLED", "0")
                .env("GOFLAGS", ""),
        )?;
        Ok(vec![text(&built)?])
    }

    fn hyper(&self) -> Result<Vec<String>> {
        let target = self.folder.join("hyper");
        let manifest = fixtures::folder().join("hyper/Cargo.toml");
        let mut build = run::cargo(["build", "--release", "--locked", "--manifest-path"]);
        quietly(build.arg(manifest).arg("--target-dir").arg(&target))?;
        Ok(vec![text(&target.join("release/hyper-server"))?])
    }

    fn uvicorn(&self) -> Result<Vec<String>> {
        let venv = self.folder.join("venv");
        let python = venv.join("bin/python");
        let wanted = UVICORN.rsplit('=').next().unwrap_or_default();
        let version = ["-c", "import uvicorn; print(uvicorn.__version__)"];
        if run::output(&python, &version).is_none_or(|found| found.trim() != wanted) {
            if venv.exists() {
                fs::remove_dir_all(&venv).context("removing an unfinished environment")?;
            }
            quietly(Command::new(fixtures::python()).args(["-m", "venv"]).arg(&venv))?;
            quietly(Command::new(&python).args(["-m", "pip", "install", "--quiet", UVICORN]))?;
        }
        Ok(vec![text(&python)?, text(&fixtures::folder().join("asgi.py"))?])
    }
}

fn found(program: &str) -> Result<PathBuf> {
    run::find(program).with_context(|| format!("{program} is not installed"))
}

fn text(path: &Path) -> Result<String> {
    Ok(path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?.to_owned())
}

/// Runs to the end without a word: standard output is the tables'. What a failure says is the error.
fn quietly(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("starting {}", command.get_program().display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.trim().lines().last().unwrap_or_default().to_owned();
        bail!("{} ended with {}: {last}", command.get_program().display(), output.status);
    }
    Ok(())
}
