//! One run of a program in a fresh folder, alone or as the only worker, and all that it printed.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use master_process_tests::{Supervisor, await_some, fixtures, process};
use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;

/// How long one run may take. The slowest program sleeps for 13 s; the rest is for a machine that is busy.
const DEADLINE: Duration = Duration::from_secs(60);

/// Longer than every run: a program that has ended is not started again while its output is being read.
const NO_RESTART: &str = "10min";

/// Writes its pid to the file named first, and becomes the program whose two outputs are one.
const ANNOUNCE: &str = r#"echo $$ > "$0" && exec "$@" 2>&1"#;

/// The folder of the programs.
pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance")
}

/// The command that runs a program, by its name without the extension.
pub(crate) fn program(name: &str) -> Vec<String> {
    let file = folder().join(name).with_extension("py");
    let file = file.to_str().expect("paths of the tests are UTF-8").to_owned();
    // Unbuffered: a program that is killed, or forks, has printed what it has printed. Nothing is written beside it.
    [fixtures::python().as_str(), "-u", "-B", &file].map(str::to_owned).to_vec()
}

/// Two folders: the program's working directory, and one for its pid that the program does not see.
struct Scratch {
    cwd: TempDir,
    aside: TempDir,
}

impl Scratch {
    fn new() -> Scratch {
        let folder = || tempfile::tempdir().expect("a temporary folder");
        Scratch { cwd: folder(), aside: folder() }
    }

    fn pid_file(&self) -> PathBuf {
        self.aside.path().join("pid")
    }

    fn command(&self, name: &str) -> Vec<String> {
        let pid_file = self.pid_file().to_str().expect("temporary folders are UTF-8").to_owned();
        let mut command = vec!["sh".into(), "-c".into(), ANNOUNCE.into(), pid_file];
        command.extend(program(name));
        command
    }

    /// The pid, once the program has started. The line is complete when it ends.
    fn pid(&self) -> Option<i32> {
        fs::read_to_string(self.pid_file()).ok()?.strip_suffix('\n')?.parse().ok()
    }
}

/// A program without a supervisor, in a process group of its own that does not outlive the value.
struct Alone(Child);

impl Drop for Alone {
    fn drop(&mut self) {
        let group = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw);
        let _ = group.map(|group| kill_process_group(group, Signal::KILL));
        let _ = self.0.wait();
    }
}

/// Runs a program without a supervisor and gives the lines that it printed.
///
/// # Panics
/// When it fails or takes too long: it is no measure then.
pub(crate) fn alone(name: &str) -> Vec<String> {
    let scratch = Scratch::new();
    let words = scratch.command(name);
    let output = scratch.aside.path().join("output");
    let file = fs::File::create(&output).expect("the folder is new");
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).current_dir(scratch.cwd.path()).process_group(0);
    let mut child = Alone(command.stdin(Stdio::null()).stdout(file).spawn().expect("sh runs"));
    let printed = || String::from_utf8_lossy(&fs::read(&output).unwrap_or_default()).into_owned();
    let status =
        await_some(DEADLINE, &format!("{name} ends alone"), || child.0.try_wait().expect("it is our child"));
    let printed = printed();
    assert!(status.success(), "{name} fails alone: {status}\n{printed}");
    assert!(!printed.is_empty(), "{name} prints nothing alone");
    printed.lines().map(|line| line.trim_end().to_owned()).collect()
}

/// Runs a program as the only worker and gives the lines that the first process of it printed. The supervisor is
/// stopped when that process has ended.
///
/// # Panics
/// When it does not end in time, or the supervisor does not stop in order.
pub(crate) fn as_only_worker(name: &str) -> Vec<String> {
    let scratch = Scratch::new();
    let options = ["-w", "1", "--monitor", "off", "--throttle", NO_RESTART, "--throttle-max", NO_RESTART];
    let supervisor =
        Supervisor::builder().args(options).command(scratch.command(name)).cwd(scratch.cwd.path()).spawn();
    let pid = supervisor.until(&format!("{name} starts as a worker"), || scratch.pid());
    await_some(DEADLINE, &format!("{name} ends as a worker"), || (!process::alive(pid)).then_some(()));
    assert_eq!(supervisor.stop(), 0, "the supervisor stops in order");
    assert_eq!(scratch.pid(), Some(pid), "{name} was started only once");
    supervisor.output()
}
