//! The exit codes of all commands: one table for each situation, and each command in each of them.

use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use master_process_tests::control::{Controlled, Ran, Running, command};
use master_process_tests::supervisor::binary;
use master_process_tests::{Supervisor, fixtures, needs_root};

/// Each command, as it is used for one instance.
const OF_ONE: [&[&str]; 11] = [
    &["status"],
    &["reload"],
    &["stop"],
    &["scale", "2"],
    &["restart", "0"],
    &["pause"],
    &["resume"],
    &["events"],
    &["why", "0"],
    &["top", "--json"],
    &["status", "--json"],
];

/// What a slot's program does: as its release says.
const PROGRAM: &str = "
import os, socket, sys, time
release = open(sys.argv[1]).read()
if release == 'exits': sys.exit(3)
if release == 'serves':
    to = os.environ['NOTIFY_SOCKET']
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(b'READY=1', '\\0' + to[1:] if to[0] == '@' else to)
while True: time.sleep(60)
";

struct Instance {
    control: Controlled,
    supervisor: Supervisor,
}

impl Instance {
    fn start(release: &str) -> Instance {
        let control = Controlled::default();
        let file = control.folder().join("release");
        std::fs::write(&file, release).expect("written");
        let file = file.display().to_string();
        let program = [fixtures::python(), "-c".to_owned(), PROGRAM.to_owned(), file];
        let args = ["--ready", "notify", "--throttle", "100ms", "--drain", "0"];
        let supervisor = control.on(Supervisor::builder().args(args).command(program)).spawn();
        if release == "serves" {
            control.await_ready(1);
        } else {
            drop(control.client());
        }
        Instance { control, supervisor }
    }

    fn release(&self, what: &str) {
        std::fs::write(self.control.folder().join("release"), what).expect("written");
    }

    fn asserts(&self, words: &[&str], code: i32) -> Ran {
        let ran = self.control.run(words);
        assert_eq!(ran.code, Some(code), "{words:?}: {ran:?}");
        ran
    }

    /// Asserts the code of a command that waits, and that the last line of its JSON says the same.
    fn asserts_waiting(&self, words: &[&str], code: i32, outcome: &str) {
        self.asserts(&[words, &["--wait"]].concat(), code);
        let ran = self.asserts(&[words, &["--wait", "--json"]].concat(), code);
        let last = ran.out.lines().last().unwrap_or_default();
        let last: serde_json::Value = serde_json::from_str(last).unwrap_or_default();
        assert_eq!(last["result"]["outcome"], outcome, "{words:?}: {ran:?}");
    }
}

/// An error is one line on standard error, and nothing on standard output.
fn is_an_error(ran: &Ran, words: &[&str], code: i32) {
    assert_eq!(ran.code, Some(code), "{words:?}: {ran:?}");
    assert_eq!((ran.err.lines().count(), ran.out.as_str()), (1, ""), "{words:?}: {ran:?}");
    assert!(ran.err.starts_with("master-process: "), "{words:?}: {ran:?}");
}

#[test]
fn every_command_is_in_the_tables() {
    let page = std::fs::read_to_string(fixtures::repository().join("docs/commands.md")).expect("the page");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `master-process "));
    let words: Vec<&str> = rows.filter_map(|row| row.split([' ', '`']).next()).collect();
    let tested: Vec<&str> = OF_ONE.iter().map(|words| words[0]).chain(["ls", "metrics", "doctor"]).collect();
    // `upgrade` has tests of its own.
    let missing: Vec<&&str> =
        words.iter().filter(|word| !tested.contains(word) && **word != "upgrade").collect();
    assert!(missing.is_empty() && words.len() >= 13, "{missing:?} of {words:?}");
}

#[test]
fn nothing_runs_is_3() {
    let control = Controlled::default();
    for words in OF_ONE {
        is_an_error(&control.run(words), words, 3);
        let mut of_name = command(words);
        of_name.args(["--name", "mp-test-nobody-has-this"]);
        is_an_error(&Running::of(of_name).wait(), words, 3);
    }
}

#[test]
fn no_answer_is_4() {
    let control = Controlled::default();
    let _mute = UnixListener::bind(&control.path).expect("bound");
    // They wait at the same time: each waits for 5 s.
    let all = OF_ONE.iter().filter(|words| words[0] != "events");
    let running: Vec<_> = all.map(|words| (words, control.begin(words))).collect();
    for (words, running) in running {
        is_an_error(&running.wait(), words, 4);
    }
}

#[test]
fn no_permission_is_4() {
    needs_root!();
    let instance = Instance::start("serves");
    let searchable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(instance.control.folder(), searchable).expect("ours");
    for words in OF_ONE {
        let mut setpriv = Command::new("setpriv");
        setpriv.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]).arg(binary());
        setpriv.args(words).arg("--control").arg(&instance.control.path);
        setpriv.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        is_an_error(&Running::of(setpriv).wait(), words, 4);
    }
    instance.asserts(&["status"], 0);
}

#[test]
fn wrong_usage_is_2() {
    let instance = Instance::start("serves");
    for words in [
        &["status", "--bogus"][..],
        &["status", "-o", "colour"],
        &["status", "-o"],
        &["status", "extra"],
        &["ls", "--name", "x"],
        &["reload", "--timeout", "5s"],
        &["reload", "--wait", "--timeout", "soon"],
        &["stop", "now"],
        &["scale"],
        &["scale", "0"],
        &["scale", "-1"],
        &["scale", "many"],
        &["scale", "999999999"],
        &["restart"],
        &["restart", "7"],
        &["restart", "x"],
        &["pause", "--wait"],
        &["resume", "now"],
        &["events", "--since", "x"],
        &["why"],
        &["why", "7"],
        // There is no terminal.
        &["top"],
        &["metrics"],
        &["metrics", "--all"],
        &["metrics", "--all", "--listen", "nowhere"],
        &["doctor", "--bogus"],
        &["doctor", "-w", "0"],
    ] {
        // Not all of them take the path of a socket.
        let mut command = command(words);
        command.env("MASTER_PROCESS_CONTROL", &instance.control.path);
        is_an_error(&Running::of(command).wait(), words, 2);
    }
    assert_eq!(instance.control.status()["workers_ready"], 1, "nothing has happened");
    assert_eq!(instance.supervisor.stop(), 0);
}

#[test]
fn done_is_0() {
    let instance = Instance::start("serves");
    for words in OF_ONE.iter().filter(|words| !matches!(words[0], "stop" | "top")) {
        // What the commands before have begun is over.
        instance
            .supervisor
            .eventually("each slot has a ready worker", || instance.control.status()["state"] == "ready");
        instance.asserts(words, 0);
    }
    instance.asserts_waiting(&["scale", "3"], 0, "complete");
    instance.asserts_waiting(&["scale", "1"], 0, "complete");
    instance.asserts_waiting(&["restart", "0"], 0, "complete");
    instance.asserts_waiting(&["reload"], 0, "complete");
    for word in ["status", "scale", "metrics", "doctor", "ls"] {
        let ran = Running::of(command(&[word, "--help"])).wait();
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{word}");
    }
    let ran = instance.asserts(&["stop", "--wait", "--json"], 0);
    assert!(ran.out.contains(r#""outcome":"complete""#), "{ran:?}");
    instance.asserts(&["stop", "--wait"], 3);
}

#[test]
fn a_slot_without_a_ready_worker_is_150() {
    let instance = Instance::start("hangs");
    for words in [&["status"][..], &["status", "--json"], &["status", "-o", "slot"]] {
        instance.asserts(words, 150);
    }
    // Steering works all the same.
    for words in [&["pause"][..], &["resume"], &["why", "0"], &["events"], &["reload"]] {
        instance.asserts(words, 0);
    }
}

#[test]
fn given_up_is_151() {
    let instance = Instance::start("serves");
    instance.release("exits");
    instance.asserts_waiting(&["reload"], 151, "given_up");
    instance.asserts_waiting(&["restart", "0"], 151, "given_up");
    instance.asserts(&["scale", "2", "--wait"], 151);
    assert_eq!(instance.control.status()["workers"][0]["state"], "serving", "the old worker serves");
}

#[test]
fn superseded_is_153() {
    for (words, other) in [
        (&["reload", "--wait"][..], &["reload"][..]),
        (&["restart", "0", "--wait"], &["reload"]),
        (&["scale", "2", "--wait"], &["scale", "3"]),
    ] {
        let instance = Instance::start("serves");
        instance.release("hangs");
        let waiting = instance.control.begin(words);
        let has_begun = || {
            let workers = instance.control.status()["workers"].as_array().map_or(0, Vec::len);
            workers == 2
        };
        instance.supervisor.eventually("the first one has begun", has_begun);
        instance.asserts(other, 0);
        let ran = waiting.wait();
        assert_eq!(ran.code, Some(153), "{words:?}: {ran:?}");
    }
}

#[test]
fn a_time_out_is_154() {
    let instance = Instance::start("serves");
    instance.release("hangs");
    for words in [&["restart", "0"][..], &["reload"], &["scale", "2"]] {
        instance.asserts_waiting(&[words, &["--timeout", "200ms"]].concat(), 154, "timed_out");
    }
    assert_eq!(instance.control.status()["workers_ready"], 1);
}
