//! What a worker died of.

use std::process::Command;

use master_process::config::Scope;

use crate::harness::{Bench, bench};

/// Has a shell send the worker signals, and waits for its end.
pub(crate) fn sent(bench: &mut Bench, signals: &[&str]) -> (u32, master_process::metrics::ExitDetails) {
    let mut worker = bench.start("sleep 60000");
    worker.ready();
    let kills: Vec<String> =
        signals.iter().map(|signal| format!("kill -{signal} {}", worker.child.id())).collect();
    let mut shell = Command::new("sh").args(["-c", &kills.join("; ")]).spawn().expect("a shell");
    let pid = shell.id();
    let _status = shell.wait();
    (pid, bench.bury(worker))
}

#[test]
fn who_killed_it_is_known() {
    let mut bench = bench!("who_killed_it_is_known", Scope::Worker);
    let (shell, details) = sent(&mut bench, &["KILL"]);
    let killer = details.killer.expect("a killer");
    assert_eq!((killer.signal, killer.pid), (9, Some(shell.cast_signed())));
    assert_eq!((killer.name.as_str(), killer.uid), ("sh", rustix::process::getuid().as_raw()));
    assert_eq!(details.oom, Some(false));
}

#[test]
fn the_last_signal_that_kills_is_the_one() {
    let mut bench = bench!("the_last_signal_that_kills_is_the_one", Scope::Worker);
    let (_shell, details) = sent(&mut bench, &["CONT", "WINCH", "TERM", "CHLD"]);
    assert_eq!(details.killer.map(|killer| killer.signal), Some(15));
}

#[test]
fn a_fault_has_no_killer() {
    let mut bench = bench!("a_fault_has_no_killer", Scope::Worker);
    let worker = bench.start("crash");
    let details = bench.bury(worker);
    assert_eq!((details.killer, details.oom), (None, Some(false)));
}

#[test]
fn who_kills_itself_has_no_killer() {
    let mut bench = bench!("who_kills_itself_has_no_killer", Scope::Worker);
    let worker = bench.start("abort");
    assert_eq!(bench.bury(worker).killer, None);
}

#[test]
fn an_exit_has_no_killer() {
    let mut bench = bench!("an_exit_has_no_killer", Scope::Worker);
    let worker = bench.start("sleep 0");
    assert_eq!(bench.bury(worker).killer, None);
}

#[test]
fn a_descendant_that_is_killed_is_not_the_worker() {
    let mut bench = bench!("a_descendant_that_is_killed_is_not_the_worker", Scope::Tree);
    let mut worker = bench.start("parent sleep 60000");
    let child = *worker.ready().last().expect("a child");
    Command::new("sh").args(["-c", &format!("kill -9 {child}")]).status().expect("a shell");
    assert_eq!(bench.bury(worker).killer, None);
}

/// To be run alone, on a machine of its own: `--ignored`.
#[test]
#[ignore = "uses up all memory that there is"]
fn a_worker_that_the_kernel_chose_is_told_apart() {
    let mut bench = bench!("a_worker_that_the_kernel_chose_is_told_apart", Scope::Worker);
    let worker = bench.start("gorge");
    let details = bench.bury(worker);
    assert_eq!((details.killer, details.oom), (None, Some(true)));
}
