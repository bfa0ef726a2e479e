//! As the first process of a PID namespace, which is what it is in a container.

use master_process_tests::messages::await_reload_complete;
use master_process_tests::script::script;
use master_process_tests::supervisor::Builder;
use master_process_tests::{Supervisor, address, fixtures, load, process, skip};
use rustix::process::Signal;

use crate::ready_addresses::STARTS_A_DAEMON;

/// `None` where no namespace can be made.
fn contained() -> Option<Builder> {
    let unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let possible = std::process::Command::new(unshare[0]).args(&unshare[1..]).arg("true").output();
    possible.is_ok_and(|output| output.status.success()).then(|| Supervisor::builder().wrap(unshare))
}

fn is_pid_one(supervisor: &Supervisor) -> bool {
    process::status(supervisor.pid(), "NSpid").is_some_and(|pids| pids.split_whitespace().last() == Some("1"))
}

#[test]
fn as_pid_1_it_serves_replaces_and_stops_on_term() {
    let Some(builder) = contained() else {
        skip!("no PID namespaces");
    };
    let address = address::tcp();
    let options = ["-w", "2", "--throttle", "20ms", "--throttle-max", "20ms"];
    let supervisor = builder.args(options).command(fixtures::listening(address, &[])).spawn();
    supervisor.await_events(2, "ready");
    assert!(is_pid_one(&supervisor));
    assert_eq!(supervisor.events_named("started")[0].field("ppid"), Some("1"));
    assert!(load::who(address).is_some());
    let victim = *supervisor.await_workers(2).first().expect("two");
    process::signal(victim, Signal::KILL);
    supervisor.await_events(3, "ready");
    supervisor.reload(2);
    assert!(load::who(address).is_some());
    assert_eq!(supervisor.stop(), 0);
}

/// The session that it was started in is outside of the namespace, where it has no number.
#[test]
fn as_pid_1_a_daemon_is_not_its_worker() {
    let Some(builder) = contained() else {
        skip!("no PID namespaces");
    };
    let command = script(STARTS_A_DAEMON, address::tcp());
    let supervisor = builder.args(["--throttle", "100ms"]).command(command).spawn();
    supervisor.eventually("it serves", || supervisor.output().iter().any(|line| line.starts_with("own")));
    assert!(is_pid_one(&supervisor));
    supervisor.signal(Signal::HUP);
    await_reload_complete(&supervisor, 1);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn as_pid_1_adopted_processes_are_reaped() {
    let Some(builder) = contained() else {
        skip!("no PID namespaces");
    };
    let supervisor = builder.command(fixtures::worker(&["orphan=0.3"])).spawn();
    supervisor.await_event("there is an orphan", |event| event.name == "orphan");
    assert!(is_pid_one(&supervisor));
    supervisor.eventually("only the worker is left, and no zombie", || {
        let children = process::children(supervisor.pid());
        children.len() == 1 && children[0].state != 'Z'
    });
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn as_pid_1_give_up_exits_with_70() {
    let Some(builder) = contained() else {
        skip!("no PID namespaces");
    };
    let options = ["--give-up", "2/20s", "--throttle", "700ms", "--throttle-max", "700ms"];
    let finished = builder.args(options).command(["false"]).run();
    assert_eq!(finished.code, Some(70), "{finished:?}");
}
