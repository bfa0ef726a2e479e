//! Where, and as whom, this works.

use std::process::Command;

use crate::harness::bench;

/// What is tried in each place: it needs fork, switch and memory to be seen.
const TRIAL: [&str; 3] = ["--exact", "--nocapture", "family::a_tree_has_the_memory_of_all_its_processes"];
/// And here the sender's number must be the one that is valid in this place.
const TRIAL_OF_DEATH: [&str; 3] = ["--exact", "--nocapture", "death::who_killed_it_is_known"];

/// Runs one of the tests here by way of another program. It must not be skipped there.
fn passes(through: &[&str], trial: [&str; 3]) {
    let exe = std::env::current_exe().expect("our own path");
    let output = Command::new(through[0])
        .args(&through[1..])
        .arg(exe)
        .args(trial)
        .env("MASTER_PROCESS_NO_SKIP", "1")
        .output()
        .expect("a program of util-linux");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn it_works_in_a_pid_namespace() {
    drop(bench!("it_works_in_a_pid_namespace", master_process::config::Scope::Worker));
    passes(&["unshare", "--pid", "--fork", "--mount-proc"], TRIAL);
    passes(&["unshare", "--pid", "--fork", "--mount-proc"], TRIAL_OF_DEATH);
}

#[test]
fn it_works_in_a_time_namespace() {
    drop(bench!("it_works_in_a_time_namespace", master_process::config::Scope::Worker));
    let trial = ["--exact", "--nocapture", "charge::cpu_time_of_a_busy_loop_is_the_schedulers"];
    passes(&["unshare", "--time", "--fork", "--monotonic", "1000000"], trial);
}

#[test]
fn two_capabilities_are_enough() {
    drop(bench!("two_capabilities_are_enough", master_process::config::Scope::Worker));
    passes(&["setpriv", "--bounding-set", "-all,+bpf,+perfmon"], TRIAL);
}

#[test]
fn without_them_the_refusal_says_what_was_denied() {
    drop(bench!("without_them_the_refusal_says_what_was_denied", master_process::config::Scope::Worker));
    let exe = std::env::current_exe().expect("our own path");
    let output = Command::new("setpriv").args(["--bounding-set", "-all"]).arg(exe).args(TRIAL).output();
    let output = output.expect("a program of util-linux");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("SKIPPED: ") && text.contains("bpf(BPF_MAP_CREATE)"), "{text}");
    assert!(text.contains("Operation not permitted"), "{text}");
}
