//! `top` in a terminal: what it shows, what its keys do, and that the terminal is as before afterwards.

use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};

use master_process_tests::control::{Controlled, command};
use master_process_tests::pty::{INTERRUPT, ITS_TERMINAL, Pty, Recording, SUSPEND, Shown};
use master_process_tests::supervisor::binary;
use master_process_tests::upgraded::Upgraded;
use master_process_tests::{Supervisor, TIMEOUT, eventually, fixtures, process};
use rustix::process::Signal;

/// `top` in a terminal of its own.
struct Top {
    pty: Pty,
    before: String,
    recording: Recording,
    child: Child,
}

impl Top {
    fn start(control: &Controlled) -> Top {
        Top::wrapped(control, &[], &[])
    }

    /// With a wrapper, and variables.
    fn wrapped(control: &Controlled, wrapper: &[&str], variables: &[(&str, &str)]) -> Top {
        let pty = Pty::open();
        pty.resize(80, 24);
        let (before, recording) = (pty.modes(), pty.record());
        let mut command = Command::new(ITS_TERMINAL[0]);
        command.args(&ITS_TERMINAL[1..]).args(wrapper).arg(binary()).arg("top");
        command.arg("--control").arg(&control.path).env_remove("NO_COLOR").env("TERM", "xterm");
        command.envs(variables.iter().copied());
        let end = || Stdio::from(pty.slave());
        let child = command.stdin(end()).stdout(end()).stderr(end()).spawn().expect("setsid");
        Top { pty, before, recording, child }
    }

    fn pid(&self) -> i32 {
        self.child.id().try_into().expect("a pid")
    }

    fn await_shown(&self, what: &str, mut wanted: impl FnMut(&Shown) -> bool) {
        let mut last = Shown::default();
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually(TIMEOUT, what, || {
                last = self.recording.shown();
                wanted(&last)
            });
        }));
        assert!(found.is_ok(), "{what}:\n{}", last.lines.join("\n"));
    }

    fn await_words(&self, words: &str) {
        self.await_shown(words, |shown| shown.has(words));
    }

    fn wait(&mut self) -> ExitStatus {
        eventually(TIMEOUT, "top ends", || self.child.try_wait().expect("our child").is_some());
        self.child.wait().expect("it has ended")
    }

    /// Whether the terminal is as before `top`.
    fn assert_restored(&self) {
        self.await_shown("the screen is as before", |shown| !shown.alternate && !shown.hides_cursor);
        assert_eq!(self.pty.modes(), self.before);
    }
}

impl Drop for Top {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

fn start(control: &Controlled, workers: &str) -> Supervisor {
    let builder = Supervisor::builder().args(["-w", workers, "--ready", "none", "--throttle", "100ms"]);
    let supervisor = control.on(builder).command(fixtures::idle()).spawn();
    control.await_ready(workers.parse().expect("a number"));
    supervisor
}

#[test]
fn shows_a_row_for_each_worker_and_quits_with_q() {
    let control = Controlled::default();
    let supervisor = start(&control, "2");
    let mut top = Top::start(&control);
    top.await_words("example  ready: 2 of 2");
    for pid in supervisor.workers() {
        top.await_words(&format!(" {pid} "));
    }
    top.await_words("worker.ready slot 1");
    assert!(top.recording.shown().alternate && top.recording.shown().hides_cursor);
    assert_ne!(top.pty.modes(), top.before, "raw");
    assert!(top.recording.text().contains("\x1b[38;5;2;"), "the state is green");
    top.pty.press("q");
    assert_eq!(top.wait().code(), Some(0));
    top.assert_restored();
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn goes_on_over_an_upgrade_of_the_supervisor() {
    let upgraded = Upgraded::new();
    let control = &upgraded.controlled;
    let supervisor =
        upgraded.builder().args(["-w", "2", "--ready", "none"]).command(fixtures::idle()).spawn();
    control.await_ready(2);
    let mut top = Top::start(control);
    top.await_words("example  ready: 2 of 2");
    let workers = supervisor.workers();
    upgraded.replace_by_copy();
    upgraded.upgrade();
    top.await_words("upgrade");
    // What it shows is new: a worker more.
    assert_eq!(control.run(&["scale", "3", "--wait"]).code, Some(0));
    top.await_words("example  ready: 3 of 3");
    for pid in workers {
        top.await_words(&format!(" {pid} "));
    }
    top.pty.press("q");
    assert_eq!(top.wait().code(), Some(0));
    top.assert_restored();
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn no_color_is_kept() {
    let control = Controlled::default();
    let supervisor = start(&control, "1");
    let mut top = Top::wrapped(&control, &["env", "NO_COLOR=1"], &[]);
    top.await_words("ready: 1 of 1");
    top.pty.press(INTERRUPT);
    assert_eq!(top.wait().code(), Some(0));
    top.assert_restored();
    let text = top.recording.text();
    assert!(!text.contains("\x1b[38;"), "{text:?}");
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn follows_the_size_of_the_terminal() {
    let control = Controlled::default();
    let supervisor = start(&control, "2");
    let top = Top::start(&control);
    top.await_words("MEMORY");
    top.pty.resize(60, 12);
    top.await_shown("short heads", |shown| shown.has(" MEM ") && !shown.has("MEMORY"));
    assert!(top.recording.shown().lines.iter().all(|line| line.chars().count() <= 60));
    assert!(top.recording.shown().lines.len() <= 12);
    top.pty.resize(120, 40);
    top.await_shown("everything", |shown| shown.has("RESTARTS") && shown.lines.len() == 40);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn keys_scale_restart_reload_and_pause_after_a_question() {
    let control = Controlled::default();
    let supervisor = start(&control, "1");
    let top = Top::start(&control);
    top.await_words("ready: 1 of 1");
    top.pty.press("+");
    top.await_words("scale from 1 to 2? y: yes");
    top.pty.press("n");
    top.await_shown("no question", |shown| !shown.has("scale from"));
    assert_eq!(control.status()["slots_wanted"], 1, "it was no yes");
    top.pty.press("+y");
    top.await_words("ready: 2 of 2");
    let old = control.status()["workers"][0]["pid"].clone();
    top.pty.press("r");
    top.await_words(&format!("restart slot 0 (pid {old})? y: yes"));
    top.pty.press("y");
    supervisor.eventually("it is replaced", || control.status()["workers"][0]["pid"] != old);
    top.pty.press("R");
    top.await_words("reload all workers? y: yes");
    top.pty.press("y");
    top.await_words("reload 1 ");
    top.pty.press("p");
    top.await_words("limits paused");
    supervisor.eventually("the limits are paused", || control.status()["limits_paused"] == true);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn a_signal_leaves_the_terminal_as_it_was() {
    let control = Controlled::default();
    let supervisor = start(&control, "1");
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT] {
        let mut top = Top::start(&control);
        top.await_words("ready: 1 of 1");
        process::signal(top.pid(), signal);
        assert_eq!(top.wait().signal(), Some(signal.as_raw()), "the shell sees the signal");
        top.assert_restored();
    }
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn ends_with_its_terminal() {
    let control = Controlled::default();
    let supervisor = start(&control, "1");
    let pty = Pty::open();
    let mut command = Command::new(ITS_TERMINAL[0]);
    command.args(&ITS_TERMINAL[1..]).arg(binary()).arg("top").arg("--control").arg(&control.path);
    let end = || Stdio::from(pty.slave());
    let mut child = command.stdin(end()).stdout(end()).stderr(end()).spawn().expect("setsid");
    let mut text = String::new();
    while !text.contains("SLOT") {
        text.push_str(&pty.read());
    }
    drop(pty);
    eventually(TIMEOUT, "top ends", || child.try_wait().expect("our child").is_some());
    assert_eq!(child.wait().expect("it has ended").signal(), Some(Signal::HUP.as_raw()));
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn a_shell_gets_its_terminal_back_for_the_time_of_a_stop() {
    let control = Controlled::default();
    let supervisor = start(&control, "1");
    let line = "\"$@\"; echo stopped; read -r go; fg >/dev/null; echo back $?";
    let mut top = Top::wrapped(&control, &["bash", "--norc", "-i", "-c", line, "bash"], &[]);
    top.await_words("ready: 1 of 1");
    let raw = top.pty.modes();
    top.pty.press(SUSPEND);
    top.await_words("stopped");
    top.assert_restored();
    top.pty.press("go\n");
    top.await_shown("it is back", |shown| shown.alternate && shown.has("ready: 1 of 1"));
    assert_eq!(top.pty.modes(), raw);
    top.pty.press("q");
    top.await_words("back 0");
    assert_eq!(top.wait().code(), Some(0));
    top.assert_restored();
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn a_killed_supervisor_is_said_and_its_successor_is_found() {
    let control = Controlled::default();
    let supervisor = start(&control, "1");
    let mut top = Top::start(&control);
    top.await_words("ready: 1 of 1");
    supervisor.signal(Signal::KILL);
    top.await_words("example  not running: ");
    let supervisor = start(&control, "2");
    top.await_words("ready: 2 of 2");
    supervisor.signal(Signal::KILL);
    top.await_words("example  not running: ");
    top.pty.press("q");
    assert_eq!(top.wait().code(), Some(3));
    top.assert_restored();
}

#[test]
fn a_supervisor_that_does_not_answer_is_said() {
    let control = Controlled::default();
    let supervisor = start(&control, "1");
    let mut top = Top::start(&control);
    top.await_words("ready: 1 of 1");
    supervisor.signal(Signal::STOP);
    top.await_words("example  no answer");
    supervisor.signal(Signal::CONT);
    top.await_words("ready: 1 of 1");
    supervisor.signal(Signal::STOP);
    top.await_words("example  no answer");
    top.pty.press("q");
    assert_eq!(top.wait().code(), Some(4));
    top.assert_restored();
    supervisor.signal(Signal::CONT);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn without_a_terminal_it_is_wrong_usage_and_json_needs_none() {
    let control = Controlled::default();
    let supervisor = start(&control, "1");
    let ran = control.run(&["top"]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.err.contains("needs a terminal") && ran.out.is_empty(), "{ran:?}");
    let mut reader = command(&["top", "--json"]);
    let mut child = reader.arg("--control").arg(&control.path).spawn().expect("the binary is there");
    let output = child.stdout.take().expect("it is a pipe");
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(output));
    for _ in 0..2 {
        let line = lines.next().expect("a line").expect("UTF-8");
        let state: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(state["workers_ready"], 1, "{line}");
    }
    drop(lines);
    eventually(TIMEOUT, "it ends with its reader", || child.try_wait().expect("our child").is_some());
    assert_eq!(child.wait().expect("it has ended").code(), Some(0));
    assert_eq!(supervisor.stop(), 0);
}
