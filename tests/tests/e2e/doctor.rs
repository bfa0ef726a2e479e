//! `master-process doctor`: what it says holds for a supervisor that is started in the same way.

use std::fs;
use std::path::Path;

use master_process_tests::cgroup::Place;
use master_process_tests::profile::{CONTAINER, launcher, ordinary_user};
use master_process_tests::pty::Pty;
use master_process_tests::script::{said, script};
use master_process_tests::supervisor::Finished;
use master_process_tests::{Supervisor, address, fixtures, needs_root, network, process, skip};
use serde_json::Value;

/// The code of a report with a problem.
const DEGRADED: i32 = 150;

/// A report in JSON.
struct Report(Value);

impl Report {
    /// The report of `doctor` behind these words, with these options. Its exit code is that of its rows.
    fn of<S: AsRef<str>>(wrapper: &[S], options: &[&str]) -> Report {
        let finished = run(wrapper, &[&["--json"], options].concat());
        let [line] = finished.stdout.as_slice() else { panic!("one line: {finished:?}") };
        let report = Report(serde_json::from_str(line).expect("JSON"));
        let problem = report.rows().iter().any(is_problem);
        assert_eq!(finished.code, Some(if problem { DEGRADED } else { 0 }), "{finished:?}");
        assert_eq!(report.0["state"], if problem { "degraded" } else { "ok" });
        for row in report.rows() {
            assert_eq!(row["fix"].is_string(), is_problem(row), "{row}");
            assert_eq!(row["why"].is_string(), is_problem(row), "{row}");
        }
        report
    }

    fn rows(&self) -> &[Value] {
        self.0["checks"].as_array().expect("a list")
    }

    fn row(&self, check: &str) -> &Value {
        self.rows()
            .iter()
            .find(|row| row["check"] == check)
            .unwrap_or_else(|| panic!("no {check}: {}", self.0))
    }

    /// Asserts the state of a row, and words of its reason.
    fn says(&self, check: &str, state: &str, words: &str) {
        let row = self.row(check);
        assert_eq!(row["state"], state, "{row}");
        assert!(row["why"].as_str().unwrap_or_default().contains(words), "{row}");
    }
}

fn is_problem(row: &Value) -> bool {
    ["degraded", "missing", "unknown"].contains(&row["state"].as_str().expect("a word"))
}

fn run<S: AsRef<str>>(wrapper: &[S], options: &[&str]) -> Finished {
    let finished =
        Supervisor::builder().wrap(wrapper.iter().map(AsRef::as_ref)).args(["doctor"]).args(options).run();
    assert_eq!(finished.stderr, Vec::<String>::new(), "{finished:?}");
    finished
}

const NOTHING: [&str; 0] = [];

/// As another user, who still can gain privileges.
fn as_user() -> [String; 6] {
    let user = ordinary_user().to_string();
    let words = ["setpriv", "--reuid", &user, "--regid", &user, "--clear-groups"];
    words.map(str::to_owned)
}

/// Without these capabilities for good.
fn without(capabilities: &str) -> [String; 5] {
    let dropped: Vec<String> = capabilities.split(',').map(|name| format!("-{name}")).collect();
    let dropped = dropped.join(",");
    ["setpriv", "--bounding-set", &dropped, "--inh-caps", &dropped].map(str::to_owned)
}

/// In a network of its own, where this shell command runs first.
fn in_network(before: &str) -> [String; 7] {
    let shell = format!("{before} && shift && exec \"$@\"");
    ["unshare", "--net", "sh", "-c", &shell, "sh", network::LOOPBACK_UP].map(str::to_owned)
}

/// Brings the loopback interface of such a network up.
fn loopback_up() -> String {
    format!("{} -S -E -c \"$1\"", fixtures::python())
}

#[test]
fn root_has_every_form_that_needs_a_privilege() {
    needs_root!();
    let report = Report::of(&NOTHING, &[]);
    for check in
        ["start", "clone3", "io_uring", "seccomp", "bind", "pidfd_getfd", "proc", "pss", "capabilities"]
    {
        report.says(check, "ok", "");
    }
    assert_eq!(report.0["uid"], 0);
    assert_eq!(report.row("seccomp")["facts"]["sets_no_new_privs"], false);
}

#[test]
fn the_text_has_the_rows_of_the_json_in_80_columns() {
    let report = Report::of(&NOTHING, &["-w", "3"]);
    let finished = run(&NOTHING, &["-w", "3"]);
    for line in &finished.stdout {
        assert!(line.chars().count() <= 80 && !line.contains('\x1b'), "{line}");
    }
    for row in report.rows() {
        let check = row["check"].as_str().expect("a word");
        let named = |line: &&String| line.split_whitespace().next() == Some(check);
        let line = finished.stdout.iter().find(named).unwrap_or_else(|| panic!("{check}: {finished:?}"));
        let state = row["state"].as_str().expect("a word");
        assert_eq!(line.split_whitespace().nth(1), Some(state), "{line}");
    }
    let degraded = report.0["state"] == "degraded";
    assert_eq!(finished.code, Some(if degraded { DEGRADED } else { 0 }));
}

/// What it shows in a terminal of 60 columns.
fn in_a_narrow_terminal(no_color: &str) -> String {
    let terminal = Pty::open();
    let wrapper = ["sh", "-c", "stty cols 60 && \"$@\" >&0; echo the end >&0", "sh"];
    let builder = Supervisor::builder().wrap(wrapper).stdin(terminal.slave());
    let environment = builder.env("NO_COLOR", no_color).env("TERM", "xterm");
    let _shell = environment.args(["doctor", "--monitor", "procfs"]).spawn();
    let mut text = String::new();
    while !text.contains("the end") {
        text.push_str(&terminal.read());
    }
    text
}

#[test]
fn a_narrow_terminal_gets_narrow_lines_and_colours_unless_no_color_is_set() {
    let coloured = in_a_narrow_terminal("");
    assert!(coloured.contains("\x1b[32mok\x1b[0m"), "{coloured}");
    let plain = in_a_narrow_terminal("1");
    assert!(!plain.contains('\x1b'), "{plain}");
    assert!(plain.lines().count() > 20, "{plain}");
    for line in plain.lines() {
        assert!(line.trim_end().chars().count() <= 60, "{line}");
    }
}

#[test]
fn every_check_is_documented() {
    const PAGE: &str = include_str!("../../../docs/doctor.md");
    let report = Report::of(&NOTHING, &[]);
    for row in report.rows() {
        let cell = format!("| `{}` |", row["check"].as_str().expect("a word"));
        assert_eq!(PAGE.matches(&cell).count(), 1, "{cell}");
    }
}

#[test]
fn an_ordinary_user_is_told_what_a_privilege_would_change() {
    needs_root!();
    let report = Report::of(&as_user(), &[]);
    report.says("sampling", "degraded", "eBPF unavailable: ");
    report.says("reuseport_ebpf", "degraded", "Operation not permitted");
    report.says("exit_causes", "missing", "");
    report.says("capabilities", "degraded", "CAP_BPF");
    report.says("bind", "ok", "");
    assert_eq!(report.row("seccomp")["facts"]["sets_no_new_privs"], true);
}

#[test]
fn a_dropped_capability_is_named() {
    needs_root!();
    let report = Report::of(&without("bpf,sys_admin"), &[]);
    report.says("capabilities", "degraded", "CAP_BPF");
    report.says("sampling", "degraded", "Operation not permitted");
    assert_eq!(report.row("seccomp")["facts"]["sets_no_new_privs"], true, "that is CAP_SYS_ADMIN");
    let report = Report::of(&without("setuid"), &["--user", "1234", "--group", "1234"]);
    report.says("capabilities", "missing", "CAP_SETUID, which --user needs");
    report.says("start", "missing", "setresuid");
}

#[test]
fn a_low_limit_of_open_files_counts_against_the_workers() {
    let wrapper = ["prlimit", "--nofile=100:200"];
    Report::of(&wrapper, &["-w", "2"]).says("open_files", "ok", "");
    let report = Report::of(&wrapper, &["-w", "64"]);
    report.says("open_files", "degraded", "128 workers");
    assert_eq!(report.row("open_files")["facts"]["limit"], 200);
    // A reload of four at a time needs fewer.
    Report::of(&wrapper, &["-w", "32", "--reload-batch", "4", "--monitor", "off"]).says(
        "open_files",
        "ok",
        "",
    );
}

#[test]
fn what_a_container_denies_is_named_and_the_rest_works() {
    let report = Report::of(&launcher(None, &CONTAINER), &[]);
    report.says("io_uring", "degraded", "io_uring_setup: Operation not permitted");
    report.says("clone3", "degraded", "");
    report.says("pidfd_getfd", "degraded", "pidfd_getfd: Operation not permitted");
    report.says("reuseport_ebpf", "degraded", "bpf: Operation not permitted");
    report.says("sampling", "degraded", "eBPF unavailable: ");
    for check in ["start", "seccomp", "bind"] {
        report.says(check, "ok", "");
    }
    let fix = report.row("io_uring")["fix"].as_str().unwrap_or_default();
    assert!(fix.contains("io_uring_setup"), "{fix}");
}

#[test]
fn controllers_of_limits_are_told_apart_and_a_limit_that_cannot_be_set_is_missing() {
    let Some(place) = Place::make(true) else { skip!("no cgroup can be made") };
    let available = place.read("cgroup.controllers");
    let has = |name: &str| available.split_whitespace().any(|controller| controller == name);
    let report = Report::of(&place.launcher(), &[]);
    report.says("cgroup_limits", "unused", "");
    for name in ["memory", "cpu", "pids"] {
        assert_eq!(
            report.row("cgroup_limits")["facts"][format!("has_{name}")],
            has(name),
            "{name}: {available}"
        );
    }
    let report = Report::of(&place.launcher(), &["--worker-pids-max", "64"]);
    report.says("cgroup_limits", if has("pids") { "ok" } else { "missing" }, "");
    // The new cgroup gets no controller from the one above it, wherever that has some.
    let below = place.path().join("below").display().to_string();
    let options = ["--cgroup", &below, "--worker-pids-max", "64", "--worker-cpu-max", "50%"];
    let report = Report::of(&NOTHING, &options);
    report.says("cgroup_limits", "missing", "the cpu controller is not enabled for ");
    report.says("cgroup_limits", "missing", "--worker-cpu-max and --worker-pids-max: ");
    if has("cpu") && has("pids") {
        let command = report.row("cgroup_limits")["command"].as_str().unwrap_or_default();
        let expected = format!("echo +cpu +pids | tee {}/cgroup.subtree_control", place.path().display());
        assert_eq!(command, expected);
    }
    assert!(place.is_empty(), "nothing remains");
}

#[test]
fn a_monitor_that_was_asked_for_and_cannot_be_had_is_missing() {
    let report = Report::of(&launcher(None, &CONTAINER), &["--monitor", "ebpf"]);
    report.says("sampling", "missing", "bpf(BPF_");
    let report = Report::of(&launcher(None, &CONTAINER), &["--monitor", "procfs", "--share", "off"]);
    report.says("sampling", "ok", "");
    report.says("reuseport_ebpf", "unused", "");
}

#[test]
fn without_seccomp_no_port_is_shared() {
    let user = process::is_root().then(ordinary_user);
    for errno in ["1", "38"] {
        let report = Report::of(&launcher(user, &[&format!("seccomp={errno}")]), &[]);
        report.says("seccomp", "missing", "ports are not shared");
        report.says("bind", "missing", "");
        report.says("start", "ok", "");
    }
}

#[test]
fn the_settings_of_the_network_are_those_of_its_namespace() {
    needs_root!();
    let set = |migrate: &str| {
        let set = format!("echo {migrate} > /proc/sys/net/ipv4/tcp_migrate_req");
        in_network(&format!("echo 100 > /proc/sys/net/core/somaxconn && {set} && {}", loopback_up()))
    };
    if !Path::new("/proc/sys/net/ipv4/tcp_migrate_req").exists() {
        skip!("the_settings_of_the_network_are_those_of_its_namespace", "before Linux 5.14");
    }
    let as_user = as_user();
    let user = |migrate| [set(migrate).as_slice(), &as_user].concat();
    let report = Report::of(&user("0"), &[]);
    report.says("tcp_migrate_req", "degraded", "waits for the next worker");
    let command = report.row("tcp_migrate_req")["command"].as_str().unwrap_or_default();
    assert!(command.contains("net.ipv4.tcp_migrate_req=1"), "{command}");
    report.says("somaxconn", "degraded", "100 connections");
    assert_eq!(report.row("somaxconn")["facts"]["somaxconn"], 100);
    let report = Report::of(&user("1"), &["--share", "shared", "-w", "4"]);
    report.says("tcp_migrate_req", "ok", "");
    report.says("somaxconn", "degraded", "25 for each worker");
    assert_eq!(report.row("somaxconn")["facts"]["connections_per_worker"], 25);
}

/// What the log of a supervisor says that measures, waits and shares in these surroundings.
fn logged_by_a_supervisor<S: AsRef<str>>(wrapper: &[S]) -> (bool, bool) {
    let supervisor = Supervisor::builder()
        .wrap(wrapper.iter().map(AsRef::as_ref))
        .args(["--ready", "none"])
        .command(fixtures::idle())
        .spawn();
    let monitor = supervisor.until("the log says what measures", || supervisor.logged(&["monitor: "]).pop());
    let epoll = !supervisor.logged(&["using epoll"]).is_empty();
    assert_eq!(supervisor.stop(), 0);
    (monitor.ends_with("monitor: ebpf"), epoll)
}

#[test]
fn a_supervisor_logs_what_doctor_has_said() {
    needs_root!();
    let surroundings: [Vec<String>; 4] =
        [Vec::new(), as_user().to_vec(), launcher(None, &CONTAINER), launcher(None, &["io_uring_setup=38"])];
    for wrapper in surroundings {
        let report = Report::of(&wrapper, &["-w", "1"]);
        let ebpf = report.row("sampling")["uses"].as_str().is_some_and(|uses| uses.starts_with("eBPF"));
        let epoll = report.row("io_uring")["uses"] == "epoll";
        assert_eq!((ebpf, epoll), logged_by_a_supervisor(&wrapper), "{wrapper:?}: {}", report.0);
    }
}

#[test]
fn a_supervisor_takes_no_more_descriptors_for_a_worker_than_doctor_counts() {
    let needed = |workers: &str| {
        let report = Report::of(&NOTHING, &["-w", workers, "--monitor", "off"]);
        report.row("open_files")["facts"]["needed"].as_u64().expect("a number")
    };
    let used = |workers: usize| {
        let text = "made = bound(HOST, PORT); made.listen(64); say('ready'); serve(made)";
        let supervisor = Supervisor::builder()
            .args(["-w", &workers.to_string(), "--monitor", "off"])
            .command(script(text, address::tcp()))
            .spawn();
        said(&supervisor, workers);
        supervisor.eventually("all are ready", || supervisor.logged(&[": listening"]).len() == workers);
        let used = process::descriptors(supervisor.pid()).len() as u64;
        assert_eq!(supervisor.stop(), 0);
        used
    };
    let (few, many) = (used(2), used(12));
    assert!(few <= needed("2") && many <= needed("12"), "{few} and {many}");
    // It counts the workers of a reload, which are twice as many.
    assert!(2 * (many - few) <= needed("12") - needed("2"), "{few} and {many}");
}

#[test]
fn nothing_remains() {
    needs_root!();
    // A `/run` of its own, where no supervisor has ever been.
    let script = "mount -t tmpfs none /run && \"$@\"; code=$?; ls -A /run >&2; exit $code";
    let wrapper = ["unshare", "--mount", "sh", "-c", script, "sh"];
    let finished = run(&wrapper, &[]);
    assert!(matches!(finished.code, Some(0 | DEGRADED)), "{finished:?}");
    // With a directory that is there, the files for other supervisors are not made.
    let script = "mount -t tmpfs none /run && mkdir -m 755 /run/master-process && \"$@\"; code=$?; \
                  ls -A /run/master-process >&2; exit $code";
    let wrapper = ["unshare", "--mount", "sh", "-c", script, "sh"];
    let finished = run(&wrapper, &[]);
    assert!(matches!(finished.code, Some(0 | DEGRADED)), "{finished:?}");
}

#[test]
fn no_process_remains() {
    let folder = tempfile::tempdir().expect("a folder");
    let left = folder.path().join("left");
    // A subreaper would get what was left.
    let script = "
import ctypes, subprocess, sys, os
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
subprocess.run(sys.argv[2:], stdout=subprocess.DEVNULL)
try:
    found = os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    found = 'none'
open(sys.argv[1], 'w').write(str(found))
";
    let wrapper = [fixtures::python(), "-c".to_owned(), script.to_owned(), left.display().to_string()];
    run(&wrapper, &[]);
    assert_eq!(fs::read_to_string(left).expect("written"), "none");
}

#[test]
fn a_wrong_value_is_one_line_and_exit_2() {
    for options in [&["-w", "0"][..], &["--bogus"], &["--monitor", "no"]] {
        let finished = Supervisor::builder().args(["doctor"]).args(options).run();
        assert_eq!((finished.code, finished.stderr.len()), (Some(2), 1), "{finished:?}");
        assert_eq!(finished.stdout, Vec::<String>::new());
    }
}
