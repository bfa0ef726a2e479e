//! The units of `packaging/systemd/`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use master_process_tests::supervisor::binary;
use master_process_tests::{fixtures, skip};

/// The exposure that `systemd-analyze security` may find, in tenths. What the supervisor needs (eBPF, the network, the
/// control groups, processes that write code) is 2.4.
const MOST_EXPOSED: &str = "25";

fn packaging() -> PathBuf {
    fixtures::repository().join("packaging/systemd")
}

/// The version of `systemd-analyze`, if there is one.
fn version() -> Option<u32> {
    let output = Command::new("systemd-analyze").arg("--version").output().ok()?;
    String::from_utf8_lossy(&output.stdout).split_whitespace().nth(1)?.parse().ok()
}

/// A copy of a template that starts the program under test. An older systemd does not know `notify-reload`.
fn installed(template: &Path, version: u32, folder: &Path) -> PathBuf {
    let text = fs::read_to_string(template).expect("it is in the repository");
    assert!(text.contains("\nExecStart=master-process -- $COMMAND\n"), "{text}");
    let text = text.replace("ExecStart=master-process", &format!("ExecStart={}", binary().display()));
    let text = if version < 253 { text.replace("Type=notify-reload", "Type=notify") } else { text };
    fs::write(folder.join("master-process@.service"), &text).expect("ours");
    let instance = folder.join("master-process@test.service");
    fs::write(&instance, text).expect("ours");
    instance
}

fn analyze(arguments: &[&str], files: &[&Path]) -> Output {
    let mut command = Command::new("systemd-analyze");
    command.args(arguments).args(files).env("XDG_RUNTIME_DIR", std::env::temp_dir());
    command.output().expect("it is there")
}

#[test]
fn the_units_are_valid_and_leave_little_exposed() {
    let Some(version) = version() else { skip!("systemd-analyze is not installed") };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let service = installed(&packaging().join("master-process@.service"), version, folder.path());
    let (slice, socket) =
        (folder.path().join("master-process.slice"), folder.path().join("master-process@.socket"));
    fs::copy(packaging().join("master-process.slice"), &slice).expect("it is in the repository");
    fs::copy(packaging().join("master-process@.socket"), &socket).expect("it is in the repository");
    let instance = folder.path().join("master-process@test.socket");
    let verified = analyze(&["verify", "--man=no"], &[&service, &instance, &slice]);
    let complaints = String::from_utf8_lossy(&verified.stderr);
    assert!(verified.status.success() && complaints.is_empty(), "{complaints}");
    let threshold = format!("--threshold={MOST_EXPOSED}");
    let security = analyze(&["security", "--offline=yes", &threshold, "--no-pager"], &[&service]);
    assert!(security.status.success(), "{}", String::from_utf8_lossy(&security.stdout));
}

#[test]
fn the_unit_for_a_user_is_valid() {
    let Some(version) = version() else { skip!("systemd-analyze is not installed") };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let service = installed(&packaging().join("user/master-process@.service"), version, folder.path());
    let verified = analyze(&["--user", "verify", "--man=no"], &[&service]);
    let complaints = String::from_utf8_lossy(&verified.stderr);
    assert!(verified.status.success() && complaints.is_empty(), "{complaints}");
}

#[test]
fn each_directive_of_the_units_has_its_reason() {
    for file in ["master-process@.service", "user/master-process@.service", "master-process@.socket"] {
        let text = fs::read_to_string(packaging().join(file)).expect("it is in the repository");
        let service = text.split_once("\n[Service]\n").or_else(|| text.split_once("\n[Socket]\n"));
        let (_, directives) = service.expect("it has that section");
        let directives = directives.split("\n[Install]\n").next().unwrap_or_default();
        // A comment is about the directives up to the next one or an empty line.
        let mut has_reason = false;
        for line in directives.lines() {
            match line {
                "" => has_reason = false,
                comment if comment.starts_with('#') => has_reason = true,
                directive => {
                    let is_plain = ["EnvironmentFile=", "ExecStart=", "ListenStream="]
                        .iter()
                        .any(|of| directive.starts_with(of));
                    assert!(has_reason || is_plain, "{file}: {directive}");
                }
            }
        }
    }
}

/// The suite takes about two minutes. It needs a systemd of its own as pid 1, because it installs units and kills
/// services: `MASTER_PROCESS_SYSTEMD` is the command that boots one in a throw-away root and runs a command as root in it.
#[test]
#[ignore = "takes a systemd as pid 1 of a throw-away system, named in MASTER_PROCESS_SYSTEMD"]
fn the_units_work_on_a_real_systemd_under_load() {
    let Ok(boot) = std::env::var("MASTER_PROCESS_SYSTEMD") else {
        skip!("MASTER_PROCESS_SYSTEMD is not set")
    };
    let mut words = boot.split_whitespace();
    let mut command = Command::new(words.next().expect("it names a command"));
    let repository = fixtures::repository().canonicalize().expect("it exists");
    command.args(words).arg(repository.join("tests/systemd/suite.sh")).arg(binary()).arg(&repository);
    let output = command.output().expect("MASTER_PROCESS_SYSTEMD can be run");
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    assert!(output.status.success() && text.contains("ok - "), "{}", String::from_utf8_lossy(&output.stderr));
}
