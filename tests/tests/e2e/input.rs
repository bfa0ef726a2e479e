//! What a user can get wrong: an exit code, one line, and nothing started.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use master_process_tests::{Finished, Supervisor, address, fixtures, skip};
use rustix::process::Signal;

/// The one line that it wrote.
fn only_line(finished: &Finished) -> &str {
    assert_eq!(finished.stderr.len(), 1, "not one line: {finished:?}");
    &finished.stderr[0]
}

/// Wrong usage: 2, one line with all of `words` in it, nothing started.
fn is_wrong_usage(finished: &Finished, words: &[&str]) {
    assert_eq!(finished.code, Some(2), "{words:?}: {finished:?}");
    let line = only_line(finished);
    for word in words {
        assert!(line.contains(word), "{word:?} is not named in: {line}");
    }
    assert!(finished.stdout.is_empty(), "something was started: {finished:?}");
}

/// A command that shows that it was started.
const STARTED: [&str; 2] = ["echo", "started"];

/// Every option that takes a value, with values that it must refuse.
const GARBAGE: &[(&str, &[&str])] = &[
    ("--workers", &["0", "-1", "1000000000", "1e9", "many", "2.5", "99999999999999999999", "+", " "]),
    ("--throttle", &["soon", "-1s", "1parsec", "5 5", "s", "1e400s", "99999999999999999999999s"]),
    ("--throttle-max", &["never", "-5", "1h1"]),
    ("--give-up", &["3", "3/", "/10s", "x/10s", "3/soon", "0/10s", "-1/10s", "3/10s/1"]),
    ("--kill-timeout", &["soon", "-1", "5sec5", "NaN", "inf"]),
    ("--stop-signal", &["NOPE", "0", "65", "-15", "TERMINATE"]),
    (
        "--ready",
        &[
            "perhaps",
            "notify:",
            "notify:fd",
            "notify:fd=",
            "notify:fd=x",
            "notify:fd=-1",
            "alive",
            "alive:",
            "alive:x",
        ],
    ),
    ("--ready-timeout", &["late", "-60s"]),
    ("--reload-batch", &["0", "-1", "0%", "101%", "%", "half", "1.5", "all%"]),
    ("--reload-attempts", &["0", "-3", "three", "1.5"]),
    ("--preload", &["'a", "''", "#"]),
    ("--preload-max", &["0", "0B", "100", "-1KiB", "off", "many"]),
    ("--start-gate", &["0", "-1", "on", "1.5", "4097", "4 "]),
    (
        "--listen",
        &[
            "nowhere:port",
            "99999",
            "-1",
            "127.0.0.1:99999",
            "127.0.0.1",
            "unix:",
            "[::1]",
            "a=b=c:1",
            "[::1:80",
        ],
    ),
    ("--share", &["yes", "SO_REUSEPORT", "on"]),
    ("--on-upgrade", &["reload", "exec,exit", "1", " "]),
    ("--orphans", &["spare", "keep,kill", "1", " "]),
    ("--socket-mode", &["999", "rw", "-1", "77777", "0x1ff"]),
    ("--socket-owner", &["nobody-such", "root:nobody-such", ":", "-1"]),
    ("--user", &["nobody-such", "-1", "4294967296"]),
    ("--group", &["nobody-such", "-1", "4294967296"]),
    ("--umask", &["9", "rwx", "-1", "10000", "0o22x"]),
    ("--stdin", &["tty", "nul", "/dev/null"]),
    ("--log-format", &["xml", "colour", "JSON!"]),
    ("--worker-memory-max", &["512", "10%", "much", "-1M", "0", "max", "99999999999999999999999"]),
    ("--worker-memory-high", &["512", "1 parsec", "-1"]),
    ("--worker-cpu-max", &["0", "0.5%", "half", "-5", "20 %"]),
    ("--worker-pids-max", &["0", "-1", "10%", "many", "1.5", "4194305"]),
    ("--cgroup", &["app", "./app", "/sys/fs/cgroup/../etc"]),
    ("--name", &["a/b", ".hidden", "two words", "ü"]),
    ("--control", &["/run/", "/", ".."]),
    ("--control-group", &["nobody-such", "-1", "4294967296"]),
    ("--metrics", &["65536", "unix:", "on", "1.2.3.4"]),
];

#[test]
fn a_flag_with_garbage_is_one_line_and_exit_2() {
    for (flag, values) in GARBAGE {
        for value in *values {
            let joined = format!("{flag}={value}");
            let finished = Supervisor::builder().args([joined.as_str()]).command(STARTED).run();
            is_wrong_usage(&finished, &[flag, value]);
        }
    }
}

#[test]
fn a_flag_and_its_garbage_as_two_words_are_one_line_and_exit_2() {
    for (flag, values) in GARBAGE {
        // A value that looks like a flag is taken for one, and said to be unknown: that is another test's.
        for value in values.iter().filter(|value| !value.starts_with('-')) {
            let finished = Supervisor::builder().args([*flag, *value]).command(STARTED).run();
            is_wrong_usage(&finished, &[flag, value]);
        }
    }
}

#[test]
fn a_variable_with_garbage_is_one_line_and_exit_2() {
    for (flag, values) in GARBAGE {
        let variable = format!("MASTER_PROCESS_{}", flag[2..].to_uppercase().replace('-', "_"));
        for value in *values {
            let finished = Supervisor::builder().env(&variable, value).command(STARTED).run();
            is_wrong_usage(&finished, &[&variable, value]);
        }
    }
}

#[test]
fn a_variable_of_the_nodejs_module_with_garbage_is_one_line_and_exit_2() {
    for (variable, values) in [
        ("WORKERS", ["0", "-1", "1000000000", "1e9", "many"]),
        ("WORKER_THROTTLE", ["soon", "-1", "1parsec", "1e400", "x1s"]),
        ("MAX_KILL_TIMEOUT", ["soon", "-1", "5sec5", "NaN", "5s!"]),
    ] {
        for value in values {
            let finished = Supervisor::builder().env(variable, value).command(STARTED).run();
            is_wrong_usage(&finished, &[variable, value]);
        }
    }
}

#[test]
fn the_short_flag_is_checked_like_the_long_one() {
    for value in ["0", "-1", "1000000000"] {
        let finished = Supervisor::builder().args(["-w", value]).command(STARTED).run();
        is_wrong_usage(&finished, &["--workers", value]);
    }
}

#[test]
fn options_of_later_versions_are_unknown() {
    for flag in ["--later", "--bogus"] {
        let finished = Supervisor::builder().args([flag, "1"]).command(STARTED).run();
        is_wrong_usage(&finished, &[flag]);
    }
}

#[test]
fn no_command_is_wrong_usage() {
    let finished = Supervisor::builder().run();
    assert_eq!(finished.code, Some(2), "{finished:?}");
    assert!(!finished.stderr.is_empty(), "it says what is missing");
    let finished = Supervisor::builder().args(["-w", "2", "--"]).run();
    assert_eq!(finished.code, Some(2), "{finished:?}");
}

#[test]
fn help_and_version_exit_with_0() {
    for flag in ["--help", "--version"] {
        let finished = Supervisor::builder().args([flag]).run();
        assert_eq!(finished.code, Some(0), "{finished:?}");
        assert!(finished.stdout.iter().any(|line| line.contains("master-process")), "{finished:?}");
        assert!(finished.stderr.is_empty(), "{finished:?}");
    }
}

#[test]
fn an_empty_variable_is_unset() {
    let mut builder = Supervisor::builder().args(["--ready", "none"]).command(fixtures::idle());
    for (flag, _) in GARBAGE {
        builder = builder.env(format!("MASTER_PROCESS_{}", flag[2..].to_uppercase().replace('-', "_")), "");
    }
    for name in ["WORKERS", "WORKER_THROTTLE", "MAX_KILL_TIMEOUT"] {
        builder = builder.env(name, "");
    }
    let supervisor = builder.spawn();
    supervisor.await_workers(1);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn precedence_is_flag_then_prefixed_then_older_variable() {
    let workers = |flag: Option<&str>, prefixed: &str, ancestor: &str, expected: usize| {
        let builder =
            Supervisor::builder().args(["--ready", "none"]).args(flag.map(|flag| format!("-w{flag}")));
        let builder = builder.env("MASTER_PROCESS_WORKERS", prefixed).env("WORKERS", ancestor);
        let supervisor = builder.command(fixtures::idle()).spawn();
        assert_eq!(supervisor.await_workers(expected).len(), expected);
        assert_eq!(supervisor.stop(), 0);
    };
    workers(Some("4"), "3", "2", 4);
    workers(None, "3", "2", 3);
    workers(None, "", "2", 2);
}

#[test]
fn repeated_values_in_a_variable_are_separated_by_commas() {
    let (first, second) = (address::tcp(), address::tcp());
    let supervisor = Supervisor::builder()
        .env("MASTER_PROCESS_LISTEN", format!("web={first},{second}"))
        .command(fixtures::worker(&["env"]))
        .spawn();
    let environment = supervisor.await_environment(|_| true);
    assert_eq!(environment["LISTEN_FDS"], "2");
    assert!(
        environment["LISTEN_FDNAMES"].as_str().is_some_and(|names| names.starts_with("web:")),
        "{environment}"
    );
}

#[test]
fn missing_command_is_exit_code_127() {
    // A search path of folders that may all be read: one that may not makes "not found" uncertain, also to env(1).
    for command in ["no-such-command-anywhere", "/no/such/folder/app", "./no-such-file"] {
        let finished = Supervisor::builder().env("PATH", "/usr/bin:/bin").command([command]).run();
        assert_eq!(finished.code, Some(127), "{finished:?}");
        assert!(only_line(&finished).contains(command), "{finished:?}");
    }
}

#[test]
fn command_that_cannot_be_executed_is_exit_code_126() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let plain = folder.path().join("plain");
    fs::write(&plain, "#!/bin/sh\necho started\n").expect("the folder is ours");
    fs::set_permissions(&plain, fs::Permissions::from_mode(0o644)).expect("the file is ours");
    let nonsense = folder.path().join("nonsense");
    fs::write(&nonsense, [0_u8, 1, 2, 3]).expect("the folder is ours");
    fs::set_permissions(&nonsense, fs::Permissions::from_mode(0o755)).expect("the file is ours");
    for command in [folder.path(), &plain, &nonsense] {
        let finished = Supervisor::builder().args(["-w", "2"]).command([command]).run();
        assert_eq!(finished.code, Some(126), "{finished:?}");
        assert!(only_line(&finished).contains(command.to_str().expect("UTF-8")), "{finished:?}");
        assert!(finished.stdout.is_empty(), "{finished:?}");
    }
}

#[test]
fn command_removed_later_is_retried() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let program = folder.path().join("app");
    let install = || {
        fs::copy("/bin/sleep", &program).expect("there is a sleep");
    };
    install();
    let options = ["--throttle", "50ms", "--throttle-max", "50ms", "--ready", "none"];
    let supervisor = Supervisor::start(&options, [program.as_os_str(), "infinity".as_ref()]);
    let first = supervisor.await_workers(1);
    fs::remove_file(&program).expect("it is there");
    first.iter().for_each(|pid| master_process_tests::process::signal(*pid, Signal::KILL));
    supervisor.eventually("the failure is logged", || {
        supervisor.log().iter().filter(|line| line.contains(program.to_str().expect("UTF-8"))).count() >= 2
    });
    install();
    supervisor.await_workers(1);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn listen_port_in_use_is_fatal_and_named() {
    let address = address::tcp();
    let _holder = TcpListener::bind(address).expect("the address is this test's own");
    let finished = Supervisor::builder().args(["--listen", &address.to_string()]).command(STARTED).run();
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert!(only_line(&finished).contains(&address.to_string()), "{finished:?}");
    assert!(finished.stdout.is_empty(), "{finished:?}");
}

#[test]
fn regular_file_at_a_listen_path_is_fatal_and_kept() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("app.sock");
    fs::write(&path, "precious").expect("the folder is ours");
    let finished =
        Supervisor::builder().args(["--listen", &format!("unix:{}", path.display())]).command(STARTED).run();
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert!(only_line(&finished).contains(path.to_str().expect("UTF-8")), "{finished:?}");
    assert_eq!(fs::read_to_string(&path).expect("left alone"), "precious");
    assert!(finished.stdout.is_empty(), "{finished:?}");
}

#[test]
fn live_server_at_a_listen_path_is_fatal_and_kept() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("app.sock");
    let live = UnixListener::bind(&path).expect("the folder is ours");
    let finished =
        Supervisor::builder().args(["--listen", &format!("unix:{}", path.display())]).command(STARTED).run();
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert!(only_line(&finished).contains(path.to_str().expect("UTF-8")), "{finished:?}");
    std::os::unix::net::UnixStream::connect(&path).expect("it can still be reached");
    drop(live);
}

#[test]
fn an_ordinary_user_cannot_run_workers_as_another() {
    if !master_process_tests::process::is_root() {
        skip!("to become an ordinary user takes root");
    }
    let ordinary = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let finished = Supervisor::builder().wrap(ordinary).args(["--user", "root"]).command(STARTED).run();
    // Whether it is refused before the first start or by the kernel at it, it is said and nothing runs.
    assert!(matches!(finished.code, Some(1 | 2 | 126)), "{finished:?}");
    assert!(!finished.stderr.is_empty() && finished.stdout.is_empty(), "{finished:?}");
}

#[test]
fn give_up_exits_with_70() {
    let options = ["-w", "2", "--give-up", "3/10s", "--throttle", "700ms", "--throttle-max", "700ms"];
    let finished = Supervisor::builder().args(options).command(fixtures::shell("echo started; exit 1")).run();
    assert_eq!(finished.code, Some(70), "{finished:?}");
    let starts = finished.stdout.len();
    assert!((3..=5).contains(&starts), "gave up after {starts} starts: {finished:?}");
}

#[test]
fn give_up_stops_the_healthy_workers() {
    let options = ["-w", "2", "--give-up", "3/20s", "--throttle", "700ms", "--throttle-max", "700ms"];
    let words = ["index=0:exit=1", "term=clean:0.3:0"];
    let supervisor = Supervisor::start(&options, fixtures::worker(&words));
    assert_eq!(supervisor.wait_exit(master_process_tests::TIMEOUT).code(), Some(70));
    assert_eq!(supervisor.events_named("clean_up").len(), 1, "the healthy one was asked, and waited for");
    assert!(supervisor.survivors().is_empty());
}

#[test]
fn early_exits_outside_of_the_window_do_not_give_up() {
    // Three deaths within half a second would; at one each 400 ms there are never more than two.
    let options = ["--give-up", "3/500ms", "--throttle", "400ms", "--throttle-max", "400ms"];
    let supervisor = Supervisor::start(&options, fixtures::shell("echo started; exit 1"));
    supervisor.eventually("six starts", || supervisor.output().len() >= 6);
    assert_eq!(supervisor.stop(), 0);
}
