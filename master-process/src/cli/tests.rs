//! Whole command lines.

use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::Duration;

use super::host::testing::TestHost;
use super::option_table::{OPTIONS, Opt};
use super::*;
use crate::config::{
    AddressPattern, Batch, Capabilities, CgroupLimits, Control, Identity, Limits, ListenAddr, LogFormat,
    Monitor, OnUpgrade, Orphans, Owner, ReadyMode, Scope, Share, ShareRules, Signal, Stdin, StopGroup,
    Verbosity,
};

fn parsed(vars: &[(&str, &str)], args: &[&str]) -> Result<Command, UsageError> {
    let vars = vars.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))).collect();
    let args = ["master-process"].iter().chain(args).map(OsString::from);
    parse_with(TestHost { vars, ..TestHost::default() }, args)
}

fn parse_with(host: TestHost, args: impl Iterator<Item = OsString>) -> Result<Command, UsageError> {
    // The parsers that clap holds refer to the host of the program, which is never dropped.
    parse_on(Box::leak(Box::new(host)), args)
}

/// The configuration of `master-process ARGS -- ./app`.
fn config(vars: &[(&str, &str)], args: &[&str]) -> Config {
    match parsed(vars, &[args, &["--", "./app"]].concat()) {
        Ok(Command::Run(config)) => *config,
        other => unreachable!("{args:?} gives {other:?}"),
    }
}

/// The error of `master-process ARGS -- ./app`.
fn error(vars: &[(&str, &str)], args: &[&str]) -> String {
    error_of_line(vars, &[args, &["--", "./app"]].concat())
}

fn error_of_line(vars: &[(&str, &str)], args: &[&str]) -> String {
    let line = parsed(vars, args).expect_err("a usage error").to_string();
    assert!(!line.is_empty() && !line.contains('\n'), "{line:?}");
    line
}

#[test]
fn the_defaults() {
    assert_eq!(
        config(&[], &[]),
        Config {
            command: vec!["./app".into()],
            workers: 1,
            throttle: Duration::from_secs(1),
            throttle_max: Duration::from_secs(30),
            give_up: None,
            kill_timeout: Duration::from_secs(5),
            drain: Duration::from_millis(200),
            on_upgrade: OnUpgrade::Exec,
            orphans: Orphans::Kill,
            stop_signal: Signal(libc::SIGTERM),
            stop_group: StopGroup::Leader,
            ready: ReadyMode::Auto,
            ready_timeout: Duration::from_secs(60),
            reload_batch: Batch::All,
            reload_attempts: 3,
            start_gate: Some(32),
            preload: None,
            preload_max: 1 << 30,
            limits: Limits {
                max_cpu: Some(950_000_000),
                cpu_is_default: true,
                cpu_failures: 10,
                max_memory: Some(1200 << 20),
                memory_is_default: true,
                memory_failures: 10,
                interval: Duration::from_secs(2),
                delay: Duration::from_secs(30),
            },
            cgroup_limits: CgroupLimits::default(),
            cgroup: None,
            monitor: Monitor::Auto,
            account: Scope::Tree,
            memory_high_signal: None,
            listen: vec![],
            share: Share::Auto,
            share_rules: ShareRules::default(),
            takeover: false,
            socket_mode: None,
            socket_owner: None,
            identity: None,
            login: None,
            ambient: Capabilities::NONE,
            no_new_privs: false,
            chdir: None,
            umask: None,
            name: None,
            control: Control::Default,
            control_group: None,
            metrics: None,
            stdin: Stdin::Null,
            log_format: LogFormat::Auto,
            verbosity: Verbosity::Normal,
        }
    );
}

#[test]
fn every_flag_reaches_the_configuration() {
    let config = config(
        &[],
        &[
            "-w4",
            "--throttle=2s",
            "--throttle-max",
            "3s",
            "--give-up",
            "5/1min",
            "--kill-timeout",
            "0",
            "--stop-signal",
            "QUIT",
            "--ready",
            "notify:fd=5",
            "--ready-timeout",
            "9s",
            "--reload-batch",
            "25%",
            "--reload-attempts",
            "1",
            "--start-gate",
            "off",
            "--listen",
            "3000",
            "--listen",
            "web=unix:/run/a,b",
            "--max-memory",
            "1.5GiB",
            "--memory-failures",
            "3",
            "--max-cpu",
            "off",
            "--cpu-failures",
            "4",
            "--monitor",
            "off",
            "--monitor-interval",
            "500ms",
            "--monitor-delay",
            "0",
            "--account",
            "worker",
            "--memory-high-signal",
            "USR1",
            "--worker-memory-max",
            "1G",
            "--worker-memory-high",
            "1024M",
            "--worker-cpu-max",
            "150%",
            "--worker-pids-max",
            "64",
            "--cgroup",
            "/sys/fs/cgroup/api/",
            "--share",
            "off",
            "--takeover",
            "--socket-mode",
            "600",
            "--socket-owner",
            "deploy:www-data",
            "--user",
            "deploy",
            "--group",
            "www-data",
            "--ambient",
            "chown,Cap_Kill",
            "--no-new-privs",
            "--chdir",
            "app",
            "--umask",
            "027",
            "--name",
            "api",
            "--control",
            "run/api.sock",
            "--control-group",
            "www-data",
            "--metrics",
            "127.0.0.1:9464",
            "--stdin",
            "inherit",
            "--log-format",
            "json",
            "-q",
        ],
    );
    assert_eq!(config.workers, 4);
    assert_eq!((config.throttle, config.throttle_max), (Duration::from_secs(2), Duration::from_secs(3)));
    assert_eq!(config.give_up.map(|give_up| give_up.deaths), Some(5));
    assert_eq!(config.kill_timeout, Duration::ZERO);
    assert_eq!(config.stop_signal, Signal(libc::SIGQUIT));
    assert_eq!((config.ready, config.ready_timeout), (ReadyMode::NotifyFd(5), Duration::from_secs(9)));
    assert_eq!((config.reload_batch, config.reload_attempts), (Batch::Percent(25), 1));
    assert_eq!(config.start_gate, None);
    assert_eq!(
        config.listen.iter().map(|listen| listen.name.as_deref()).collect::<Vec<_>>(),
        [None, Some("web")]
    );
    let limits = Limits {
        max_cpu: None,
        cpu_is_default: false,
        cpu_failures: 4,
        max_memory: Some(1536 << 20),
        memory_is_default: false,
        memory_failures: 3,
        interval: Duration::from_millis(500),
        delay: Duration::ZERO,
    };
    assert_eq!((config.limits, config.monitor, config.account), (limits, Monitor::Off, Scope::Worker));
    assert_eq!(config.memory_high_signal, Some(Signal(libc::SIGUSR1)));
    let cgroup_limits = CgroupLimits {
        memory_max: Some(1 << 30),
        memory_high: Some(1 << 30),
        cpu_max: Some(1_500_000_000),
        pids_max: Some(64),
    };
    assert_eq!(config.cgroup_limits, cgroup_limits);
    assert_eq!(config.cgroup, Some(PathBuf::from("/sys/fs/cgroup/api")));
    assert_eq!((config.share, config.socket_mode), (Share::Off, Some(0o600)));
    assert!(config.takeover);
    assert_eq!(config.socket_owner, Some(Owner { uid: Some(1000), gid: Some(33) }));
    assert_eq!(config.identity, Some(Identity { uid: Some(1000), gid: 33, groups: vec![33, 27] }));
    assert_eq!(config.login.and_then(|login| login.home).as_deref(), Some("/home/deploy"));
    assert_eq!((config.ambient, config.no_new_privs), (Capabilities(0b10_0001), true));
    assert_eq!((config.chdir, config.umask), (Some(PathBuf::from("/srv/app")), Some(0o027)));
    assert_eq!((config.stdin, config.log_format), (Stdin::Inherit, LogFormat::Json));
    assert_eq!(config.verbosity, Verbosity::Quiet);
    assert_eq!((config.name.as_deref(), config.control_group), (Some("api"), Some(33)));
    assert_eq!(config.metrics, Some(ListenAddr::Inet(([127, 0, 0, 1], 9464).into())));
    assert_eq!(config.control, Control::At(PathBuf::from("/srv/run/api.sock")));
}

#[test]
fn one_worker_can_read_a_terminal() {
    let on = |has_terminal: bool, workers: &str| {
        let line = ["master-process", "--stdin", "inherit", "-w", workers, "--", "./app"];
        parse_with(TestHost { has_terminal, ..TestHost::default() }, line.map(OsString::from).into_iter())
    };
    let error = on(true, "2").expect_err("two cannot read one terminal").to_string();
    assert!(error.contains("--stdin") && error.contains("--workers"), "{error}");
    for (has_terminal, workers) in [(true, "1"), (false, "2")] {
        let is_accepted =
            matches!(on(has_terminal, workers), Ok(Command::Run(config)) if config.stdin == Stdin::Inherit);
        assert!(is_accepted, "{workers} workers, a terminal: {has_terminal}");
    }
}

/// A value of each form, for the tests that go through all options.
fn sample(opt: &Opt) -> &'static str {
    match opt.long {
        "workers" | "reload-batch" | "reload-attempts" | "start-gate" => "2",
        "throttle" | "throttle-max" | "kill-timeout" | "drain" | "ready-timeout" => "7s",
        "give-up" => "5/1min",
        "stop-signal" => "INT",
        "ready" => "none",
        "listen" => "3000",
        "share" => "off",
        "share-only" | "no-share" => "3000,9100-9199",
        "socket-mode" | "umask" => "077",
        "socket-owner" | "user" => "deploy",
        "group" => "www-data",
        "ambient" => "net_bind_service,CAP_KILL",
        "chdir" => "/srv/app",
        "on-upgrade" => "exit",
        "orphans" => "keep",
        "stop-group" => "tree",
        "max-memory" | "preload-max" => "300MiB",
        "preload" => "./warm --all 'two words'",
        "worker-memory-max" | "worker-memory-high" => "256M",
        "worker-cpu-max" => "50%",
        "worker-pids-max" => "64",
        "cgroup" => "/sys/fs/cgroup/app",
        "max-cpu" => "250",
        "memory-failures" | "cpu-failures" => "3",
        "monitor" => "procfs",
        "monitor-interval" | "monitor-delay" => "500ms",
        "account" => "worker",
        "memory-high-signal" => "USR1",
        "name" => "api",
        "control" => "/run/app/control.sock",
        "control-group" => "www-data",
        "metrics" => "127.0.0.1:9464",
        "stdin" => "inherit",
        "log-format" => "json",
        other => unreachable!("no sample for --{other}"),
    }
}

#[test]
fn every_flag_with_a_value_has_its_variable() {
    for opt in OPTIONS {
        let Some(variable) = opt.own_variable() else {
            continue;
        };
        let flag = format!("--{}", opt.long);
        let by_flag = config(&[], &[&flag, sample(opt)]);
        assert_ne!(by_flag, config(&[], &[]), "{flag} has no effect");
        assert_eq!(config(&[(&variable, sample(opt))], &[]), by_flag, "{variable}");
        assert_eq!(config(&[(&variable, "")], &[]), config(&[], &[]), "{variable} is empty");
        for older in opt.variables {
            assert_eq!(config(&[(older, sample(opt))], &[]), by_flag, "{older}");
        }
    }
}

#[test]
fn an_invalid_value_names_its_flag_or_variable() {
    for opt in OPTIONS {
        let Some(variable) = opt.own_variable() else {
            continue;
        };
        let garbage = "gar\nbage";
        let flag = format!("--{}", opt.long);
        assert!(
            error(&[], &[&flag, garbage]).starts_with(&format!(r#"invalid value "gar\nbage" for {flag}: "#)),
            "{flag}"
        );
        for variable in std::iter::once(variable.as_str()).chain(opt.variables.iter().copied()) {
            let line = error(&[(variable, garbage)], &[]);
            assert!(line.starts_with(&format!(r#"invalid value "gar\nbage" for {variable}: "#)), "{line}");
        }
    }
}

#[test]
fn a_flag_precedes_the_own_variable_and_that_the_older_ones() {
    let both = [("WORKERS", "2"), ("MASTER_PROCESS_WORKERS", "3")];
    assert_eq!(config(&both, &["-w", "4"]).workers, 4);
    assert_eq!(config(&both, &[]).workers, 3);
    assert_eq!(config(&[("WORKERS", "2"), ("MASTER_PROCESS_WORKERS", "")], &[]).workers, 2);
    // A variable that does not apply is not validated.
    assert_eq!(config(&[("WORKERS", "garbage")], &["-w", "4"]).workers, 4);
}

#[test]
fn share_rules_are_repeated_or_separated_by_commas() {
    let ports = |port| AddressPattern::Ports(port..=port);
    let expected = ShareRules { only: [1, 2, 3].map(ports).to_vec(), except: vec![ports(4)] };
    let by_flag = config(&[], &["--share-only", "1, 2", "--share-only=3", "--no-share", "4"]);
    assert_eq!(by_flag.share_rules, expected);
    let vars = [("MASTER_PROCESS_SHARE_ONLY", "1,2,3"), ("MASTER_PROCESS_NO_SHARE", "4")];
    assert_eq!(config(&vars, &[]).share_rules, expected);
    assert!(
        error(&[], &["--no-share", "80,"]).starts_with(r#"invalid value "" for --no-share: expected PORT, "#)
    );
    let line = error(&[("MASTER_PROCESS_SHARE_ONLY", "80,http,81")], &[]);
    assert!(
        line.starts_with(r#"invalid value "http" for MASTER_PROCESS_SHARE_ONLY: expected PORT, "#),
        "{line}"
    );
}

#[test]
fn an_unknown_capability_is_named() {
    assert_eq!(
        error(&[], &["--ambient", "kill,fly"]),
        r#"invalid value "fly" for --ambient: expected a name of capabilities(7), such as net_bind_service or CAP_NET_BIND_SERVICE"#
    );
}

#[test]
fn an_error_has_the_value_its_source_and_what_is_expected() {
    assert_eq!(
        error(&[], &["--throttle", "5 parsecs"]),
        r#"invalid value "5 parsecs" for --throttle: expected a duration such as 300ms, 5s or 2min; a bare number is milliseconds"#
    );
    assert_eq!(
        error(&[("WORKERS", "-1")], &[]),
        r#"invalid value "-1" for WORKERS: expected 1 to 100000, max or auto"#
    );
}

#[test]
fn a_negative_number_is_an_invalid_value() {
    for flag in ["-w", "--workers"] {
        assert!(error(&[], &[flag, "-1"]).starts_with(r#"invalid value "-1" for --workers: expected"#));
    }
    assert!(
        error(&[], &["--kill-timeout", "-5"])
            .starts_with(r#"invalid value "-5" for --kill-timeout: expected"#)
    );
    assert!(
        error(&[], &["--kill-timeout=-5s"])
            .starts_with(r#"invalid value "-5s" for --kill-timeout: expected"#)
    );
}

#[test]
fn an_empty_flag_is_not_unset() {
    assert!(error(&[], &["--workers="]).starts_with(r#"invalid value "" for --workers: expected"#));
    assert!(error(&[], &["--chdir", ""]).starts_with(r#"invalid value "" for --chdir: not a directory"#));
}

#[test]
fn the_command_is_kept_byte_for_byte() {
    let raw = OsString::from_vec(vec![b'a', 0xff, b'\n']);
    let args = ["master-process", "--", "-v", "--"].map(OsString::from).into_iter().chain([raw.clone()]);
    let Ok(Command::Run(config)) = parse_with(TestHost::default(), args) else {
        unreachable!("a valid line")
    };
    assert_eq!(config.command, ["-v".into(), "--".into(), raw]);
}

#[test]
fn a_command_without_the_dashes_shows_the_form() {
    for args in [&["./app"] as &[&str], &["-w", "2", "./app", "--port", "1"]] {
        let error = error_of_line(&[], args);
        assert!(
            error.contains("expected the command after --, as in master-process [OPTIONS] -- COMMAND"),
            "{error}"
        );
    }
    // A command of the client comes first.
    let error = error_of_line(&[], &["-w", "2", "status"]);
    assert!(error.contains("expected it first, as in master-process status"), "{error}");
}

#[test]
fn a_missing_command_shows_the_form() {
    for args in [&[] as &[&str], &["--"], &["-w", "2"], &["--", ""]] {
        assert!(error_of_line(&[], args).ends_with("expected master-process [OPTIONS] -- COMMAND [ARG]..."));
    }
    let nothing = parse_with(TestHost::default(), std::iter::empty());
    assert!(nothing.is_err());
}

#[test]
fn values_must_be_utf8() {
    let raw = || OsString::from_vec(vec![b'/', 0xff]);
    let args = ["master-process".into(), "--chdir".into(), raw(), "--".into(), "./app".into()];
    let line = parse_with(TestHost::default(), args.into_iter()).expect_err("not UTF-8").to_string();
    assert_eq!(line, "invalid value \"/\u{fffd}\" for --chdir: not UTF-8; expected plain text");

    for name in ["MASTER_PROCESS_LISTEN", "MASTER_PROCESS_UMASK", "WORKERS"] {
        let host = TestHost { vars: vec![(name.to_owned(), raw())], ..TestHost::default() };
        let args = ["master-process", "--", "./app"].map(OsString::from);
        let line = parse_with(host, args.into_iter()).expect_err("not UTF-8").to_string();
        assert!(line.ends_with(&format!(" for {name}: not UTF-8; expected plain text")), "{line}");
    }
}

#[test]
fn an_unknown_option_has_a_suggestion() {
    assert_eq!(error(&[], &["--thottle", "5s"]), r#"unknown option "--thottle": did you mean --throttle?"#);
    assert!(error(&[], &["-x"]).starts_with(r#"unknown option "-x": expected an option of --help"#));
}

#[test]
fn options_of_later_versions_are_unknown() {
    for flag in ["--later", "--bogus"] {
        assert!(error(&[], &[flag, "1"]).starts_with(&format!("unknown option {flag:?}: ")), "{flag}");
    }
    assert_eq!(
        error(&[], &["--share", "none"]),
        r#"invalid value "none" for --share: expected auto, slots, shared or off"#
    );
}

#[test]
fn misuse_of_flags_is_one_line() {
    assert_eq!(error(&[], &["-w", "1", "--workers", "2"]), "--workers given more than once: expected once");
    assert_eq!(error(&[], &["-v", "--verbose"]), "--verbose given more than once: expected once");
    assert_eq!(error(&[], &["--workers"]), "missing value for --workers: expected N|max|auto");
    assert_eq!(error_of_line(&[], &["-w"]), "missing value for --workers: expected N|max|auto");
    assert_eq!(error(&[], &["--user", "--group", "0"]), "missing value for --user: expected USER");
    assert_eq!(error(&[], &["--quiet=yes"]), r#"unexpected value "yes" for --quiet: expected none"#);
    for both in [["-v", "-q"], ["-q", "-v"]] {
        assert!(error(&[], &both).ends_with(" given together: expected one of them"));
    }
}

#[test]
fn help_and_version_are_texts() {
    for flag in ["-h", "--help"] {
        let Ok(Command::Help(text)) = parsed(&[], &[flag]) else { unreachable!("a help text") };
        assert!(text.contains("Usage: master-process [OPTIONS] -- COMMAND [ARG]...\n"), "{text}");
        for opt in OPTIONS {
            assert!(text.contains(&format!("--{}", opt.long)), "--{} in {text}", opt.long);
        }
        assert!(text.ends_with('\n') && text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(!text.contains(['`', '\u{1b}']), "{text}");
    }
    let version = concat!("master-process ", env!("CARGO_PKG_VERSION"), "\n").to_owned();
    assert_eq!(parsed(&[], &["-V"]), Ok(Command::Version(version.clone())));
    assert_eq!(parsed(&[], &["--version"]), Ok(Command::Version(version)));
}

#[test]
fn a_throttle_raises_the_default_of_its_maximum() {
    let config = config(&[], &["--throttle", "1min"]);
    assert_eq!(config.throttle_max, Duration::from_secs(60));
}

#[test]
fn a_maximum_below_the_throttle_names_both() {
    assert_eq!(
        error(&[("WORKER_THROTTLE", "5000")], &["--throttle-max", "2s"]),
        r#"invalid value "2s" for --throttle-max: shorter than WORKER_THROTTLE ("5000"); expected at least that"#
    );
    assert_eq!(
        error(&[("MASTER_PROCESS_THROTTLE_MAX", "0")], &[]),
        r#"invalid value "0" for MASTER_PROCESS_THROTTLE_MAX: shorter than the default of --throttle ("1s"); expected at least that"#
    );
    assert_eq!(config(&[], &["--throttle", "0", "--throttle-max", "0"]).throttle_max, Duration::ZERO);
}

#[test]
fn zero_is_no_time_to_become_ready() {
    assert!(
        error(&[], &["--ready-timeout", "0"])
            .starts_with(r#"invalid value "0" for --ready-timeout: expected a duration longer than zero"#)
    );
}

#[test]
fn the_notify_descriptor_is_not_one_of_the_sockets() {
    let sockets = ["--listen", "80", "--listen", "81"];
    let line = |fd| error(&[], &[&sockets as &[&str], &["--ready", fd]].concat());
    assert_eq!(
        line("notify:fd=4"),
        r#"invalid value "notify:fd=4" for --ready: a descriptor below 5 is a socket of --listen; expected 5 or higher"#
    );
    assert!(line("notify:fd=3").contains("expected 5 or higher"));
    assert_eq!(
        config(&[], &[&sockets as &[&str], &["--ready", "notify:fd=5"]].concat()).ready,
        ReadyMode::NotifyFd(5)
    );
    assert_eq!(config(&[], &["--ready", "notify:fd=3"]).ready, ReadyMode::NotifyFd(3));
}

#[test]
fn the_time_out_is_longer_than_alive() {
    let defaulted = config(&[], &["--ready", "alive:2min"]);
    assert_eq!(defaulted.ready_timeout, Duration::from_secs(180));
    let line = error(&[], &["--ready", "alive:2min", "--ready-timeout", "1min"]);
    assert_eq!(
        line,
        r#"invalid value "1min" for --ready-timeout: not longer than --ready ("alive:2min"); expected more than that"#
    );
    let explicit = config(&[], &["--ready", "alive:2s", "--ready-timeout", "3s"]);
    assert_eq!(explicit.ready_timeout, Duration::from_secs(3));
}

#[test]
fn a_variable_lists_sockets_by_commas() {
    let config = config(&[("MASTER_PROCESS_LISTEN", "80, web=localhost:81,unix:/a")], &[]);
    assert_eq!(
        config.listen.iter().map(|listen| listen.text.as_str()).collect::<Vec<_>>(),
        ["80", "web=localhost:81", "unix:/a"]
    );
    assert!(
        error(&[("MASTER_PROCESS_LISTEN", "80,")], &[])
            .starts_with(r#"invalid value "" for MASTER_PROCESS_LISTEN: expected PORT, "#)
    );
}

#[test]
fn flags_replace_the_list_of_the_variable() {
    assert_eq!(config(&[("MASTER_PROCESS_LISTEN", "80,81")], &["--listen", "82"]).listen.len(), 1);
}

#[test]
fn verbosity_by_flag_then_rust_log_then_debug() {
    let vars = [("RUST_LOG", "debug,x=off"), ("DEBUG", "*")];
    assert_eq!(config(&vars, &["-q"]).verbosity, Verbosity::Quiet);
    assert_eq!(config(&vars, &["-v"]).verbosity, Verbosity::Verbose);
    assert_eq!(config(&vars, &[]).verbosity, Verbosity::Filter("debug".to_owned()));
    assert_eq!(config(&[("RUST_LOG", ""), ("DEBUG", "*")], &[]).verbosity, Verbosity::Verbose);
    assert_eq!(config(&[("DEBUG", "express:*")], &[]).verbosity, Verbosity::Normal);
    let loud = error(&[("RUST_LOG", "master_process=loud")], &[]);
    assert!(loud.starts_with(r#"invalid value "master_process=loud" for RUST_LOG: "#), "{loud}");
    let theirs = config(&[("RUST_LOG", "a[{x=info/b")], &[]).verbosity;
    assert_eq!(theirs, Verbosity::Normal, "a directive for another crate is no error");
}

#[test]
fn a_size_without_a_unit_is_mib_in_the_older_variable_alone() {
    let most = |vars: &[(&str, &str)]| config(vars, &[]).limits.max_memory;
    assert_eq!(most(&[("MAX_MEMORY_ALLOWED_MB", "100")]), Some(100 << 20));
    assert_eq!(most(&[("MAX_MEMORY_ALLOWED_MB", "1.2GB")]), Some(1_200_000_000));
    assert!(
        error(&[("MAX_MEMORY_ALLOWED_MB", "1e3")], &[])
            .contains(r#"invalid value "1e3" for MAX_MEMORY_ALLOWED_MB: expected a number with a unit"#)
    );
    assert_eq!(
        error(&[], &["--max-memory", "100"]),
        r#"invalid value "100" for --max-memory: no unit; expected a size such as 1200MiB or 1.2GB, or off"#
    );
    assert!(error(&[("MASTER_PROCESS_MAX_MEMORY", "100")], &[]).contains("no unit; expected"));
    let large = error(&[("MAX_MEMORY_ALLOWED_MB", "18446744073709551615")], &[]);
    assert!(
        large.starts_with(r#"invalid value "18446744073709551615" for MAX_MEMORY_ALLOWED_MB: too large"#),
        "{large}"
    );
}

#[test]
fn only_a_limit_that_is_not_set_is_adaptive() {
    let is_default = |vars: &[(&str, &str)], args: &[&str]| {
        let limits = config(vars, args).limits;
        (limits.cpu_is_default, limits.memory_is_default)
    };
    assert_eq!(is_default(&[], &[]), (true, true));
    assert_eq!(is_default(&[], &["--max-cpu", "95"]), (false, true));
    assert_eq!(is_default(&[], &["--max-memory", "1200MiB"]), (true, false));
    for (cpu, memory) in [
        ("MASTER_PROCESS_MAX_CPU", "MASTER_PROCESS_MAX_MEMORY"),
        ("MAX_CPU_ALLOWED", "MAX_MEMORY_ALLOWED_MB"),
    ] {
        assert_eq!(is_default(&[(cpu, "95")], &[]), (false, true), "{cpu}");
        assert_eq!(is_default(&[(memory, "1200MiB")], &[]), (true, false), "{memory}");
        assert_eq!(is_default(&[(cpu, ""), (memory, "")], &[]), (true, true), "an empty variable is unset");
    }
}

#[test]
fn a_memory_signal_needs_a_memory_limit() {
    let line = error(&[], &["--max-memory", "off", "--memory-high-signal", "USR1"]);
    assert!(
        line.starts_with(r#"invalid value "USR1" for --memory-high-signal: no memory limit to warn of"#),
        "{line}"
    );
}

#[test]
fn memory_is_taken_back_before_it_is_refused() {
    let line = error(&[("MASTER_PROCESS_WORKER_MEMORY_MAX", "64M")], &["--worker-memory-high", "65M"]);
    let expected = "invalid value \"65M\" for --worker-memory-high: larger than MASTER_PROCESS_WORKER_MEMORY_MAX (\"64M\")";
    assert!(line.starts_with(expected), "{line}");
}

#[test]
fn signals_and_intervals_that_cannot_work_are_refused() {
    for signal in ["KILL", "SIGSTOP", "9"] {
        let line = error(&[], &["--memory-high-signal", signal]);
        assert!(line.contains("cannot be handled; expected"), "{line}");
    }
    assert!(
        error(&[], &["--monitor-interval", "0"])
            .starts_with(r#"invalid value "0" for --monitor-interval: expected a duration longer"#)
    );
    for short in ["2", "1ns", "9999us"] {
        let line = error(&[], &["--monitor-interval", short]);
        assert!(line.contains("too short; expected 10ms or more"), "{line}");
    }
}

#[test]
fn an_unknown_user_is_an_error() {
    assert!(
        error(&[], &["--user", "nope"])
            .starts_with(r#"invalid value "nope" for --user: no such user on this host"#)
    );
    assert!(error(&[], &["--user", "4242"]).ends_with("expected --group as well"));
    assert!(config(&[], &["--user", "4242", "--group", "4242"]).identity.is_some());
}

#[test]
fn no_address_is_given_twice() {
    let listen = |addresses: &[&str]| {
        addresses.iter().flat_map(|addr| ["--listen".to_owned(), (*addr).to_owned()]).collect::<Vec<_>>()
    };
    let count = |addresses: &[&str]| {
        let args = listen(addresses);
        config(&[], &args.iter().map(String::as_str).collect::<Vec<_>>()).listen.len()
    };
    let refused = |addresses: &[&str]| {
        let args = listen(addresses);
        error(&[], &args.iter().map(String::as_str).collect::<Vec<_>>())
    };
    assert_eq!(count(&["80", "81", "unix:/a"]), 3);
    assert_eq!(count(&["0", "0", "127.0.0.1:0", "127.0.0.1:0"]), 4, "port 0 is another port each time");
    assert_eq!(
        refused(&["127.0.0.1:80", "81", "web=localhost:80"]),
        r#"invalid value "web=localhost:80" for --listen: the same address as "127.0.0.1:80"; expected each address once"#
    );
    assert!(refused(&["unix:/srv/a", "unix:a"]).contains(": the same address as "));
    let line = error(&[("MASTER_PROCESS_LISTEN", "80,80")], &[]);
    assert!(
        line.starts_with(r#"invalid value "80" for MASTER_PROCESS_LISTEN: the same address as "80""#),
        "{line}"
    );
}

#[test]
fn every_word_that_an_option_shows_is_a_value() {
    for opt in OPTIONS {
        let words = opt.value().into_iter().flat_map(|form| form.split('|'));
        for word in words.filter(|word| word.bytes().all(|byte| byte.is_ascii_lowercase())) {
            config(&[], &[&format!("--{}", opt.long), word]);
        }
    }
}
