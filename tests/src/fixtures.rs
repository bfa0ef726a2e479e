//! The programs that the tests supervise.

use std::fmt::Display;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::{Event, Supervisor, address};

/// The folder of the fixtures' sources.
#[must_use]
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// The repository.
#[must_use]
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Cargo's target folder of the running test.
///
/// # Panics
/// When the test binary is not where cargo puts it.
#[must_use]
pub fn target_folder() -> PathBuf {
    let test = std::env::current_exe().expect("a running test has a file");
    test.ancestors().nth(3).expect("tests are in target/PROFILE/deps").to_owned()
}

fn text(path: &Path) -> String {
    path.to_str().expect("paths of the tests are UTF-8").to_owned()
}

/// The python interpreter itself: a version manager's wrapper would be another process's start in every measurement.
#[must_use]
pub fn python() -> String {
    static PYTHON: OnceLock<String> = OnceLock::new();
    PYTHON
        .get_or_init(|| {
            let system = "/usr/bin/python3";
            if Path::new(system).exists() {
                return system.to_owned();
            }
            let asked = Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output();
            String::from_utf8_lossy(&asked.expect("the tests need python3").stdout).trim().to_owned()
        })
        .clone()
}

/// The lifecycle worker with these words; see `worker.py` for what they mean.
#[must_use]
pub fn worker(words: &[&str]) -> Vec<String> {
    // -S and -E: no site packages and no variables, for a start of 20 ms.
    let mut command = vec![python(), "-S".into(), "-E".into(), text(&folder().join("worker.py"))];
    command.extend(words.iter().map(|word| (*word).to_owned()));
    command
}

/// The lifecycle worker that listens at an address or path, with further words.
#[must_use]
pub fn listening(at: impl Display, words: &[&str]) -> Vec<String> {
    worker(&[&[format!("listen={at}").as_str()], words].concat())
}

/// Supervised workers that listen at one address, when all of them are ready: the supervisor, their address, and what
/// each said then.
///
/// # Panics
/// When they do not become ready.
#[must_use]
pub fn listening_workers(
    count: usize,
    options: &[&str],
    words: &[&str],
) -> (Supervisor, SocketAddr, Vec<Event>) {
    let address = address::tcp();
    let builder = Supervisor::builder().args(["-w", &count.to_string()]).args(options);
    let supervisor = builder.command(listening(address, words)).spawn();
    let ready = supervisor.await_events(count, "ready");
    (supervisor, address, ready)
}

/// One of the node programs, by file name.
#[must_use]
pub fn node(script: &str) -> Vec<String> {
    vec!["node".into(), text(&folder().join(script))]
}

/// python's own HTTP server.
#[must_use]
pub fn python_http() -> Vec<String> {
    vec![python(), text(&folder().join("http_server.py"))]
}

/// A shell command line.
#[must_use]
pub fn shell(line: &str) -> Vec<String> {
    vec!["sh".into(), "-c".into(), line.into()]
}

/// A program that does nothing, for ever, with no descriptor or handler of its own.
#[must_use]
pub fn idle() -> Vec<String> {
    vec!["sleep".into(), "infinity".into()]
}

/// A static net/http server, built once for all tests; `None` where there is no Go.
///
/// # Panics
/// When Go is there and does not build it.
#[must_use]
pub fn go_server() -> Option<Vec<String>> {
    go("server")
}

/// One of the Go programs, static and built once for all tests; `None` where there is no Go.
///
/// # Panics
/// When Go is there and does not build it.
#[must_use]
pub fn go(name: &str) -> Option<Vec<String>> {
    Command::new("go").arg("version").output().ok().filter(|version| version.status.success())?;
    let build = target_folder().join("fixtures");
    fs::create_dir_all(&build).expect("the target folder can be written");
    // Tests are processes of their own: one builds, the others wait.
    let lock = File::create(build.join(format!("go-{name}.lock"))).expect("the lock file can be made");
    lock.lock().expect("the lock can be taken");
    let source = folder().join(format!("{name}.go"));
    let built = build.join(format!("go-{name}"));
    let modified = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    if modified(&built) < modified(&source) {
        let made = build.join(format!("go-{name}.new"));
        let status = Command::new("go")
            .args(["build", "-o", &text(&made), &text(&source)])
            .env("CGO_ENABLED", "0")
            .env("GOFLAGS", "")
            .status()
            .expect("go can be run");
        assert!(status.success(), "go build failed");
        fs::rename(&made, &built).expect("a file moves within its folder");
    }
    Some(vec![text(&built)])
}

/// nginx in the foreground with one process of its own per worker, listening on `listen`, with its files under
/// `scratch`; `None` where there is no nginx.
///
/// # Panics
/// When `scratch` cannot be written.
#[must_use]
pub fn nginx(scratch: &Path, listen: &str) -> Option<Vec<String>> {
    let nginx = ["/usr/sbin/nginx", "/usr/bin/nginx", "/usr/local/sbin/nginx"]
        .into_iter()
        .find(|path| Path::new(path).exists())?;
    fs::copy(folder().join("nginx.conf"), scratch.join("nginx.conf")).expect("the folder can be written");
    fs::write(scratch.join("listen.conf"), format!("listen {listen};\n")).expect("the folder can be written");
    let scratch = text(scratch);
    // Each worker and generation has a pid file of its own: the old one removes its own when it leaves.
    Some(shell(&format!(
        "exec {nginx} -p {scratch} -c {scratch}/nginx.conf -g \"pid {scratch}/$WORKER_INDEX-$RELOAD_INDEX.pid;\""
    )))
}
