//! Where, and as whom, this works.

use std::process::{Command, Output};

use master_process::config::Scope;

use crate::harness::bench;

/// What is tried in each place: it needs fork, switch and memory to be seen.
const CHECK: [&str; 3] = ["--exact", "--nocapture", "family::a_tree_has_the_memory_of_all_its_processes"];
/// And here the sender's number must be the one that is valid in this place.
const CHECK_OF_DEATH: [&str; 3] = ["--exact", "--nocapture", "death::who_killed_it_is_known"];

/// Runs one of the tests here by way of another program; says what came of it.
fn run(through: &[&str], check: [&str; 3], must_run: bool) -> Output {
    let mut command = Command::new(through[0]);
    command.args(&through[1..]).arg(std::env::current_exe().expect("our own path")).args(check);
    if must_run {
        command.env("MASTER_PROCESS_NO_SKIP", "1");
    } else {
        command.env_remove("MASTER_PROCESS_NO_SKIP");
    }
    command.output().expect("a program of util-linux")
}

/// Asserts that a test passes in a place, and is not skipped there.
fn passes(through: &[&str], check: [&str; 3]) {
    let output = run(through, check, true);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn it_works_in_a_pid_namespace() {
    drop(bench!("it_works_in_a_pid_namespace", Scope::Worker));
    let unshare = ["unshare", "--pid", "--fork", "--mount-proc"];
    let output = run(&unshare, CHECK, false);
    if String::from_utf8_lossy(&output.stdout).contains("the kernel has no function bpf_task_from_vpid") {
        return println!("before Linux 6.13, procfs measures in a PID namespace");
    }
    passes(&unshare, CHECK);
    passes(&unshare, CHECK_OF_DEATH);
}

#[test]
fn it_works_in_a_time_namespace() {
    drop(bench!("it_works_in_a_time_namespace", Scope::Worker));
    let check = ["--exact", "--nocapture", "charge::cpu_time_of_a_busy_loop_is_the_schedulers"];
    passes(&["unshare", "--time", "--fork", "--monotonic", "1000000"], check);
}

#[test]
fn two_capabilities_are_enough() {
    drop(bench!("two_capabilities_are_enough", Scope::Worker));
    let two = ["setpriv", "--bounding-set", "-all,+bpf,+perfmon"];
    passes(&two, CHECK);
}

#[test]
fn without_them_the_refusal_says_what_was_denied() {
    drop(bench!("without_them_the_refusal_says_what_was_denied", Scope::Worker));
    let output = run(&["setpriv", "--bounding-set", "-all"], CHECK, false);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("SKIPPED: ") && text.contains("bpf(BPF_MAP_CREATE)"), "{text}");
    assert!(text.contains("Operation not permitted"), "{text}");
}
