//! The cgroup of each slot, and the limits that it has.
//!
//! Limits take controllers of version 2. Where version 1 has them, as on many hosts of containers, nothing can be limited,
//! and the tests of limits are ignored: `cargo xtask vm` runs them in each of its machines with `--ignored`.

use std::path::Path;
use std::time::Duration;

use master_process_tests::cgroup::Place;
use master_process_tests::control::Controlled;
use master_process_tests::script::{said, script};
use master_process_tests::supervisor::await_gone;
use master_process_tests::{
    Supervisor, TIMEOUT, address, await_some, eventually, fixtures, load, process, skip,
};
use rustix::process::Signal;
use serde_json::Value;

const NO_CONTROLLERS: &str = "no cgroup of version 2 with the cpu, memory and pids controllers can be made: a virtual machine has them";

/// Ends the test where limits cannot be tried.
macro_rules! place_with_controllers {
    ($delegated:expr) => {{
        let Some(place) = Place::with_controllers($delegated) else { skip!(NO_CONTROLLERS) };
        place
    }};
}

/// The workers do nothing, and are ready.
const IDLE: [&str; 4] = ["--ready", "none", "--throttle", "100ms"];

/// One line that begins with `master-process: ` and has these words, and exit code 1.
fn is_refused(options: &[&str], launcher: Vec<String>, words: &[&str]) {
    let finished = Supervisor::builder().args(options).command(fixtures::idle()).wrap(launcher).run();
    assert_eq!(finished.code, Some(1), "{:?}", finished.stderr);
    let line = finished.stderr.last().cloned().unwrap_or_default();
    assert!(line.starts_with("master-process: ") && words.iter().all(|word| line.contains(word)), "{line}");
}

#[test]
fn limit_without_a_delegated_cgroup_is_refused_at_the_start() {
    let Some(place) = Place::make(false) else { skip!("no cgroup can be made") };
    let limits = [
        ("--worker-memory-max", "64M"),
        ("--worker-memory-high", "64M"),
        ("--worker-cpu-max", "50%"),
        ("--worker-pids-max", "64"),
    ];
    for (option, value) in limits {
        let why = "the cgroup is not delegated to this process; expected Delegate=yes in the unit, or --cgroup PATH";
        is_refused(&[option, value], place.launcher(), &[&format!("{option}: {why}")]);
    }
    assert!(place.is_empty());
}

#[test]
fn limit_without_its_controller_is_refused_at_the_start() {
    let Some(place) = Place::make(true) else { skip!("no cgroup can be made") };
    // The new cgroup gets no controller from the one above it, wherever that has some.
    let below = place.path().join("below").display().to_string();
    let expected = format!("the pids controller is not enabled for {below}; expected pids in ");
    is_refused(
        &["--cgroup", &below, "--worker-pids-max", "64"],
        Vec::new(),
        &["--worker-pids-max: ", &expected],
    );
    assert!(place.is_empty(), "nothing stays");
}

#[test]
fn path_that_is_no_cgroup_is_refused_at_the_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("app").display().to_string();
    is_refused(
        &["--cgroup", &path],
        Vec::new(),
        &[&format!("--cgroup: {path} is not a cgroup of version 2")],
    );
    let missing = format!("{path}/missing/app");
    is_refused(&["--cgroup", &missing], Vec::new(), &["--cgroup: ", "No such file or directory"]);
    assert!(!Path::new(&path).exists());
}

/// A worker that adds a line to a file and exits.
fn crashing(file: &Path) -> Vec<String> {
    fixtures::shell(&format!("echo $$ >> {}; exit 1", file.display()))
}

/// Lets workers crash this often, and looks at their cgroups meanwhile.
fn crash(place: &Place, options: &[&str], crashes: usize) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("starts");
    let always =
        ["-w", "2", "--ready", "none", "--throttle", "10ms", "--throttle-max", "10ms", "--monitor", "off"];
    let supervisor = place.builder().args(always).args(options).command(crashing(&file)).spawn();
    let starts = || std::fs::read_to_string(&file).map_or(0, |text| text.lines().count());
    let mut last = (0, std::time::Instant::now());
    while starts() < crashes {
        let workers = place.workers();
        assert!(workers.iter().all(|name| name == "slot-0" || name == "slot-1"), "{workers:?}");
        let now = starts();
        if now > last.0 {
            last = (now, std::time::Instant::now());
        }
        assert!(last.1.elapsed() < master_process_tests::scaled(TIMEOUT), "the workers go on crashing");
    }
    // Those of the last moments are still being removed: the workers go on crashing.
    supervisor.eventually("the kernel keeps no removed cgroups", || {
        usize::try_from(place.dying()).is_ok_and(|dying| dying < crashes / 4)
    });
    assert_eq!(supervisor.stop(), 0);
    assert!(place.is_empty(), "{:?}", place.workers());
}

#[test]
fn crash_loop_of_1000_crashes_has_as_many_cgroups_as_slots() {
    let Some(place) = Place::make_alone(false) else { skip!("no cgroup can be made") };
    crash(&place, &[], 1000);
}

#[test]
fn old_and_new_worker_of_a_reload_have_a_cgroup_each() {
    let Some(place) = Place::make(true) else { skip!("no cgroup can be made") };
    let supervisor = place.start(&["-w", "2"], fixtures::listening(address::tcp(), &[]));
    supervisor.await_ready(2);
    assert_eq!(place.in_use(), ["slot-0", "slot-1"]);
    for expected in [["slot-0.2", "slot-1.2"], ["slot-0", "slot-1"], ["slot-0.2", "slot-1.2"]] {
        supervisor.reload(2);
        supervisor.eventually("the new workers are alone", || place.in_use() == expected);
        supervisor.eventually("those of the old ones are gone", || place.workers() == expected);
    }
    assert_eq!(supervisor.stop(), 0);
    assert!(place.is_empty(), "{:?}", place.workers());
}

#[test]
fn named_cgroup_is_made_and_removed_and_has_the_workers_alone() {
    let Some(outer) = Place::make(false) else { skip!("no cgroup can be made") };
    let path = outer.path().join("app");
    let controlled = Controlled::default();
    let supervisor = controlled.on(Supervisor::builder().args(IDLE));
    let supervisor =
        supervisor.args(["--cgroup", &path.display().to_string()]).command(fixtures::idle()).spawn();
    controlled.await_ready(1);
    let cgroup = controlled.status()["workers"][0]["cgroup"].as_str().expect("a path").to_owned();
    assert!(Path::new(&cgroup).starts_with(&path) && cgroup.ends_with("/slot-0"), "{cgroup}");
    let worker = *supervisor.workers().first().expect("one");
    let inside = std::fs::read_to_string(Path::new(&cgroup).join("cgroup.procs")).expect("it is there");
    assert!(inside.lines().any(|line| line == worker.to_string()), "{inside}");
    assert!(!inside.contains(&supervisor.pid().to_string()));
    assert_eq!(supervisor.stop(), 0);
    assert!(!path.exists() && outer.is_empty());
}

/// An nginx, whose children outlive it and its supervisor, and the pids of the children.
fn nginx(place: &Place, scratch: &Path, options: &[&str]) -> Option<(Supervisor, Vec<i32>)> {
    let command = fixtures::nginx(scratch, &address::tcp().to_string())?;
    let supervisor = place.builder().args(options).command(command).spawn();
    supervisor.await_workers(1);
    let children = supervisor.until("nginx has a child", || {
        let children = process::children(*supervisor.workers().first()?);
        let pids: Vec<i32> = children.iter().map(|child| child.pid).collect();
        (!pids.is_empty()).then_some(pids)
    });
    Some((supervisor, children))
}

#[test]
fn children_of_nginx_are_killed_by_the_supervisor_after_a_killed_one() {
    let Some(place) = Place::make(false) else { skip!("no cgroup can be made") };
    let scratch = tempfile::tempdir().expect("a folder");
    let Some((first, children)) = nginx(&place, scratch.path(), &[]) else { skip!("there is no nginx") };
    let master = *first.workers().first().expect("one");
    first.signal(Signal::KILL);
    let _killed = first.wait_exit(TIMEOUT);
    await_gone(master);
    assert!(children.iter().all(|pid| process::alive(*pid)), "they live on");
    let second = place.builder().args(IDLE).command(fixtures::idle()).spawn();
    second.await_workers(1);
    children.into_iter().for_each(await_gone);
    assert_eq!(second.logged(&["of an earlier master-process", "killed"]).len(), 1);
    assert_eq!(second.stop(), 0);
    assert!(place.is_empty(), "{:?}", place.workers());
}

/// What `--log-format json` says about an end.
fn end_line(supervisor: &Supervisor, words: &str) -> Value {
    supervisor.until(&format!("a line says {words:?}"), || {
        let line = supervisor.log().into_iter().find(|line| line.contains(words))?;
        serde_json::from_str(&line).ok()
    })
}

fn field<'a>(line: &'a Value, name: &str) -> &'a Value {
    if line[name].is_null() { &line["fields"][name] } else { &line[name] }
}

/// In slot 0 a child in a session of its own, and more and more memory, 1 MiB at a time.
const GREEDY: &str = "
if INDEX == '0':
    if os.fork() == 0:
        os.setsid()
        say('child', os.getpid())
        while True: time.sleep(1000)
    x = []
    while True:
        x.append(b'x' * (1 << 20))
        time.sleep(0.001)
say('idle', PID)
time.sleep(1000)";

#[ignore = "takes root and a cgroup v2 with the cpu, memory and pids controllers, as a virtual machine has"]
#[test]
fn memory_limit_ends_the_processes_of_one_worker_and_the_line_names_it() {
    let place = place_with_controllers!(false);
    let controlled = Controlled::default();
    let options = ["-w", "2", "--worker-memory-max", "64M", "--log-format", "json", "--monitor", "procfs"];
    // The end is an early exit, so the replacement waits.
    let builder =
        controlled.on(place.builder()).args(["--ready", "none", "--throttle", "10min"]).args(options);
    let supervisor = builder.command(script(GREEDY, address::tcp())).spawn();
    let lines = said(&supervisor, 2);
    let pid = |word: &str| -> i32 {
        let line = lines.iter().find_map(|line| line.strip_prefix(word)).expect("it is said");
        line.trim().parse().expect("a pid")
    };
    let (child, sibling) = (pid("child "), pid("idle "));
    assert_eq!(place.read_of("slot-1", "memory.max"), (64 << 20).to_string());
    let line = end_line(&supervisor, "killed by the OOM killer at --worker-memory-max (64.0 MiB) after");
    assert_eq!(field(&line, "oom_limit"), 64 << 20, "{line}");
    assert!(
        field(&line, "restart_in_ms").as_u64().is_some_and(|wait| wait > 0),
        "by the throttle's rule: {line}"
    );
    await_gone(child);
    assert!(process::alive(sibling) && supervisor.workers().contains(&sibling));
    let status = controlled.status();
    assert_eq!(status["cgroup_limits"]["memory_max_bytes"], 64 << 20, "{status}");
    let rows = status["workers"].as_array().expect("rows");
    let row = |slot: u64| rows.iter().find(|row| row["slot"] == slot).expect("a row");
    assert_eq!((&row(0)["state"], &row(0)["last_end"]["reason"]), (&"waiting".into(), &"oom".into()));
    assert_eq!(row(0)["last_end"]["oom_limit_bytes"], 64 << 20);
    assert_eq!(row(1)["memory_limit_bytes"], 64 << 20);
    let why = controlled.run(&["why", "0"]);
    assert!(why.out.contains("out of memory at --worker-memory-max (64 MiB)"), "{}", why.out);
    assert_eq!(supervisor.stop(), 0);
}

#[ignore = "takes root and a cgroup v2 with the cpu, memory and pids controllers, as a virtual machine has"]
#[test]
fn files_that_fill_the_memory_of_a_cgroup_end_neither_the_supervisor_nor_the_next_worker() {
    let place = place_with_controllers!(false);
    let folder = tempfile::Builder::new().tempdir_in("/dev/shm").expect("a tmpfs");
    let file = folder.path().join("full");
    // The first worker writes until it is killed, and its files stay.
    let text = format!(
        "if os.path.exists('{0}'): say('next', PID); time.sleep(1000)\n\
         say('first', PID)\n\
         file = open('{0}', 'wb', buffering=0)\n\
         while True: file.write(b'x' * (1 << 16))",
        file.display()
    );
    let options = ["--worker-memory-max", "32M", "--monitor", "off"];
    let supervisor = place.builder().args(IDLE).args(options).command(script(&text, address::tcp())).spawn();
    supervisor.eventually("the next worker runs", || {
        supervisor.output().iter().any(|line| line.starts_with("next "))
    });
    assert!(!supervisor.logged(&["killed by the oom killer at --worker-memory-max"]).is_empty());
    assert!(supervisor.exited().is_none());
    assert_eq!(supervisor.stop(), 0);
}

#[ignore = "takes root and a cgroup v2 with the cpu, memory and pids controllers, as a virtual machine has"]
#[test]
fn cpu_limit_slows_a_worker_down() {
    let place = place_with_controllers!(false);
    let controlled = Controlled::default();
    let options = ["--worker-cpu-max", "10%", "--worker-memory-high", "256M", "--monitor", "off"];
    let builder = controlled.on(place.builder()).args(IDLE).args(options);
    let supervisor = builder.command(fixtures::shell("while :; do :; done")).spawn();
    controlled.await_ready(1);
    assert_eq!(place.read_of("slot-0", "cpu.max"), "10000 100000");
    assert_eq!(place.read_of("slot-0", "memory.high"), (256 << 20).to_string());
    let used = || Duration::from_micros(place.number_of("slot-0", "cpu.stat", "usage_usec"));
    let (before, since) = (used(), std::time::Instant::now());
    supervisor.eventually("it has waited ten times", || {
        place.number_of("slot-0", "cpu.stat", "nr_throttled") >= 10
    });
    let share = (used() - before).as_secs_f64() / since.elapsed().as_secs_f64();
    assert!(share < 0.3, "{share}");
    process::signal(*supervisor.workers().first().expect("one"), Signal::KILL);
    let end = await_some(TIMEOUT, "the end is known", || {
        let end = controlled.status()["workers"][0]["last_end"].take();
        (!end.is_null()).then_some(end)
    });
    assert!(end["cpu_throttled_seconds"].as_f64().is_some_and(|waited| waited > 0.0), "{end}");
    assert_eq!(supervisor.stop(), 0);
}

#[ignore = "takes root and a cgroup v2 with the cpu, memory and pids controllers, as a virtual machine has"]
#[test]
fn pids_limit_stops_a_fork_bomb() {
    let place = place_with_controllers!(false);
    let text = "
say('ready', PID)
if INDEX == '0':
    while True:
        try: os.fork()
        except OSError: time.sleep(0.1)
time.sleep(1000)";
    let options = ["-w", "2", "--worker-pids-max", "20", "--monitor", "off", "--kill-timeout", "500ms"];
    let supervisor = place.builder().args(IDLE).args(options).command(script(text, address::tcp())).spawn();
    let pids = said(&supervisor, 2);
    supervisor.eventually("forks are refused", || place.number_of("slot-0", "pids.events", "max") > 0);
    let bomb = place.processes_of("slot-0");
    assert!((2..=20).contains(&bomb.len()), "{bomb:?}");
    let pids = pids.iter().filter_map(|line| line.strip_prefix("ready ")?.parse().ok());
    let first = pids.into_iter().find(|pid: &i32| bomb.contains(pid)).expect("slot 0 has one");
    process::signal(first, Signal::KILL);
    supervisor.eventually("its line says so", || {
        !supervisor.logged(&["killed by sigkill", "forks refused by a limit"]).is_empty()
    });
    bomb.into_iter().for_each(await_gone);
    assert_eq!(supervisor.stop(), 0);
    assert!(place.is_empty(), "{:?}", place.workers());
}

#[ignore = "takes root and a cgroup v2 with the cpu, memory and pids controllers, as a virtual machine has"]
#[test]
fn crash_loop_with_limits_leaves_no_dying_cgroup() {
    let place = place_with_controllers!(false);
    let limits = ["--worker-memory-max", "64M", "--worker-cpu-max", "100%", "--worker-pids-max", "20"];
    crash(&place, &limits, 100);
}

#[ignore = "takes root and a cgroup v2 with the cpu, memory and pids controllers, as a virtual machine has"]
#[test]
fn next_worker_of_a_killed_one_runs_within_the_limits() {
    let place = place_with_controllers!(false);
    // The supervisor kills the tree of the worker by its cgroup, since it does not stop.
    let text = "
signal.signal(signal.SIGTERM, signal.SIG_IGN)
made = bound(HOST, PORT); made.listen(64)
say('ready', PID)
serve(made)";
    let options =
        ["--worker-pids-max", "20", "--kill-timeout", "100ms", "--throttle", "100ms", "--drain", "0"];
    let supervisor = place.builder().args(options).command(script(text, address::tcp())).spawn();
    said(&supervisor, 1);
    for reload in 1..=3 {
        supervisor.signal(Signal::HUP);
        said(&supervisor, reload + 1);
        supervisor.eventually("the old one is gone", || {
            place.in_use().len() == 1 && supervisor.logged(&["complete after"]).len() == reload
        });
    }
    assert_eq!(supervisor.output().len(), 4, "no new worker was killed");
    assert_eq!(supervisor.stop(), 0);
    assert!(place.is_empty(), "{:?}", place.workers());
}

#[ignore = "takes root and a cgroup v2 with the cpu, memory and pids controllers, as a virtual machine has"]
#[test]
fn delegated_cgroup_is_divided_for_limits_and_found_as_it_was_afterwards() {
    let place = place_with_controllers!(true);
    let limits = ["-w", "2", "--worker-memory-max", "256M", "--worker-pids-max", "50", "--drain", "0"];
    let supervisor = place.start(&limits, fixtures::listening(address::tcp(), &[]));
    supervisor.await_ready(2);
    assert_eq!(place.read("supervisor/cgroup.procs"), supervisor.pid().to_string());
    assert_eq!(place.read("cgroup.procs"), "");
    assert_eq!(place.in_use(), ["slot-0", "slot-1"]);
    assert_eq!(place.read_of("slot-1", "pids.max"), "50");
    supervisor.reload(2);
    supervisor.eventually("the new workers are alone", || place.in_use() == ["slot-0.2", "slot-1.2"]);
    assert_eq!(place.read_of("slot-1.2", "memory.max"), (256 << 20).to_string());
    assert_eq!(place.workers(), ["slot-0", "slot-0.2", "slot-1", "slot-1.2"], "they are kept");
    supervisor.reload(2);
    supervisor.eventually("the first ones are used again", || place.in_use() == ["slot-0", "slot-1"]);
    assert_eq!(place.read_of("slot-1", "memory.max"), (256 << 20).to_string());
    supervisor.signal(Signal::TTOU);
    supervisor.eventually("slot 1 has no cgroup", || place.workers() == ["slot-0", "slot-0.2"]);
    assert_eq!(supervisor.stop(), 0);
    assert!(place.is_empty(), "{:?}", place.workers());
    assert_eq!(place.read("cgroup.subtree_control"), "");
}

#[ignore = "takes root and a cgroup v2 with the cpu, memory and pids controllers, as a virtual machine has"]
#[test]
fn supervisor_after_a_killed_one_with_limits_starts_in_the_subgroup() {
    let place = place_with_controllers!(true);
    let address = address::tcp();
    let limits = ["--worker-memory-max", "256M"];
    let text = "
if os.fork() == 0:
    os.setsid()
    say('child', os.getpid())
    time.sleep(1000)
made = bound(HOST, PORT); made.listen(64)
say('ready', PID)
serve(made)";
    let first = place.start(&limits, script(text, address));
    let child = said(&first, 2).into_iter().find_map(|line| line.strip_prefix("child ")?.parse().ok());
    let child: i32 = child.expect("a child");
    first.signal(Signal::KILL);
    let _killed = first.wait_exit(TIMEOUT);
    assert!(process::alive(child), "it lives on");
    // The killed one has left the controllers enabled: the cgroup itself can have no process.
    let second = Supervisor::builder().args(limits).command(script(text, address));
    let second = second.wrap(place.launcher_below()).spawn();
    said(&second, 2);
    await_gone(child);
    assert_eq!(place.in_use(), ["slot-0"]);
    eventually(TIMEOUT, "the new one serves", || load::who(address).is_some());
    assert_eq!(second.stop(), 0);
    assert_eq!(place.workers(), Vec::<String>::new());
}
