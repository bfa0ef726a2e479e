//! Running other programs, and where things lie.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The root of the checkout.
pub fn root() -> &'static Path {
    // The manifest of xtask lies one level below it.
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest)
}

/// The target directory that this very program was built into, whatever decided on it: cargo has more than one way
/// to be told. Call this before anything rebuilds this program, which takes its path away.
pub fn target_dir() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("finding this program's own path")?;
    let target = exe.parent().and_then(Path::parent).context("xtask does not lie in a target directory")?;
    Ok(target.to_owned())
}

/// The cargo that runs this program, or the one in the path.
pub fn cargo<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root());
    command
}

/// Runs to the end; anything but success is an error that names the command.
///
/// Standard error goes where standard output goes: cargo and nextest report their results on the former, and what a
/// reader of CI's output looks for is the runner's last lines.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .stderr(std::io::stdout())
        .status()
        .with_context(|| format!("starting {}", command.get_program().display()))?;
    if !status.success() {
        bail!("{} ended with {status}", shown(command));
    }
    Ok(())
}

/// What a program prints, if it runs and succeeds.
pub fn output(program: impl AsRef<OsStr>, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Where a program lies: in the path, or among what cargo has installed, which need not be in the path.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let installed = [("CARGO_INSTALL_ROOT", "bin"), ("CARGO_HOME", "bin"), ("HOME", ".cargo/bin")];
    std::env::split_paths(&path)
        // An administrator's programs, which an ordinary user's path does not name (nginx).
        .chain(["/usr/sbin".into()])
        .chain(
            installed.iter().filter_map(|(var, dir)| Some(PathBuf::from(std::env::var_os(var)?).join(dir))),
        )
        .map(|dir| dir.join(program))
        .find(|candidate| candidate.is_file())
}

fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    let words = std::iter::once(program).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}
