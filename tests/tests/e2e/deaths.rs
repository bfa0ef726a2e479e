//! The log lines of exits.

use std::process::{Command, Stdio};

use master_process_tests::{Supervisor, fixtures, process};
use rustix::process::Signal;
use serde_json::Value;

/// The JSON line of an exit.
fn exit_line(supervisor: &Supervisor, words: &str) -> Value {
    supervisor.until(&format!("a line says {words:?}"), || {
        let lines = supervisor.log();
        let line = lines.iter().find(|line| line.contains(words))?;
        Some(serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")))
    })
}

fn started(options: &[&str], command: &[String]) -> Supervisor {
    let always = ["--log-format", "json", "--throttle", "0"];
    Supervisor::builder().args(always).args(options).command(command).spawn()
}

fn message(line: &Value) -> &str {
    line["message"].as_str().or_else(|| line["fields"]["message"].as_str()).unwrap_or_default()
}

fn field<'a>(line: &'a Value, name: &str) -> &'a Value {
    if line[name].is_null() { &line["fields"][name] } else { &line[name] }
}

#[test]
fn exit_line_has_code_usage_and_next_step() {
    for code in [0, 3] {
        // A third of a second of CPU, and 40 MB: more than the supervisor itself ever has.
        let text = format!(
            "import time\nx = b'x' * (40 << 20)\nwhile time.process_time() < 0.3: pass\nraise SystemExit({code})"
        );
        let supervisor = started(&["--ready", "none"], &[fixtures::python(), "-c".to_owned(), text]);
        let line = exit_line(&supervisor, &format!("exited with code {code}"));
        assert_eq!(field(&line, "code"), code);
        assert_eq!(field(&line, "signal"), &Value::Null);
        let cpu = field(&line, "cpu_ms").as_u64().expect("the CPU time");
        assert!((290..20_000).contains(&cpu), "{line}");
        let peak = field(&line, "peak_memory").as_u64().expect("the memory");
        assert!(((40 << 20)..(120 << 20)).contains(&peak), "{line}");
        assert!(field(&line, "uptime_ms").as_u64().is_some_and(|uptime| uptime >= 290), "{line}");
        assert!(message(&line).contains("(cpu ") && message(&line).contains("s, peak memory "), "{line}");
        assert!(message(&line).ends_with("restarting now"), "{line}");
    }
}

#[test]
fn crash_line_has_signal_and_core_dump() {
    let supervisor = started(&["--ready", "none"], &fixtures::shell("ulimit -c 0; kill -SEGV $$; sleep 1"));
    let line = exit_line(&supervisor, "killed by SIGSEGV");
    assert_eq!(field(&line, "signal"), libc_segv());
    assert_eq!(field(&line, "core_dumped"), false);
    assert_eq!(field(&line, "code"), &Value::Null);
}

fn libc_segv() -> i32 {
    Signal::SEGV.as_raw()
}

#[test]
fn stop_line_names_no_sender() {
    let supervisor = started(&["--ready", "none"], &fixtures::idle());
    let worker = *supervisor.await_workers(1).first().expect("one");
    assert_eq!(supervisor.stop(), 0);
    let line = exit_line(&supervisor, "stopped after");
    assert!(message(&line).contains(": SIGTERM (cpu"), "{line}");
    assert_eq!(field(&line, "pid"), worker);
    assert_eq!(field(&line, "killer_pid"), &Value::Null);
}

#[test]
fn kill_timeout_is_logged_before_the_exit() {
    let supervisor = started(&["--kill-timeout", "200ms"], &fixtures::worker(&["term=ignore", "notify"]));
    supervisor.await_events(1, "ready");
    assert_eq!(supervisor.stop(), 0);
    exit_line(&supervisor, "did not stop within");
    let line = exit_line(&supervisor, "stopped after");
    assert!(message(&line).contains(": SIGKILL (cpu"), "{line}");
    let log = supervisor.log();
    let at = |words: &str| log.iter().position(|line| line.contains(words));
    assert!(at("did not stop within") < at("stopped after"), "{log:#?}");
}

#[test]
fn sender_of_a_fatal_signal_is_logged_with_ebpf() {
    if !process::is_root() {
        master_process_tests::skip!("not root");
    }
    let supervisor = started(&["--monitor", "ebpf", "--ready", "none"], &fixtures::idle());
    let worker = *supervisor.await_workers(1).first().expect("one");
    // The shell's own kill, and the shell prints its pid.
    let shell = Command::new("sh")
        .args(["-c", &format!("echo $$; kill -9 {worker}")])
        .stdout(Stdio::piped())
        .spawn()
        .and_then(std::process::Child::wait_with_output)
        .expect("a shell");
    let killer: i32 = String::from_utf8_lossy(&shell.stdout).trim().parse().expect("its pid");
    let line = exit_line(&supervisor, "killed by SIGKILL");
    assert_eq!(field(&line, "killer_pid"), killer, "{line}");
    assert_eq!(field(&line, "killer"), "sh", "{line}");
    assert_eq!(field(&line, "killer_uid"), 0, "{line}");
    assert!(message(&line).contains(&format!("SIGKILL from sh (pid {killer}, uid 0) after")), "{line}");
    assert_eq!(supervisor.stop(), 0);
}

/// Becomes the only process of a memory cgroup of 64 MiB, and then the command.
const CONFINED: &str = "
cgroup=/sys/fs/cgroup/test-$$
mkdir $cgroup && echo +memory > /sys/fs/cgroup/cgroup.subtree_control && rmdir $cgroup && mkdir $cgroup
echo 64M > $cgroup/memory.max && echo $$ > $cgroup/cgroup.procs && exec \"$@\"";

#[test]
#[ignore = "takes root and a cgroup v2 with a memory controller, as a virtual machine has"]
fn oom_kill_is_logged() {
    let text = "import time\nx = []\nwhile True:\n    x.append(b'x' * (1 << 20)); time.sleep(0.002)";
    let supervisor = Supervisor::builder()
        .wrap(["sh", "-c", CONFINED, "sh"])
        .args(["--log-format", "json", "--monitor", "ebpf", "--ready", "none"])
        .command([fixtures::python(), "-c".to_owned(), text.to_owned()])
        .spawn();
    let line = exit_line(&supervisor, "killed by the OOM killer after");
    assert_eq!(field(&line, "oom_killed"), true, "{line}");
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn senders_name_cannot_add_log_lines() {
    if !process::is_root() {
        master_process_tests::skip!("not root");
    }
    let text = "
import ctypes, os, time
if os.fork() == 0:
    ctypes.CDLL(None).prctl(15, b'x\\n<3>\\x1b[2Jforged', 0, 0, 0)
    os.kill(os.getppid(), 9)
time.sleep(1000)
";
    for format in ["pretty", "journald"] {
        let supervisor = Supervisor::builder()
            .args(["--monitor", "ebpf", "--ready", "none", "--log-format", format])
            .command([fixtures::python(), "-c".to_owned(), text.to_owned()])
            .spawn();
        let line = supervisor.until("the sender is logged", || {
            supervisor.log().into_iter().find(|line| line.contains("killed by SIGKILL from"))
        });
        assert!(line.contains("from x\\n<3>\\u{1b}[2Jforged (pid "), "{line}");
        assert_eq!(supervisor.stop(), 0);
    }
}

#[test]
fn worker_without_remains_is_replaced_without_a_walk() {
    for options in [["--share", "off"], ["--share", "auto"]] {
        let options = [&options[..], &["--ready", "none", "--monitor", "off"]].concat();
        let supervisor = started(&options, &fixtures::idle());
        let worker = *supervisor.await_workers(1).first().expect("one");
        process::signal(worker, Signal::KILL);
        supervisor.until("the worker is replaced", || {
            supervisor.workers().first().is_some_and(|now| *now != worker).then_some(())
        });
        // The thread that looks for what a worker has left ends a second after its last walk.
        let threads = process::threads(supervisor.pid());
        assert!(threads.iter().all(|thread| !thread.contains("trees")), "{threads:?}");
    }
}
