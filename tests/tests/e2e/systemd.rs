//! What the service manager is told, and what it keeps: against one that the test plays.

use std::time::Duration;

use master_process_tests::load::{Kept, Outcome};
use master_process_tests::service_manager::ServiceManager;
use master_process_tests::supervisor::{Builder, await_gone};
use master_process_tests::{Supervisor, TIMEOUT, address, always, eventually, fixtures, messages, scaled};
use rustix::process::Signal;

/// The lines that tell the state.
const STATES: [&str; 4] = ["READY=", "RELOADING=", "STOPPING=", "EXIT_STATUS="];

fn workers(count: &str, words: &[&str]) -> Builder {
    Supervisor::builder().args(["-w", count]).command(fixtures::worker(words))
}

#[test]
fn ready_comes_once_when_each_slot_has_had_a_ready_worker() {
    let manager = ServiceManager::new();
    let words = ["listen=127.0.0.1:0", "index=1:delay=0.7", "notify"];
    let supervisor = manager.notified_by(workers("2", &words)).args(["--ready", "notify"]).spawn();
    supervisor.await_events(1, "ready");
    manager.await_line("STATUS=1 of 2 ready", 1);
    assert_eq!(manager.lines(&STATES), [""; 0], "the other one is not ready");
    manager.await_line("READY=1", 1);
    assert_eq!(supervisor.events_named("ready").len(), 2);
    // A crash and its replacement are no news of this kind.
    let first = supervisor.events_named("ready")[0].pid;
    master_process_tests::process::signal(first, Signal::KILL);
    manager.await_line("STATUS=2 of 2 ready, 1 restart in the last hour", 1);
    assert_eq!(manager.lines(&STATES), ["READY=1"]);
}

#[test]
fn without_a_readiness_check_ready_comes_at_once() {
    let manager = ServiceManager::new();
    let builder = Supervisor::builder().args(["--ready", "none", "-w", "3"]).command(fixtures::idle());
    let _supervisor = manager.notified_by(builder).spawn();
    manager.await_line("READY=1", 1);
    manager.await_line("STATUS=3 of 3 ready", 1);
}

#[test]
fn a_reload_begins_and_ends_with_a_message_also_if_it_fails() {
    let manager = ServiceManager::new();
    let words = ["from=2:exit=1", "notify"];
    let options = ["--throttle", "10ms", "--throttle-max", "10ms", "--reload-attempts", "2"];
    let supervisor = manager.notified_by(workers("2", &words)).args(options).spawn();
    manager.await_line("READY=1", 1);
    supervisor.signal(Signal::HUP);
    manager.await_line("READY=1", 2);
    manager.await_line("STATUS=2 of 2 ready, reload 1", 1);
    supervisor.signal(Signal::HUP);
    manager.await_line("READY=1", 3);
    messages::await_failed_reload(&supervisor);
    let failed = manager.lines(&["STATUS=2 of 2 ready, reload 2 failed: slot "]);
    assert!(!failed.is_empty(), "{:?}", manager.messages());
    let states = manager.lines(&STATES);
    assert_eq!(states, ["READY=1", "RELOADING=1", "READY=1", "RELOADING=1", "READY=1"]);
    let times: Vec<u64> = manager
        .lines(&["MONOTONIC_USEC="])
        .iter()
        .filter_map(|line| line.rsplit('=').next()?.parse().ok())
        .collect();
    assert!(times.len() == 2 && times[0] < times[1], "{times:?}");
}

#[test]
fn a_reload_that_another_one_supersedes_goes_on_until_the_other_is_decided() {
    let manager = ServiceManager::new();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let slow = folder.path().join("slow");
    let word = format!("if={}:delay=1000", slow.display());
    let supervisor = manager.notified_by(workers("2", &[&word, "notify"])).spawn();
    manager.await_line("READY=1", 1);
    std::fs::write(&slow, "").expect("ours");
    supervisor.signal(Signal::HUP);
    manager.await_line("RELOADING=1", 1);
    std::fs::remove_file(&slow).expect("ours");
    supervisor.signal(Signal::HUP);
    manager.await_line("READY=1", 2);
    messages::await_reload_complete(&supervisor, 2);
    assert_eq!(manager.lines(&STATES), ["READY=1", "RELOADING=1", "RELOADING=1", "READY=1"]);
}

#[test]
fn a_stop_is_announced_with_the_time_that_it_may_take() {
    let manager = ServiceManager::new();
    let supervisor = manager.notified_by(workers("2", &["notify"])).args(["--kill-timeout", "42s"]).spawn();
    manager.await_line("READY=1", 1);
    assert_eq!(supervisor.stop(), 0);
    manager.await_line("STOPPING=1", 1);
    assert_eq!(manager.lines(&STATES), ["READY=1", "STOPPING=1"]);
    let last = manager.messages().into_iter().find(|message| message.contains("STOPPING=1")).expect("seen");
    let extended = last.lines().find_map(|line| line.strip_prefix("EXTEND_TIMEOUT_USEC="));
    assert!(extended.and_then(|usec| usec.parse().ok()).is_some_and(|usec: u64| usec > 42_000_000), "{last}");
}

#[test]
fn a_failure_is_told_with_its_reason() {
    let manager = ServiceManager::new();
    let builder = Supervisor::builder().command(["/nonexistent/program"]);
    let finished = manager.notified_by(builder).run();
    assert_eq!(finished.code, Some(127));
    manager.await_line("EXIT_STATUS=127", 1);
    manager.await_line("ERRNO=2", 1);
    assert!(!manager.lines(&["STATUS=/nonexistent/program cannot be started"]).is_empty());
}

#[test]
fn the_watchdog_is_fed_by_the_loop_and_only_for_this_process() {
    let manager = ServiceManager::new();
    let period = scaled(Duration::from_millis(400));
    let builder = Supervisor::builder().args(["--ready", "none"]).command(fixtures::idle());
    let builder = manager.notified_by(builder).env("WATCHDOG_USEC", period.as_micros().to_string());
    let supervisor = builder.spawn();
    manager.await_line("WATCHDOG=1", 3);
    supervisor.signal(Signal::STOP);
    // What was sent before the stop may still arrive.
    let count = || manager.lines(&["WATCHDOG=1"]).len();
    eventually(TIMEOUT, "a stopped loop feeds nothing", || {
        let before = count();
        std::thread::sleep(period);
        count() == before
    });
    supervisor.signal(Signal::CONT);
    manager.await_line("WATCHDOG=1", count() + 1);
    assert_eq!(supervisor.stop(), 0);

    let other = ServiceManager::new();
    let builder = Supervisor::builder().args(["--ready", "none"]).command(fixtures::idle());
    let builder = other.notified_by(builder).env("WATCHDOG_USEC", "20000").env("WATCHDOG_PID", "1");
    let _supervisor = builder.spawn();
    other.await_line("READY=1", 1);
    always(Duration::from_millis(200), "it is another process's", || other.lines(&["WATCHDOG=1"]).is_empty());
}

#[test]
fn a_full_queue_delays_messages_and_nothing_else() {
    let mut manager = ServiceManager::deaf();
    manager.fill();
    let supervisor = manager.notified_by(workers("2", &["notify"])).spawn();
    supervisor.await_ready(2);
    supervisor.reload(2);
    manager.read();
    manager.await_line("RELOADING=1", 1);
    manager.await_line("READY=1", 2);
    assert_eq!(manager.lines(&STATES), ["READY=1", "RELOADING=1", "READY=1"]);
    assert!(supervisor.logged(&["service manager"]).is_empty(), "{:?}", supervisor.log());
}

#[test]
fn a_service_manager_that_is_gone_costs_one_line() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let builder = workers("2", &["notify"]).env("NOTIFY_SOCKET", folder.path().join("gone"));
    let supervisor = builder.env("FDSTORE", "8").spawn();
    supervisor.await_ready(2);
    supervisor.reload(2);
    assert_eq!(supervisor.stop(), 0);
    assert_eq!(supervisor.logged(&["cannot notify the service manager"]).len(), 1, "{:?}", supervisor.log());
}

#[test]
fn workers_find_nothing_that_was_meant_for_the_supervisor() {
    let manager = ServiceManager::new();
    let builder = workers("1", &["env", "notify"]).env("WATCHDOG_USEC", "60000000");
    let supervisor = manager.spawn(builder);
    let environment = supervisor.await_environment(|_| true);
    for name in ["FDSTORE", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_FDNAMES"] {
        assert!(environment[name].is_null(), "{name}={}", environment[name]);
    }
}

/// A client whose connection waits while there is no supervisor.
struct Waiting(Kept);

impl Waiting {
    fn new(target: impl Into<master_process_tests::load::Target>) -> Waiting {
        let mut kept = Kept::open(target).expect("it is not refused");
        kept.ask().expect("there is room");
        Waiting(kept)
    }

    fn answered_by(mut self, supervisor: &Supervisor) {
        let ready: Vec<String> = supervisor.await_ready(1).iter().map(ToString::to_string).collect();
        let Outcome::Ok(body) = self.0.answer() else { panic!("no answer; {:?}", supervisor.log()) };
        let all: Vec<String> =
            supervisor.events_named("started").iter().map(|event| event.pid.to_string()).collect();
        assert!(all.contains(&body.trim().to_owned()), "{body}: {ready:?}");
    }
}

fn kill(supervisor: &Supervisor) {
    let workers = supervisor.workers();
    supervisor.signal(Signal::KILL);
    let _status = supervisor.wait_exit(TIMEOUT);
    workers.into_iter().for_each(await_gone);
}

#[test]
fn listeners_survive_a_killed_supervisor_and_connections_wait() {
    let (manager, address) = (ServiceManager::new(), address::tcp());
    let listen = format!("listen={address}");
    let first = manager.spawn(workers("3", &[&listen]));
    first.await_ready(3);
    let kept = manager.await_kept(3);
    assert!(kept.iter().all(|name| name.starts_with("mp-shard/") && name.contains("/tcp/127.")), "{kept:?}");
    kill(&first);
    let waiting: Vec<Waiting> = (0..12).map(|_| Waiting::new(address)).collect();
    let second = manager.spawn(workers("3", &[&listen]));
    waiting.into_iter().for_each(|waiting| waiting.answered_by(&second));
    second.await_ready(3);
    assert_eq!(second.logged(&["took over 3 listeners of"]).len(), 1, "{:?}", second.log());
    // The old ones go when the new ones serve.
    manager.await_kept(3);
    assert_eq!(second.stop(), 0);
}

#[test]
fn listeners_survive_an_orderly_stop_for_a_restart() {
    let (manager, address) = (ServiceManager::new(), address::tcp());
    let listen = format!("listen={address}");
    let first = manager.spawn(workers("2", &[&listen]));
    first.await_ready(2);
    let kept = manager.await_kept(2);
    assert_eq!(first.stop(), 0);
    manager.await_line("STOPPING=1", 1);
    assert_eq!(manager.kept(), kept, "only the service manager knows whether this is a restart");
    let waiting: Vec<Waiting> = (0..8).map(|_| Waiting::new(address)).collect();
    let second = manager.spawn(workers("2", &[&listen]));
    waiting.into_iter().for_each(|waiting| waiting.answered_by(&second));
    assert_eq!(second.stop(), 0);
}

#[test]
fn a_reload_leaves_only_the_new_listeners_kept() {
    let (manager, address) = (ServiceManager::new(), address::tcp());
    let listen = format!("listen={address}");
    let options = ["--throttle", "50ms", "--throttle-max", "50ms"];
    let supervisor = manager.spawn(workers("2", &[&listen]).args(options));
    supervisor.await_ready(2);
    manager.await_kept(2);
    for _ in 0..3 {
        supervisor.reload(2);
    }
    eventually(TIMEOUT, "two are kept, with the numbers of their group", || {
        let numbers: Vec<String> =
            manager.kept().iter().filter_map(|name| name.split('/').nth(2).map(str::to_owned)).collect();
        numbers.len() == 2 && numbers.contains(&"0".to_owned()) && numbers.contains(&"1".to_owned())
    });
    kill(&supervisor);
    let waiting: Vec<Waiting> = (0..8).map(|_| Waiting::new(address)).collect();
    let second = manager.spawn(workers("2", &[&listen]));
    waiting.into_iter().for_each(|waiting| waiting.answered_by(&second));
}

#[test]
fn a_listener_that_no_worker_serves_any_more_is_not_kept() {
    let (manager, before, after) = (ServiceManager::new(), address::tcp(), address::tcp());
    let first = manager.spawn(workers("2", &[&format!("listen={before}")]));
    first.await_ready(2);
    manager.await_kept(2);
    kill(&first);
    let second = manager.spawn(workers("2", &[&format!("listen={after}")]));
    second.await_ready(2);
    let wanted = after.port().to_string();
    eventually(TIMEOUT, "only the new address is kept", || {
        let kept = manager.kept();
        kept.len() == 2 && kept.iter().all(|name| name.ends_with(&format!("/{wanted}")))
    });
    let refused = || matches!(master_process_tests::load::get(before, "/"), Outcome::Refused);
    eventually(TIMEOUT, "the old one is closed", refused);
}

/// Has a killed supervisor of one worker leave a listener.
fn leave_one(manager: &ServiceManager, listen: &str) {
    let first = manager.spawn(workers("1", &[listen]));
    first.await_ready(1);
    manager.await_kept(1);
    kill(&first);
}

#[test]
fn a_kept_socket_that_is_not_what_its_name_says_is_closed() {
    let (manager, address) = (ServiceManager::new(), address::tcp());
    let listen = format!("listen={address}");
    leave_one(&manager, &listen);
    manager.rename(|name| format!("{name}9"));
    let wrong = manager.kept();
    let second = manager.spawn(workers("1", &[&listen]));
    second.await_ready(1);
    assert_eq!(second.logged(&["closed mp-shard/", "it has another address"]).len(), 1, "{:?}", second.log());
    eventually(TIMEOUT, "it is not kept any more", || manager.kept().len() == 1 && manager.kept() != wrong);
    Waiting::new(address).answered_by(&second);
}

#[test]
fn a_listen_socket_survives_a_killed_supervisor() {
    let (manager, address) = (ServiceManager::new(), address::tcp());
    let option = format!("web={address}");
    let start = || manager.spawn(workers("2", &["accept=3", "notify"]).args(["--listen", &option]));
    let first = start();
    first.await_ready(2);
    assert!(manager.await_kept(1)[0].starts_with("mp-listen/"));
    kill(&first);
    let waiting: Vec<Waiting> = (0..4).map(|_| Waiting::new(address)).collect();
    let second = start();
    waiting.into_iter().for_each(|waiting| waiting.answered_by(&second));
    assert_eq!(manager.await_kept(1).len(), 1);
    assert_eq!(second.stop(), 0);
}

#[test]
fn a_listen_socket_at_a_path_survives_a_killed_supervisor() {
    let (manager, folder) = (ServiceManager::new(), tempfile::tempdir().expect("a temporary folder"));
    let path = folder.path().join("app.sock");
    let option = format!("unix:{}", path.display());
    let start = || manager.spawn(workers("2", &["accept=3", "notify"]).args(["--listen", &option]));
    let first = start();
    first.await_ready(2);
    assert!(manager.await_kept(1)[0].starts_with("mp-listen/"));
    kill(&first);
    let waiting: Vec<Waiting> = (0..4).map(|_| Waiting::new(path.as_path())).collect();
    let second = start();
    waiting.into_iter().for_each(|waiting| waiting.answered_by(&second));
    assert!(second.logged(&["of the service manager"]).is_empty(), "{:?}", second.log());
    assert_eq!(second.stop(), 0);
    assert!(!path.exists());
}

#[test]
fn kept_listeners_of_workers_give_way_to_a_listen_option_of_their_address() {
    let (manager, address) = (ServiceManager::new(), address::tcp());
    let first = manager.spawn(workers("2", &[&format!("listen={address}")]));
    first.await_ready(2);
    manager.await_kept(2);
    kill(&first);
    let listen = address.to_string();
    let second = manager.spawn(workers("2", &["accept=3", "notify"]).args(["--listen", &listen]));
    second.await_ready(2);
    Waiting::new(address).answered_by(&second);
    eventually(TIMEOUT, "only the new one is kept", || {
        let kept = manager.kept();
        kept.len() == 1 && kept[0].starts_with("mp-listen/")
    });
}

#[test]
fn kept_listeners_do_not_hold_an_address_that_is_not_shared_any_more() {
    let (manager, address) = (ServiceManager::new(), address::tcp());
    let listen = format!("listen={address}");
    leave_one(&manager, &listen);
    let second = manager.spawn(workers("1", &[&listen]).args(["--share", "off"]));
    second.await_ready(1);
    Waiting::new(address).answered_by(&second);
    manager.await_kept(0);
}

#[test]
fn a_unix_socket_survives_a_killed_supervisor() {
    let (manager, folder) = (ServiceManager::new(), tempfile::tempdir().expect("a temporary folder"));
    let path = folder.path().join("app.sock");
    let listen = format!("listen={}", path.display());
    let options = ["--throttle", "50ms", "--throttle-max", "50ms"];
    let first = manager.spawn(workers("2", &[&listen]).args(options));
    first.await_ready(2);
    assert!(manager.await_kept(1)[0].starts_with("mp-path/"));
    // The next generation's socket was bound under another name.
    let stored = manager.lines(&["FDSTORE=1"]).len();
    first.reload(2);
    eventually(TIMEOUT, "its socket is kept", || manager.lines(&["FDSTORE=1"]).len() > stored);
    manager.await_kept(1);
    kill(&first);
    let waiting: Vec<Waiting> = (0..4).map(|_| Waiting::new(path.as_path())).collect();
    let second = manager.spawn(workers("2", &[&listen]));
    waiting.into_iter().for_each(|waiting| waiting.answered_by(&second));
    manager.await_kept(1);
    // This directory is not systemd's to remove.
    assert_eq!(second.stop(), 0);
    assert!(!path.exists());
}

#[test]
fn a_unix_socket_in_a_runtime_directory_survives_an_orderly_stop() {
    let (manager, folder) = (ServiceManager::new(), tempfile::tempdir().expect("a temporary folder"));
    let path = folder.path().join("app.sock");
    let listen = format!("listen={}", path.display());
    let start = || manager.spawn(workers("2", &[&listen]).env("RUNTIME_DIRECTORY", folder.path()));
    let first = start();
    first.await_ready(2);
    manager.await_kept(1);
    assert_eq!(first.stop(), 0);
    let waiting: Vec<Waiting> = (0..4).map(|_| Waiting::new(path.as_path())).collect();
    let second = start();
    waiting.into_iter().for_each(|waiting| waiting.answered_by(&second));
    assert_eq!(second.stop(), 0);
}

#[test]
fn listeners_without_room_are_named_once_and_the_others_are_kept() {
    let (manager, one, other) = (ServiceManager::new(), address::tcp(), address::tcp());
    let words = [format!("listen={one}"), format!("index=1:listen={other}")];
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let supervisor = manager.spawn(workers("3", &words).env("FDSTORE", "2"));
    supervisor.await_ready(3);
    let logged = || supervisor.logged(&["raise filedescriptorstoremax="]).len();
    supervisor.eventually("the line", || logged() == 1);
    // One of the addresses has two listeners, and the other one.
    let address = |name: &String| name.splitn(4, '/').last().map(str::to_owned);
    eventually(TIMEOUT, "one address is kept whole", || {
        let kept: Vec<Option<String>> = manager.kept().iter().map(address).collect();
        kept.first() == kept.last() && (1..=2).contains(&kept.len())
    });
    assert_eq!(logged(), 1, "{:?}", supervisor.log());
}
