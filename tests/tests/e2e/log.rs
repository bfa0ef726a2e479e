//! The log: its formats, levels and limits.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use master_process_tests::supervisor::{Builder, binary};
use master_process_tests::{Supervisor, TIMEOUT, eventually, fixtures, needs_root, process, skip};
use rustix::process::Signal;

/// A short life with a death, a reload and a clean end; gives what was logged.
fn logged(builder: Builder) -> Vec<String> {
    let options = ["-w", "2", "--throttle", "30ms", "--throttle-max", "30ms", "--ready", "none"];
    // With eBPF a thread logs when it has loaded it, which may be after the end.
    let supervisor = builder.args(options).args(["--monitor", "off"]).command(fixtures::idle()).spawn();
    let victim = *supervisor.await_workers(2).first().expect("two");
    process::signal(victim, Signal::KILL);
    supervisor.eventually("it is replaced", || {
        let workers = supervisor.workers();
        workers.len() == 2 && !workers.contains(&victim)
    });
    supervisor.reload(2);
    assert_eq!(supervisor.stop(), 0);
    let log = supervisor.log();
    let told =
        log.iter().filter(|line| line.contains(&victim.to_string()) && line.contains("SIGKILL")).count();
    assert_eq!(told, 1, "the death is one line: {log:?}");
    log
}

#[test]
fn no_colours_without_a_terminal() {
    let log = logged(Supervisor::builder().args(["--log-format", "pretty"]));
    assert!(log.iter().all(|line| !line.contains('\x1b')), "{log:?}");
}

#[test]
fn json_is_one_object_a_line() {
    for line in logged(Supervisor::builder().args(["--log-format", "json"])) {
        let parsed: Result<serde_json::Value, _> = serde_json::from_str(&line);
        assert!(parsed.is_ok_and(|value| value.is_object()), "{line}");
    }
}

#[test]
fn journald_lines_begin_with_their_priority() {
    for line in logged(Supervisor::builder().args(["--log-format", "journald"])) {
        let priority = line.strip_prefix('<').and_then(|rest| rest.split_once('>')).map(|(digit, _)| digit);
        assert!(priority.is_some_and(|digit| ["3", "4", "5", "6", "7"].contains(&digit)), "{line}");
    }
}

#[test]
fn quiet_logs_less_and_verbose_logs_more() {
    let normal = logged(Supervisor::builder());
    let stopped = normal.iter().filter(|line| line.contains("stopped after")).count();
    assert_eq!(stopped, 4, "two in the reload, two at the end: {normal:?}");
    assert!(logged(Supervisor::builder().args(["-q"])).len() < normal.len(), "-q");
    assert!(logged(Supervisor::builder().args(["-v"])).len() > normal.len(), "-v");
    for debug in ["master-process", "*"] {
        assert!(logged(Supervisor::builder().env("DEBUG", debug)).len() > normal.len(), "DEBUG={debug}");
    }
    let other = logged(Supervisor::builder().env("DEBUG", "express"));
    assert_eq!(other.len(), normal.len(), "DEBUG of another program: {other:?} instead of {normal:?}");
}

/// What a pipe takes whole or not at all: `PIPE_BUF`.
const ONE_PIECE: usize = 4096;

/// The lines of a supervisor whose program vanishes after its first start, each with a path of nearly the longest that
/// there is, while they are not read for a while.
fn logged_to_a_slow_reader(format: &str) -> Vec<String> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (program, ran) = (folder.path().join("program"), folder.path().join("ran"));
    // Not a script: its interpreter would complain on the same standard error.
    fs::copy("/usr/bin/touch", &program).expect("every host has it");
    let long = format!("{}/{}program", folder.path().display(), "./".repeat(1900));
    let mut supervisor = Command::new(binary())
        .args([
            "--workers",
            "8",
            "--log-format",
            format,
            "--throttle",
            "10ms",
            "--throttle-max",
            "10ms",
            "--ready",
            "none",
            "--",
            &long,
        ])
        .arg(&ran)
        .stderr(Stdio::piped())
        .spawn()
        .expect("it was built");
    eventually(TIMEOUT, "the program has run", || ran.exists());
    fs::remove_file(&program).expect("ours");
    let pid = i32::try_from(supervisor.id()).expect("pids are small");
    let stderr = supervisor.stderr.take().expect("a pipe");
    let wakes = || {
        let text = process::status(pid, "voluntary_ctxt_switches").expect("it runs");
        text.trim().parse::<u64>().expect("a number")
    };
    let mut held = (0, wakes());
    eventually(TIMEOUT, "the pipe is full, and the supervisor goes on", || {
        let now = rustix::io::ioctl_fionread(&stderr).expect("a pipe");
        if now != held.0 {
            held = (now, wakes());
        }
        now > 0 && wakes() > held.1 + 50
    });
    let mut reader = BufReader::new(stderr);
    let mut lines = Vec::new();
    let mut next = |lines: &mut Vec<String>| {
        let mut line = String::new();
        let length = reader.read_line(&mut line).expect("UTF-8");
        lines.push(line);
        length > 0
    };
    while lines.len() < 60 && next(&mut lines) {}
    process::signal(pid, Signal::TERM);
    while next(&mut lines) {}
    assert!(supervisor.wait().expect("our child").success());
    lines.pop();
    lines
}

#[test]
fn long_lines_are_shortened_and_complete_for_a_slow_reader() {
    for format in ["json", "journald", "pretty"] {
        let lines = logged_to_a_slow_reader(format);
        assert!(
            lines.iter().all(|line| line.len() <= ONE_PIECE && line.ends_with('\n')),
            "{format}: {lines:?}"
        );
        let tells =
            |line: &&String| line.contains("failed to start: execve") && line.contains("No such file");
        assert!(lines.iter().filter(tells).count() > 20, "{format}: {lines:?}");
        assert!(lines.iter().any(|line| line.contains("dropped ")), "{format}: {lines:?}");
        let is_whole = |line: &String| match format {
            "json" => {
                serde_json::from_str::<serde_json::Value>(line).is_ok_and(|value| value["level"].is_string())
            }
            "journald" => line.starts_with('<'),
            _pretty => line.starts_with("20") && line.as_bytes()[10] == b'T',
        };
        assert!(lines.iter().all(is_whole), "{format}: {lines:?}");
    }
}

#[test]
fn lines_lost_on_a_full_disk_are_counted_with_the_reason() {
    needs_root!();
    let disk = tempfile::tempdir().expect("a temporary folder");
    let folder = disk.path().to_str().expect("UTF-8").to_owned();
    // A disk of a few pages, which goes with the supervisor's mount namespace, with the log on it.
    let mount = "mount -t tmpfs -o size=64k tmpfs \"$0\" && exec \"$@\" 2>\"$0/log\"";
    let wrapper = ["unshare", "--mount", "sh", "-c", mount, &folder];
    let supervisor =
        Supervisor::builder().wrap(wrapper).args(["--ready", "none"]).command(fixtures::idle()).spawn();
    let inside = std::path::PathBuf::from(format!("/proc/{}/root{folder}", supervisor.pid()));
    if !inside.join("log").exists() {
        skip!("no mount namespaces");
    }
    supervisor.await_workers(1);
    let lines = || fs::read_to_string(inside.join("log")).expect("UTF-8");
    // Nothing else has room from here on, and the log has the rest of its last page: the line that comes to its end is torn.
    let filling = inside.join("filling");
    eventually(TIMEOUT, "the disk is full", || {
        let _full = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(&filling)
            .and_then(|mut file| std::io::Write::write_all(&mut file, &[b'x'; 1 << 17]));
        supervisor.signal(Signal::USR2);
        !lines().is_empty() && lines().len() % 4096 == 0
    });
    fs::remove_file(&filling).expect("root may");
    supervisor.reload(1);
    let told = || {
        let lines = lines();
        let told = lines.lines().find(|line| line.contains("dropped ")).map(str::to_owned);
        told.filter(|line| line.ends_with("the disk of stderr was full"))
    };
    supervisor.eventually(&format!("it is told how many, and why: {}", lines()), || told().is_some());
    let levels = |line: &str| line.matches("  INFO ").count() + line.matches("  WARN ").count();
    assert!(lines().lines().all(|line| levels(line) <= 1), "a torn line ends where it is torn: {}", lines());
    assert_eq!(supervisor.stop(), 0);
}
