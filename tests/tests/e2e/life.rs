//! What a worker is started with, and what is left when it is gone.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use master_process_tests::load;
use master_process_tests::supervisor::await_gone;
use master_process_tests::traffic::{all_answer, nothing_is_lost, pass};
use master_process_tests::{Supervisor, TIMEOUT, always, eventually, fixtures, needs_root, process, scaled};
use rustix::process::Signal;

/// Workers that count as ready at once and never do anything.
fn idle(options: &[&str]) -> Supervisor {
    Supervisor::builder().args(["--ready", "none"]).args(options).command(fixtures::idle()).spawn()
}

fn only(workers: &BTreeSet<i32>) -> i32 {
    assert_eq!(workers.len(), 1);
    *workers.first().expect("just counted")
}

/// The one idle worker; not a tool that resolves an account for the supervisor.
fn await_idle(supervisor: &Supervisor) -> i32 {
    supervisor.until("the worker runs", || {
        let sleeps = |pid: &i32| process::executable(*pid).is_some_and(|file| file.ends_with("sleep"));
        supervisor.workers().into_iter().find(sleeps)
    })
}

#[test]
fn every_worker_leads_a_process_group_of_its_own() {
    let supervisor = idle(&["-w", "3"]);
    for pid in supervisor.await_workers(3) {
        assert_eq!(process::stat(pid).expect("it runs").group, pid);
    }
}

#[test]
fn worker_inherits_only_the_standard_descriptors() {
    // One that was left open for the supervisor is not the workers' either.
    let leak = ["sh", "-c", "exec 9</etc/passwd; exec \"$@\"", "sh"];
    let builder = Supervisor::builder().wrap(leak).args(["-w", "3", "--ready", "none"]);
    let supervisor = builder.command(fixtures::idle()).spawn();
    for pid in supervisor.await_workers(3) {
        await_only_standard_descriptors(&supervisor, pid);
    }
    // The replacement of a dead one, too, started while the supervisor has more open.
    let victim = *supervisor.workers().first().expect("three");
    process::signal(victim, Signal::KILL);
    await_gone(victim);
    for pid in supervisor.await_workers(3) {
        await_only_standard_descriptors(&supervisor, pid);
    }
}

/// What was inherited stays open. What the dynamic loader opens while the worker starts does not.
fn await_only_standard_descriptors(supervisor: &Supervisor, worker: i32) {
    let numbers = || process::descriptors(worker).into_iter().map(|(number, _)| number).collect::<Vec<i32>>();
    supervisor.eventually("0, 1 and 2 are all that is open", || numbers() == [0, 1, 2]);
}

#[test]
fn stdin_is_dev_null_and_output_is_the_supervisors() {
    let supervisor = idle(&[]);
    let worker = process::descriptors(only(&supervisor.await_workers(1)));
    let own = process::descriptors(supervisor.pid());
    assert_eq!(worker[0].1, PathBuf::from("/dev/null"));
    assert_eq!(worker[1..3], own[1..3]);
}

#[test]
fn stdin_null_ignores_the_supervisors_stdin() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("input");
    fs::write(&file, "words").expect("the folder is ours");
    let start = |mode: &str| {
        let builder =
            Supervisor::builder().args(["--ready", "none", "--stdin", mode]).command(fixtures::idle());
        builder.stdin(fs::File::open(&file).expect("just written")).spawn()
    };
    let stdin =
        |supervisor: &Supervisor| process::descriptors(only(&supervisor.await_workers(1)))[0].1.clone();
    assert_eq!(stdin(&start("null")), PathBuf::from("/dev/null"));
    assert_eq!(stdin(&start("inherit")), file);
}

#[test]
fn signals_are_default_and_unblocked() {
    // Whoever starts the supervisor may have blocked and ignored what it likes.
    let hostile = "import os, signal, sys\n\
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGCHLD, signal.SIGTERM, signal.SIGRTMIN])\n\
        for ignored in (signal.SIGHUP, signal.SIGPIPE, signal.SIGUSR2, signal.SIGINT, signal.SIGRTMIN + 1):\n\
        \x20   signal.signal(ignored, signal.SIG_IGN)\n\
        os.execvp(sys.argv[1], sys.argv[1:])";
    let python = fixtures::python();
    let builder = Supervisor::builder().wrap([python.as_str(), "-c", hostile]).args(["--ready", "none"]);
    let supervisor = builder.command(fixtures::idle()).spawn();
    let worker = only(&supervisor.await_workers(1));
    // 32 and 33 belong to the C library, which leaves them ignored in whatever it spawns: a test's supervisor too.
    const OF_THE_C_LIBRARY: u64 = 0b11 << 31;
    for set in ["SigBlk", "SigIgn", "SigCgt"] {
        let signals = process::signal_set(worker, set).expect("it runs");
        assert_eq!(signals & !OF_THE_C_LIBRARY, 0, "{set} of the worker");
    }
    // And what was blocked or ignored outside works for the supervisor all the same.
    supervisor.signal(Signal::HUP);
    supervisor.eventually("HUP reloads", || {
        let workers = supervisor.workers();
        workers.len() == 1 && !workers.contains(&worker)
    });
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn workers_die_with_a_supervisor_that_is_killed() {
    let supervisor = idle(&["-w", "3"]);
    let workers = supervisor.await_workers(3);
    supervisor.signal(Signal::KILL);
    workers.into_iter().for_each(await_gone);
}

#[test]
fn workers_that_listen_die_with_a_supervisor_that_is_killed() {
    let listen = format!("listen={}", master_process_tests::address::tcp());
    let supervisor = Supervisor::start(&["-w", "2"], fixtures::worker(&[&listen, "term=ignore"]));
    let ready = supervisor.await_events(2, "ready");
    supervisor.signal(Signal::KILL);
    ready.iter().for_each(|event| await_gone(event.pid));
}

#[test]
fn open_files_limit_is_inherited() {
    let builder = Supervisor::builder().wrap(["prlimit", "--nofile=512:4096"]).args(["--ready", "none"]);
    let supervisor = builder.command(fixtures::idle()).spawn();
    let worker = only(&supervisor.await_workers(1));
    let limits = fs::read_to_string(format!("/proc/{worker}/limits")).expect("it runs");
    let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("every kernel has it");
    assert_eq!(line.split_whitespace().collect::<Vec<_>>()[3..5], ["512", "4096"], "{line}");
}

#[test]
fn environment_is_inherited_with_three_variables_added() {
    let supervisor = Supervisor::builder()
        .args(["-w", "2"])
        .env("GREETING", "hello, world\nand more")
        .command(fixtures::worker(&["env"]))
        .spawn();
    let environment = supervisor.await_environment(|environment| environment["WORKER_INDEX"] == "1");
    assert_eq!(environment["GREETING"], "hello, world\nand more");
    assert_eq!(environment["PPID"], supervisor.pid().to_string());
    assert_eq!(environment["RELOAD_INDEX"], "0");
    let path = environment["PATH"].as_str().map(str::to_owned);
    assert_eq!(path, std::env::var("PATH").ok());
}

#[test]
fn arguments_that_are_not_utf8_are_passed_unchanged() {
    let bytes = OsStr::from_bytes(b"\xff\xfe caf\xe9");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let program = folder.path().join(bytes);
    fs::copy("/bin/sleep", &program).expect("there is a sleep");
    let builder = Supervisor::builder().args(["--ready", "none"]).env("ODD", bytes);
    let supervisor = builder.command([program.as_os_str(), "infinity".as_ref()]).spawn();
    let worker = only(&supervisor.await_workers(1));
    assert_eq!(process::executable(worker), Some(program.canonicalize().expect("it is there")));
    let environment = fs::read(format!("/proc/{worker}/environ")).expect("it runs");
    let expected = [b"ODD=", bytes.as_bytes()].concat();
    assert!(environment.split(|byte| *byte == 0).any(|variable| variable == expected));
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn variables_of_the_service_manager_are_not_inherited() {
    let outer = [
        ("NOTIFY_SOCKET", "/outer/notify"),
        ("LISTEN_PID", "1"),
        ("LISTEN_FDS", "3"),
        ("LISTEN_FDNAMES", "a:b:c"),
        ("LISTEN_PIDFDID", "77"),
        ("WATCHDOG_USEC", "123456789"),
        ("WATCHDOG_PID", "1"),
    ];
    let builder = Supervisor::builder().args(["--ready", "none"]).command(fixtures::worker(&["env"]));
    let supervisor = outer.iter().fold(builder, |builder, (name, value)| builder.env(name, value)).spawn();
    let environment = supervisor.await_environment(|_| true);
    for (name, value) in outer {
        assert_ne!(environment[name], value, "{name} of the outer service manager");
        let ours = name == "NOTIFY_SOCKET";
        assert!(ours || environment[name].is_null(), "{name}={}", environment[name]);
    }
}

#[test]
fn no_grandchild_outlives_a_worker() {
    let options = ["--throttle", "50ms", "--kill-timeout", "1s"];
    let supervisor = Supervisor::start(&options, fixtures::worker(&["child"]));
    // Killed from outside: the worker had no chance to take its child along, and the child ignores TERM.
    let first = supervisor.await_event("the worker has a child", |event| event.name == "child");
    let grandchild = |event: &master_process_tests::Event| -> i32 {
        event.field("child").and_then(|pid| pid.parse().ok()).expect("the fixture names its child")
    };
    process::signal(first.pid, Signal::KILL);
    await_gone(grandchild(&first));
    // Ended by itself on TERM, in a reload.
    let second =
        supervisor.await_event("the next has one", |event| event.name == "child" && event.pid != first.pid);
    supervisor.await_event("it is ready", |event| event.name == "ready" && event.pid == second.pid);
    supervisor.reload(1);
    await_gone(grandchild(&second));
    // And at the end; `stop` looks for whatever is left.
    supervisor.await_event("the last has one", |event| event.name == "child" && event.reload == 1);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn adopted_processes_are_reaped() {
    let supervisor = Supervisor::start(&[], fixtures::worker(&["orphan=0.4"]));
    let orphan = supervisor.await_event("there is an orphan", |event| event.name == "orphan").pid;
    supervisor.eventually("it is the supervisor's child", || {
        process::stat(orphan).is_none_or(|found| found.ppid == supervisor.pid())
    });
    supervisor.eventually("it is gone, and reaped", || process::stat(orphan).is_none());
    let zombies =
        || process::children(supervisor.pid()).into_iter().filter(|child| child.state == 'Z').count();
    supervisor.eventually("no zombie is left", || zombies() == 0);
    assert_eq!(supervisor.await_workers(1).len(), 1);
}

#[test]
fn user_group_umask_and_directory_apply_to_workers() {
    needs_root!();
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("ours");
    let path = folder.path().to_str().expect("UTF-8");
    let supervisor = idle(&["--user", "nobody", "--group", "daemon", "--umask", "027", "--chdir", path]);
    let worker = await_idle(&supervisor);
    let field = |name: &str| process::status(worker, name).expect("it runs");
    let all = |id: &str| [id; 4].join("\t");
    assert_eq!(field("Uid"), all("65534"));
    assert_eq!(field("Gid"), all("1"));
    assert_eq!(field("Umask"), "0027");
    let groups = field("Groups");
    assert!(!groups.split_whitespace().any(|group| group == "0"), "root's groups are kept: {groups}");
    let cwd = fs::read_link(format!("/proc/{worker}/cwd")).expect("it runs");
    assert_eq!(cwd, folder.path().canonicalize().expect("it exists"));
    assert_eq!(process::status(supervisor.pid(), "Uid"), Some(all("0")), "the supervisor keeps its user");
    // PDEATHSIG is cleared by a change of user that comes after it.
    supervisor.signal(Signal::KILL);
    await_gone(worker);
}

#[test]
fn user_without_group_has_its_own_group() {
    needs_root!();
    let supervisor = idle(&["--user", "nobody"]);
    let worker = await_idle(&supervisor);
    let gid = process::status(worker, "Gid").expect("it runs");
    assert!(gid.starts_with("65534\t"), "{gid}");
}

#[test]
fn unprivileged_workers_get_a_privileged_port_by_listen_only() {
    needs_root!();
    let mut address = master_process_tests::address::tcp();
    address.set_port(80);
    let listen = format!("listen={address}");
    // The fixture where the ordinary user can read it, whoever may read the repository.
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("ours");
    let script = folder.path().join("worker.py");
    fs::copy(fixtures::folder().join("worker.py"), &script).expect("the folder is ours");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o644)).expect("ours");
    let command = [fixtures::python(), script.to_str().expect("UTF-8").to_owned(), listen];
    let supervisor = Supervisor::start(&["--user", "nobody", "--throttle", "30s"], command.clone());
    supervisor.eventually("its bind is refused, as alone", || {
        !supervisor.logged(&["exited with code 1"]).is_empty()
    });
    assert_eq!(supervisor.stop(), 0);
    // By name it is theirs: each has a socket of its own, and reloads lose nothing.
    let named = address.to_string();
    let supervisor = Supervisor::start(&["-w", "2", "--user", "nobody", "--listen", &named], command);
    supervisor.await_events(2, "ready");
    let clients = load::Load::start(address, 4, load::Connections::Fresh);
    for _ in 0..2 {
        pass(&supervisor, &clients, 100);
        supervisor.reload(2);
    }
    pass(&supervisor, &clients, 100);
    nothing_is_lost(clients);
    all_answer(&supervisor, address, &supervisor.workers());
    assert_eq!(supervisor.stop(), 0);
}

/// A folder per version, each with a program that prints its version and waits, and `current` as a link to one of them.
fn deploy(scratch: &Path, version: &str) {
    let folder = scratch.join(version);
    fs::create_dir(&folder).expect("a new version");
    let app = folder.join("app");
    fs::write(&app, format!("#!/bin/sh\necho version {version} in $(pwd -P)\nexec sleep infinity\n"))
        .expect("ours");
    fs::set_permissions(&app, fs::Permissions::from_mode(0o755)).expect("ours");
    let link = scratch.join("link");
    symlink(&folder, &link).expect("ours");
    fs::rename(&link, scratch.join("current")).expect("ours");
}

#[test]
fn chdir_symlink_is_resolved_at_each_reload() {
    let scratch = tempfile::tempdir().expect("a temporary folder");
    deploy(scratch.path(), "one");
    let current = scratch.path().join("current");
    let current = current.to_str().expect("UTF-8");
    let app = format!("{current}/app");
    let supervisor = Supervisor::start(&["--ready", "none", "--chdir", current], [app.as_str()]);
    let said = |version: &str| {
        let folder = scratch.path().canonicalize().expect("it exists").join(version);
        let line = format!("version {version} in {}", folder.display());
        supervisor.eventually(&line, || supervisor.output().contains(&line));
    };
    said("one");
    deploy(scratch.path(), "two");
    supervisor.signal(Signal::HUP);
    said("two");
    // The old version may be removed then, and a crash starts the new one.
    fs::remove_dir_all(scratch.path().join("one")).expect("ours");
    supervisor.await_workers(1).iter().for_each(|pid| process::signal(*pid, Signal::KILL));
    let twice = || supervisor.output().iter().filter(|line| line.starts_with("version two")).count() == 2;
    supervisor.eventually("the replacement is of the new version", twice);
}

#[test]
fn the_stop_signal_can_be_chosen() {
    let line = "trap 'echo got USR1; exit 0' USR1; trap 'echo got TERM' TERM; echo set; while :; do sleep 0.02; done";
    let options = ["--stop-signal", "USR1", "--kill-timeout", "20s"];
    let supervisor = Supervisor::start(&options, fixtures::shell(line));
    supervisor.eventually("the traps are set", || supervisor.output().contains(&"set".to_owned()));
    assert_eq!(supervisor.stop(), 0);
    assert_eq!(supervisor.output(), ["set", "got USR1"]);
}

#[test]
fn consecutive_early_deaths_double_the_delay_up_to_the_maximum() {
    let line = "echo started pid=$$ index=0 reload=0 at=$(cut -d' ' -f1 /proc/uptime); exit 1";
    let options = ["--throttle", "500ms", "--throttle-max", "2s"];
    let supervisor = Supervisor::start(&options, fixtures::shell(line));
    let starts: Vec<f64> = supervisor.await_events(6, "started").iter().map(|event| event.at).collect();
    let apart: Vec<f64> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
    // Never sooner than promised (the shell's clock ticks in hundredths, and a slow shell looks at it late), and no
    // later than a busy machine explains.
    let least = [0.5, 1.0, 2.0, 2.0];
    let late = |millis: u64| scaled(Duration::from_millis(millis)).as_secs_f64();
    for (apart, least) in apart.iter().zip(least) {
        assert!(
            *apart >= least - late(40) && *apart < least + late(3000),
            "{apart} instead of {least}: {starts:?}"
        );
    }
}

#[test]
fn exit_is_logged_in_one_line_with_its_reason() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let flag = folder.path().join("die");
    fs::write(&flag, "").expect("the folder is ours");
    let word = format!("if={}:die=0.1", flag.display());
    let supervisor = Supervisor::start(&["--throttle", "1s"], fixtures::worker(&[&word]));
    let first = supervisor.await_events(1, "started")[0].pid;
    fs::remove_file(&flag).expect("it is there");
    let told = |pid: i32, reason: &str| {
        !supervisor.logged(&[&format!("pid {pid}"), reason, "restarting"]).is_empty()
    };
    supervisor.eventually("the exit is logged", || told(first, "exited with code 1"));
    let second = supervisor.await_events(2, "started")[1].pid;
    process::signal(second, Signal::KILL);
    supervisor.eventually("the kill is logged", || told(second, "sigkill"));
}

#[test]
fn two_supervisors_of_one_command_do_not_affect_each_other() {
    // Two supervisors of one command side by side do not know each other.
    let (one, two) = (idle(&["-w", "2"]), idle(&["-w", "2"]));
    let others = two.await_workers(2);
    one.await_workers(2);
    assert_eq!(one.stop(), 0);
    always(Duration::from_millis(300), "the other's workers run", || two.workers() == others);
    eventually(TIMEOUT, "the first has left nothing", || one.survivors().is_empty());
}
