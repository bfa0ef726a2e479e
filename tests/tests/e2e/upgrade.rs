//! Upgrades in place: another program takes over with the same pid, and no worker notices.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use master_process_tests::load::{self, Connections, Load, Target};
use master_process_tests::script::{lines, said, script};
use master_process_tests::service_manager::ServiceManager;
use master_process_tests::supervisor::{Builder, binary};
use master_process_tests::traffic::{nothing_is_lost, pass};
use master_process_tests::upgraded::Upgraded;
use master_process_tests::{Supervisor, address, fixtures, needs_root, process};
use rustix::process::Signal;

/// Twenty upgrades under load, and a reload after them. `await_served` gives the workers that serve.
fn survives_twenty_upgrades(builder: Builder, upgraded: &Upgraded, target: impl Into<Target>) {
    let target = target.into();
    let supervisor = builder.args(["-w", "2"]).spawn();
    upgraded.controlled.await_ready(2);
    let (pid, before) = (supervisor.pid(), supervisor.workers());
    let clients = Load::start(target, 4, Connections::Fresh);
    pass(&supervisor, &clients, 20);
    for _ in 0..20 {
        upgraded.upgrade();
        pass(&supervisor, &clients, 5);
    }
    assert_eq!((supervisor.pid(), supervisor.workers()), (pid, before.clone()));
    assert_eq!(upgraded.controlled.status()["upgraded"]["count"], 20);
    let new = supervisor.reload(2);
    assert!(new.is_disjoint(&before));
    pass(&supervisor, &clients, 20);
    nothing_is_lost(clients);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn twenty_upgrades_under_load_fail_no_request_and_touch_no_worker() {
    let (upgraded, address) = (Upgraded::new(), address::tcp());
    let builder = upgraded.builder().env("LISTEN", address.to_string()).command(fixtures::python_http());
    survives_twenty_upgrades(builder, &upgraded, address);
}

#[test]
fn with_epoll_and_procfs_twenty_upgrades_fail_no_request() {
    let (upgraded, address) = (Upgraded::new(), address::tcp());
    let builder = upgraded.builder().args(["--monitor", "procfs"]).env("MASTER_PROCESS_LOOP", "epoll");
    let builder = builder.env("LISTEN", address.to_string()).command(fixtures::python_http());
    survives_twenty_upgrades(builder, &upgraded, address);
}

#[test]
fn on_a_unix_path_twenty_upgrades_fail_no_request() {
    let (upgraded, (_folder, path)) = (Upgraded::new(), address::unix());
    let builder = upgraded.builder().env("LISTEN", &path).command(fixtures::node("graceful.js"));
    survives_twenty_upgrades(builder, &upgraded, path.as_path());
    assert!(!path.exists(), "it is removed at the end");
}

#[test]
fn with_sockets_that_are_handed_over_twenty_upgrades_fail_no_request() {
    let (upgraded, address) = (Upgraded::new(), address::tcp());
    let builder = upgraded.builder().args(["--listen", &format!("web={address}")]);
    let builder = builder.command(fixtures::worker(&["accept=3"])).args(["--ready", "alive:100ms"]);
    survives_twenty_upgrades(builder, &upgraded, address);
}

#[test]
fn without_privileges_twenty_upgrades_fail_no_request() {
    needs_root!();
    let (upgraded, address) = (Upgraded::new(), address::tcp());
    fs::set_permissions(upgraded.controlled.folder(), fs::Permissions::from_mode(0o777)).expect("ours");
    let user = ["setpriv", "--reuid=51234", "--regid=51234", "--clear-groups"];
    let builder = upgraded.builder().wrap(user).env("LISTEN", address.to_string());
    survives_twenty_upgrades(builder.command(fixtures::python_http()), &upgraded, address);
}

#[test]
fn a_reload_and_the_client_that_waits_for_it_go_on_after_upgrades() {
    let (upgraded, address) = (Upgraded::new(), address::tcp());
    let command = fixtures::listening(address, &["from=1:delay=1.5"]);
    let supervisor = upgraded.builder().args(["-w", "2", "--reload-batch", "1"]).command(command).spawn();
    upgraded.controlled.await_ready(2);
    let before = supervisor.workers();
    let waits = upgraded.controlled.begin(&["reload", "--wait"]);
    supervisor.eventually("a new worker starts", || supervisor.workers().len() > 2);
    for _ in 0..3 {
        upgraded.upgrade();
    }
    let ran = waits.wait();
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let new = supervisor.await_workers(2);
    assert!(new.is_disjoint(&before), "{new:?} {before:?}");
    assert_eq!(upgraded.controlled.status()["generation"], 1);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn a_worker_that_does_not_stop_is_killed_in_time_after_an_upgrade() {
    let (upgraded, address) = (Upgraded::new(), address::tcp());
    let command = fixtures::listening(address, &["term=ignore"]);
    let builder = upgraded.builder().args(["--kill-timeout", "2s", "--drain", "1s"]);
    let supervisor = builder.command(command).spawn();
    upgraded.controlled.await_ready(1);
    let old = supervisor.workers();
    supervisor.signal(Signal::HUP);
    // In its drain, and after its stop signal.
    supervisor.eventually("it drains", || upgraded.controlled.status()["workers"][1]["state"] == "draining");
    upgraded.upgrade();
    supervisor.eventually("it has the stop signal", || !supervisor.events_named("term").is_empty());
    upgraded.upgrade();
    supervisor.eventually("it is killed", || supervisor.workers().is_disjoint(&old));
    assert_eq!(supervisor.logged(&["did not stop within 2.", "sending sigkill"]).len(), 1);
    assert_eq!(supervisor.stop_twice(), Some(0));
}

#[test]
fn a_throttle_delay_goes_on_after_an_upgrade() {
    let upgraded = Upgraded::new();
    let flag = upgraded.controlled.folder().join("crash");
    fs::write(&flag, "").expect("ours");
    let crashes = format!("if={}:exit=3", flag.display());
    let address = address::tcp();
    let builder = upgraded.builder().args(["--throttle", "3s", "--throttle-max", "3s"]);
    let supervisor = builder.command(fixtures::listening(address, &[&crashes])).spawn();
    let first = supervisor.await_event("it starts", |event| event.name == "started");
    supervisor
        .eventually("its slot waits", || upgraded.controlled.status()["workers"][0]["state"] == "waiting");
    fs::remove_file(&flag).expect("ours");
    upgraded.upgrade();
    assert_eq!(upgraded.controlled.status()["workers"][0]["last_end"]["exit_code"], 3);
    upgraded.controlled.await_ready(1);
    let second = supervisor.await_events(2, "started").pop().expect("two");
    assert!(second.at - first.at > 2.5, "{first:?} {second:?}");
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn binds_that_wait_are_answered_by_the_next_program() {
    let upgraded = Upgraded::new();
    // Each bind waits for the supervisor, whichever program that is.
    let binds = "import socket, sys\n\
                 for number in range(100000):\n\
                 \x20   with socket.socket() as one:\n\
                 \x20       one.bind(('127.0.0.1', 0))\n\
                 \x20   if number % 100 == 0: print('bound', number, flush=True)\n";
    let command = [fixtures::python(), "-c".to_owned(), binds.to_owned()];
    let builder = upgraded.builder().args(["--ready", "none", "--monitor", "off"]);
    let supervisor = builder.command(command).spawn();
    let count = || supervisor.output().iter().filter(|line| line.starts_with("bound")).count();
    for _ in 0..10 {
        let before = count();
        supervisor.eventually("it binds", || count() > before + 1);
        upgraded.upgrade();
    }
    let before = count();
    supervisor.eventually("it goes on", || count() > before + 1);
    assert_eq!(supervisor.logged(&["exited"]), [""; 0]);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn workers_that_end_around_an_upgrade_are_replaced() {
    let (upgraded, address) = (Upgraded::new(), address::tcp());
    let builder = upgraded.builder().args(["-w", "3", "--throttle", "10ms", "--throttle-max", "10ms"]);
    let supervisor = builder.command(fixtures::listening(address, &[])).spawn();
    upgraded.controlled.await_ready(3);
    for _ in 0..5 {
        let before = supervisor.await_workers(3);
        let upgrade = upgraded.controlled.begin(&["upgrade", "--wait"]);
        before.iter().for_each(|pid| process::signal(*pid, Signal::KILL));
        assert_eq!(upgrade.wait().code, Some(0));
        supervisor.eventually("all are replaced", || {
            let now = supervisor.workers();
            now.len() == 3 && now.is_disjoint(&before)
        });
        upgraded.controlled.await_ready(3);
    }
    let status = upgraded.controlled.status();
    let restarts = |slot: usize| status["workers"][slot]["restarts_total"]["signal"].as_u64();
    assert_eq!((0..3).filter_map(restarts).sum::<u64>(), 15, "{status}");
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn a_file_that_cannot_take_over_changes_nothing() {
    let (upgraded, address) = (Upgraded::new(), address::tcp());
    let supervisor = upgraded.builder().command(fixtures::listening(address, &[])).spawn();
    upgraded.controlled.await_ready(1);
    let (pid, worker) = (supervisor.pid(), supervisor.workers());
    upgraded.replace(|path| fs::write(path, "\u{7f}ELF and no more").expect("ours"));
    upgraded.is_refused("execve: Permission denied");
    upgraded.replace_by_script("#!/no/such/interpreter\n");
    upgraded.is_refused("/no/such/interpreter");
    upgraded.replace_by_script("#!/bin/sh\nexit 1\n");
    upgraded.is_refused("it does not answer as a master-process does");
    upgraded.replace_by_script("#!/bin/sh\necho refuses a taste of its own >&4\nexit 1\n");
    upgraded.is_refused("a taste of its own");
    upgraded.replace_by_script("#!/bin/sh\nexec sleep 60\n");
    upgraded.is_refused("it has not answered within 5.0s");
    fs::remove_file(&upgraded.program).expect("it is there");
    upgraded.is_refused("No such file or directory");
    assert_eq!((supervisor.pid(), supervisor.workers()), (pid, worker.clone()));
    assert_eq!(supervisor.logged(&["upgrade to", "failed: ", "nothing has changed"]).len(), 6);
    upgraded.replace_by_copy();
    upgraded.upgrade();
    assert_eq!((supervisor.pid(), supervisor.workers()), (pid, worker));
    assert!(load::who(address).is_some());
    assert_eq!(supervisor.stop(), 0);
}

/// A program that accepts every state, and then takes over with an option that it does not know.
fn cannot_take_over() -> String {
    let other = binary();
    format!(
        "#!/bin/sh\n[ \"$1\" = --check-state ] && {{ echo accepts 9.9 >&4; exit 0; }}\nexec {} --later 1 -- x\n",
        other.display()
    )
}

#[test]
fn a_program_that_cannot_take_over_gives_way_to_the_one_before() {
    let (upgraded, address) = (Upgraded::new(), address::tcp());
    let supervisor = upgraded.builder().args(["-w", "2"]).command(fixtures::listening(address, &[])).spawn();
    upgraded.controlled.await_ready(2);
    let (pid, workers) = (supervisor.pid(), supervisor.workers());
    upgraded.replace_by_script(&cannot_take_over());
    for _ in 0..3 {
        upgraded.is_refused("unknown option \"--later\"");
        assert_eq!((supervisor.pid(), supervisor.workers()), (pid, workers.clone()));
        assert!(load::who(address).is_some());
    }
    assert_eq!(supervisor.logged(&["the new program could not take over"]).len(), 3);
    assert!(supervisor.reload(2).is_disjoint(&workers));
    upgraded.replace_by_copy();
    upgraded.upgrade();
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn a_reload_that_finds_another_program_does_what_on_upgrade_says() {
    for (wish, upgrades) in [("exec", true), ("ignore", false), ("exit", false)] {
        let (upgraded, address) = (Upgraded::new(), address::tcp());
        let builder = upgraded.builder().args(["--on-upgrade", wish]);
        let supervisor = builder.command(fixtures::listening(address, &[])).spawn();
        upgraded.controlled.await_ready(1);
        supervisor.reload(1);
        assert_eq!(supervisor.logged(&["upgrade to"]).len(), 0, "{wish}: it has not changed");
        upgraded.replace_by_copy();
        if wish == "exit" {
            supervisor.signal(Signal::HUP);
            assert_eq!(supervisor.wait_exit(Duration::from_secs(30)).code(), Some(1));
            assert_eq!(supervisor.survivors(), [0; 0]);
            continue;
        }
        supervisor.reload(1);
        if upgrades {
            supervisor.eventually("it is upgraded", || !supervisor.logged(&["upgraded from"]).is_empty());
        }
        assert_eq!(upgraded.controlled.status()["generation"], 2);
        supervisor.reload(1);
        let count = upgraded.controlled.status()["upgraded"]["count"].as_u64().unwrap_or(0);
        assert_eq!(count, u64::from(upgrades), "{wish}: once for one change");
        assert_eq!(supervisor.stop(), 0);
    }
}

#[test]
fn sigusr1_upgrades_and_what_was_set_at_run_time_stays() {
    let (upgraded, address) = (Upgraded::new(), address::tcp());
    let supervisor = upgraded.builder().command(fixtures::listening(address, &[])).spawn();
    upgraded.controlled.await_ready(1);
    assert_eq!(upgraded.controlled.run(&["scale", "3", "--wait"]).code, Some(0));
    assert_eq!(upgraded.controlled.run(&["pause"]).code, Some(0));
    let workers = supervisor.await_workers(3);
    let before = upgraded.controlled.status();
    supervisor.signal(Signal::USR1);
    supervisor.eventually("it is upgraded", || !supervisor.logged(&["upgraded from"]).is_empty());
    let after = upgraded.controlled.status();
    for field in ["slots_wanted", "limits_paused", "started_at", "generation", "command", "name", "addresses"]
    {
        assert_eq!(before[field], after[field], "{field}");
    }
    assert!(after["last_seq"].as_u64() > before["last_seq"].as_u64(), "events are numbered on");
    assert_eq!(supervisor.workers(), workers);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn the_output_of_a_preload_command_and_a_running_one_survive_upgrades() {
    const READS: &str = "
say('got', INDEX, RELOAD, open(os.environ['PRELOAD_FILE']).read())
made = bound(HOST, PORT); made.listen(64); serve(made)";
    let (upgraded, address) = (Upgraded::new(), address::tcp());
    let wait = upgraded.controlled.folder().join("wait");
    let text = format!("while [ -e {} ]; do sleep 0.05; done; printf %s $RELOAD_INDEX", wait.display());
    let options = ["-w", "2", "--throttle", "20ms", "--preload", &format!("sh -c '{text}'")];
    let supervisor = upgraded.builder().args(options).command(script(READS, address)).spawn();
    assert_eq!(said(&supervisor, 2), lines(&["got 0 0 0", "got 1 0 0"]));
    upgraded.upgrade();
    let victim = *supervisor.await_workers(2).first().expect("two");
    process::signal(victim, Signal::KILL);
    supervisor.eventually("the replacement has the same", || supervisor.output().len() == 3);
    assert!(supervisor.output()[2].ends_with(" 0 0"), "{:?}", supervisor.output());
    fs::write(&wait, "").expect("ours");
    supervisor.signal(Signal::HUP);
    let running = || upgraded.controlled.status()["preload"]["pid"].as_i64();
    let command = supervisor.until("the command of the reload runs", running);
    upgraded.upgrade();
    assert_eq!(running(), Some(command));
    fs::remove_file(&wait).expect("ours");
    supervisor.eventually("the new workers have its output", || supervisor.output().len() == 5);
    assert_eq!(
        supervisor.output()[3..].iter().cloned().collect::<BTreeSet<_>>(),
        lines(&["got 0 1 1", "got 1 1 1"])
    );
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn what_the_service_manager_knows_and_keeps_survives_upgrades() {
    const STATES: [&str; 3] = ["READY=", "RELOADING=", "STOPPING="];
    let (upgraded, address, manager) = (Upgraded::new(), address::tcp(), ServiceManager::new());
    let wait = upgraded.controlled.folder().join("wait");
    let word = format!("if={}:delay=1000", wait.display());
    let command = fixtures::listening(address, &[&word]);
    let supervisor = manager.spawn(upgraded.builder().args(["-w", "2"]).command(command));
    manager.await_line("READY=1", 1);
    let kept = manager.await_kept(2);
    upgraded.upgrade();
    manager.await_line("STATUS=upgrading", 1);
    manager.await_line("STATUS=2 of 2 ready", 1);
    assert_eq!((manager.kept(), manager.lines(&["FDSTORE"]).len()), (kept, 2), "nothing is sent again");
    // In a reload, which the next program ends.
    fs::write(&wait, "").expect("ours");
    supervisor.signal(Signal::HUP);
    manager.await_line("RELOADING=1", 1);
    upgraded.upgrade();
    fs::remove_file(&wait).expect("ours");
    supervisor.signal(Signal::HUP);
    manager.await_line("READY=1", 2);
    assert_eq!(supervisor.stop(), 0);
    let states = manager.lines(&STATES);
    assert_eq!(states, ["READY=1", "RELOADING=1", "RELOADING=1", "READY=1", "STOPPING=1"]);
}

#[test]
fn many_upgrades_leak_no_descriptor_and_no_memory() {
    let (upgraded, address) = (Upgraded::new(), address::tcp());
    let supervisor = upgraded.builder().args(["-w", "3"]).command(fixtures::listening(address, &[])).spawn();
    upgraded.controlled.await_ready(3);
    let pid = supervisor.pid();
    let anonymous = || {
        let text = process::status(pid, "RssAnon").expect("it lives");
        text.trim_end_matches(" kB").trim().parse::<u64>().expect("a number")
    };
    // eBPF, whose descriptors count, is loaded after the start and after each upgrade.
    let measures = |times: usize| {
        supervisor.eventually("it measures", || supervisor.logged(&["monitor: "]).len() == times);
    };
    measures(1);
    for upgrades in 1..=3 {
        upgraded.upgrade();
        measures(1 + upgrades);
    }
    let (descriptors, memory) = (process::descriptors(pid).len(), anonymous());
    for _ in 0..30 {
        upgraded.upgrade();
    }
    supervisor
        .eventually("as many descriptors as before", || process::descriptors(pid).len() <= descriptors + 3);
    let grown = anonymous().saturating_sub(memory);
    assert!(grown <= 512, "{grown} KiB more than the {memory} KiB before");
    assert_eq!(supervisor.logged(&["descriptor"]), [""; 0], "none was left over");
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn kill_9_in_an_upgrade_ends_the_workers_as_at_any_time() {
    for wait in [0, 2, 5, 10, 20, 40] {
        let (upgraded, address) = (Upgraded::new(), address::tcp());
        let supervisor =
            upgraded.builder().args(["-w", "2"]).command(fixtures::listening(address, &[])).spawn();
        upgraded.controlled.await_ready(2);
        supervisor.signal(Signal::USR1);
        master_process_tests::offset(Duration::from_millis(wait));
        supervisor.signal(Signal::KILL);
        assert_eq!(supervisor.wait_exit(Duration::from_secs(30)).code(), None, "a signal has ended it");
        supervisor_is_gone(&supervisor);
    }
}

fn supervisor_is_gone(supervisor: &Supervisor) {
    master_process_tests::eventually(Duration::from_secs(10), "nothing is left", || {
        supervisor.survivors().is_empty()
    });
}

#[test]
fn datagram_sockets_stay_shared_over_upgrades() {
    let (upgraded, address) = (Upgraded::new(), address::tcp());
    let command = fixtures::worker(&[&format!("udp={address}"), "notify"]);
    let supervisor = upgraded.builder().args(["-w", "2", "--ready", "notify"]).command(command).spawn();
    upgraded.controlled.await_ready(2);
    let before: BTreeSet<i32> = supervisor.workers();
    upgraded.upgrade();
    let new = supervisor.reload(2);
    assert!(new.is_disjoint(&before), "the new ones bind the same address");
    upgraded.controlled.await_ready(2);
    assert_eq!(supervisor.logged(&["already in use"]), [""; 0]);
    assert_eq!(supervisor.stop(), 0);
}
