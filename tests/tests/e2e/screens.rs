//! The commands in a terminal: no line is wider than it, nothing is left out, and each problem is followed by what to do.

use std::process::{Child, Command, Stdio};

use master_process_tests::control::{Controlled, Running, command};
use master_process_tests::pty::{Pty, Recording};
use master_process_tests::supervisor::{Builder, binary};
use master_process_tests::{Supervisor, TIMEOUT, eventually, fixtures, needs_root};
use rustix::process::{Pid, Signal};

/// The widths that are tried: the design's, and one that shortens everything.
const WIDTHS: [u16; 2] = [80, 60];

/// A command in a terminal.
struct Shown {
    recording: Recording,
    child: Child,
    _pty: Pty,
}

impl Shown {
    fn begin(columns: u16, words: &[&str], variables: &[(&str, &str)]) -> Shown {
        let pty = Pty::open();
        pty.resize(columns, 24);
        let recording = pty.record();
        let mut command = Command::new(binary());
        command.args(words).env("TERM", "xterm");
        for name in ["MASTER_PROCESS_NAME", "MASTER_PROCESS_CONTROL", "COLUMNS", "NO_COLOR"] {
            command.env_remove(name);
        }
        command.envs(variables.iter().copied());
        let end = || Stdio::from(pty.slave());
        let child = command.stdin(end()).stdout(end()).stderr(end()).spawn().expect("the binary");
        Shown { recording, child, _pty: pty }
    }

    /// Waits for its end. Returns its exit code and the lines that the terminal shows then.
    fn end(mut self) -> (Option<i32>, Vec<String>) {
        eventually(TIMEOUT, "the command ends", || self.child.try_wait().expect("our child").is_some());
        let code = self.child.wait().expect("it has ended").code();
        (code, self.recording.shown_at_last().lines)
    }
}

/// What a command shows in a terminal, with its exit code.
fn shown(columns: u16, words: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, Vec<String>) {
    Shown::begin(columns, words, variables).end()
}

fn of(control: &Controlled, columns: u16, words: &[&str]) -> (Option<i32>, Vec<String>) {
    let path = control.path.to_str().expect("UTF-8");
    shown(columns, &[words, &["--control", path]].concat(), &[])
}

fn assert_fits(lines: &[String], columns: u16) {
    for line in lines {
        assert!(line.chars().count() <= columns.into(), "{columns}: {line:?}\n{}", lines.join("\n"));
    }
}

/// The words of all lines, as if they were one line.
fn words_of(lines: &[String]) -> String {
    lines.iter().flat_map(|line| line.split_whitespace()).collect::<Vec<_>>().join(" ")
}

/// A program that exits, or is ready; its command line is a long one.
const PROGRAM: &str = "
import os, socket, sys, time
if open(sys.argv[1]).read() == 'exits': sys.exit(3)
to = os.environ['NOTIFY_SOCKET']
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
    sender.sendto(b'READY=1', '\\0' + to[1:] if to[0] == '@' else to)
while True: time.sleep(60)
";

fn program(control: &Controlled, release: &str, options: &[&str]) -> Supervisor {
    let file = control.folder().join("release");
    std::fs::write(&file, release).expect("written");
    let mut command =
        vec![fixtures::python(), "-c".to_owned(), PROGRAM.to_owned(), file.display().to_string()];
    command.extend((0..20).map(|number| format!("--option-{number}")));
    let throttle: &[&str] = if options.contains(&"--throttle") { &[] } else { &["--throttle", "100ms"] };
    let args = [&["--ready", "notify", "--drain", "0"], throttle].concat();
    control.on(Supervisor::builder().args(args).args(options).command(command)).spawn()
}

#[test]
fn every_command_fits_into_its_terminal() {
    let control = Controlled::default();
    let supervisor = program(&control, "serves", &["-w", "3", "--reload-batch", "1"]);
    control.await_ready(3);
    assert_eq!(control.run(&["pause"]).code, Some(0));
    for columns in WIDTHS {
        std::fs::write(control.folder().join("release"), "serves").expect("written");
        for words in [&["scale", "4", "--wait"][..], &["restart", "1", "--wait"], &["scale", "3", "--wait"]] {
            let (code, lines) = of(&control, columns, words);
            assert_eq!(code, Some(0), "{words:?}: {lines:?}");
            assert_fits(&lines, columns);
        }
        let (code, lines) = of(&control, columns, &["reload", "--wait"]);
        assert_eq!(code, Some(0), "{lines:?}");
        assert_fits(&lines, columns);
        // What was drawn in place is gone: each slot has one line, or more where it is wrapped.
        let text = lines.join("\n");
        for slot in 0..3 {
            assert_eq!(text.matches(&format!("  slot {slot}  ")).count(), 1, "{text}");
        }
        assert!(lines.last().is_some_and(|line| line.starts_with("complete after ")), "{text}");

        std::fs::write(control.folder().join("release"), "exits").expect("written");
        let (code, lines) = of(&control, columns, &["reload", "--wait"]);
        assert_eq!(code, Some(151), "{lines:?}");
        assert_fits(&lines, columns);
        let words = words_of(&lines);
        assert!(words.contains("slot 0 failed, 3 of 3: exit 3 after"), "{words}");
        assert!(words.ends_with("see: master-process why 0 --name example"), "{words}");
        assert_eq!(lines.iter().filter(|line| line.starts_with("  slot 0  ")).count(), 1, "{lines:?}");

        let (code, lines) = of(&control, columns, &["status"]);
        assert_eq!(code, Some(0), "every slot has a ready worker: {lines:?}");
        assert_fits(&lines, columns);
        let words = words_of(&lines);
        assert!(words.contains("limits paused"), "{words}");
        assert!(words.contains("given up: slot 0 failed 3 times: exit 3 after"), "{words}");
        assert!(words.ends_with("see: master-process why 0 --name example"), "{words}");
        let head = lines.iter().find(|line| line.trim_start().starts_with("SLOT")).expect("a table");
        for column in ["PID", "GEN", "STATE", "UP", "CPU", "MEM", "Q", "DR", "LAST"] {
            assert!(head.contains(column), "{column}: {head}");
        }

        for words in [&["why", "0"][..], &["events"], &["pause"], &["restart", "0", "--wait"]] {
            let (_, lines) = of(&control, columns, words);
            assert!(!lines.is_empty(), "{words:?}");
            assert_fits(&lines, columns);
        }
        for word in ["status", "reload", "scale", "events", "metrics", "top", "why"] {
            let (code, lines) = shown(columns, &[word, "--help"], &[]);
            assert_eq!(code, Some(0), "{word}");
            assert_fits(&lines, columns);
        }
    }
    let following =
        Shown::begin(60, &["events", "-f", "--control", control.path.to_str().expect("UTF-8")], &[]);
    let (code, lines) = of(&control, 60, &["stop", "--wait"]);
    assert_eq!(code, Some(0), "{lines:?}");
    assert_fits(&lines, 60);
    let (code, lines) = following.end();
    assert_eq!(code, Some(0), "{lines:?}");
    assert_fits(&lines, 60);
    assert!(words_of(&lines).contains("supervisor.stopping (requested by"), "{lines:?}");
    drop(supervisor);
}

fn idle(folder: &tempfile::TempDir, name: &str) -> Builder {
    let builder = Supervisor::builder().args(["--ready", "none", "--name", name]).command(fixtures::idle());
    builder.env("RUNTIME_DIRECTORY", folder.path())
}

#[test]
fn a_slot_that_waits_says_why_and_what_to_do() {
    let control = Controlled::default();
    let supervisor = program(&control, "exits", &["-w", "2", "--throttle", "10s"]);
    supervisor.eventually("both wait", || {
        let status = control.status();
        (0..2).all(|slot| status["workers"][slot]["state"] == "waiting")
    });
    for columns in WIDTHS {
        let (code, lines) = of(&control, columns, &["status"]);
        assert_eq!(code, Some(150), "{lines:?}");
        assert_fits(&lines, columns);
        let words = words_of(&lines);
        assert!(words.contains("degraded: 0 of 2 ready"), "{words}");
        for slot in 0..2 {
            assert!(words.contains(&format!("slot {slot} exit 3 after")), "{words}");
            assert!(words.contains(&format!("see: master-process why {slot} --name example")), "{words}");
        }
    }
    // What was printed is what to type.
    let ran = control.run(&["why", "1"]);
    assert!(ran.out.contains("exit 3 after") && ran.code == Some(0), "{ran:?}");
}

#[test]
fn colours_are_for_terminals_and_not_with_no_color() {
    let control = Controlled::default();
    let builder = Supervisor::builder().args(["--ready", "none"]).command(fixtures::idle());
    let _supervisor = control.on(builder).spawn();
    control.await_ready(1);
    let path = control.path.to_str().expect("UTF-8");
    let raw = |variables: &[(&str, &str)]| {
        let shown = Shown::begin(80, &["status", "--control", path], variables);
        eventually(TIMEOUT, "the row of the worker", || shown.recording.text().contains("\r\n   0 "));
        let text = shown.recording.text();
        assert_eq!(shown.end().0, Some(0));
        text
    };
    assert!(raw(&[]).contains("\x1b[32mready\x1b[0m"));
    assert!(!raw(&[("NO_COLOR", "1")]).contains('\x1b'));
    assert!(!raw(&[("TERM", "dumb")]).contains('\x1b'));
    assert!(!control.run(&["status"]).out.contains('\x1b'), "it is a pipe");
}

#[test]
fn what_is_piped_is_not_shortened() {
    let control = Controlled::default();
    let _supervisor = program(&control, "serves", &[]);
    control.await_ready(1);
    assert!(of(&control, 80, &["status"]).1[1].ends_with('…'));
    for words in [&["status"][..], &["status", "--wide"]] {
        let ran = control.run(words);
        assert!(ran.out.contains("--option-19") && !ran.out.contains('…'), "{words:?}: {ran:?}");
    }
    assert!(words_of(&of(&control, 80, &["status", "--wide"]).1).contains("--option-19"));
}

#[test]
fn a_list_of_three_has_the_worst_first_and_says_what_to_do() {
    needs_root!();
    let folder = tempfile::tempdir().expect("a folder");
    let searchable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(folder.path(), searchable).expect("ours");
    let well = idle(&folder, "mp-test-well").spawn();
    let exits = ["/bin/sh", "-c", "exit 3"];
    let ill = Supervisor::builder().args(["--throttle", "10s", "--name", "mp-test-ill"]).command(exits);
    let ill = ill.env("RUNTIME_DIRECTORY", folder.path()).spawn();
    let as_user = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let owned = tempfile::tempdir().expect("a folder");
    std::os::unix::fs::chown(owned.path(), Some(65534), Some(65534)).expect("root");
    let of_user = idle(&owned, "mp-test-of-user").wrap(as_user).spawn();
    // Other instances of this host may run beside the tests: a mount namespace and a network of its own have none of them.
    let list = |wrapper: &[&str], path: &std::path::Path| {
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "sh", "-c", "mount -t tmpfs none /run && \"$@\"", "sh"]);
        command.args(wrapper).arg(binary()).arg("ls").env("RUNTIME_DIRECTORY", path);
        command.env_remove("XDG_RUNTIME_DIR").env_remove("COLUMNS");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Running::of(command).wait()
    };
    for (supervisor, what) in [(&well, "ready"), (&ill, "exit 3")] {
        supervisor.eventually(what, || list(&[], folder.path()).out.lines().any(|line| line.ends_with(what)));
    }
    let ran = list(&[], folder.path());
    assert_eq!(ran.code, Some(150), "{ran:?}");
    let lines: Vec<&str> = ran.out.lines().collect();
    assert!(lines[1].starts_with("mp-test-ill ") && lines[2].starts_with("mp-test-well "), "{ran:?}");
    assert_eq!(lines[3..], ["", "see: master-process status --name mp-test-ill"], "{ran:?}");
    // Another user sees their own, and that there are others.
    of_user.eventually("it listens", || owned.path().join("mp-test-of-user.sock").exists());
    let ran = list(&as_user, owned.path());
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let ran = list(&as_user, folder.path());
    assert_eq!(ran.code, Some(4), "{ran:?}");
    assert!(ran.err.contains("no permission for any of the 2 instances"), "{ran:?}");
    // A socket of each in one folder.
    let link = owned.path().join("mp-test-well.sock");
    std::fs::hard_link(folder.path().join("mp-test-well.sock"), &link).expect("one file system");
    std::fs::write(owned.path().join("mp-test-well.sock.lock"), "").expect("written");
    let ran = list(&as_user, owned.path());
    assert_eq!(ran.code, Some(0), "those of others do not count: {ran:?}");
    assert!(ran.out.ends_with("\n\nnot shown, no permission: mp-test-well\n"), "{ran:?}");
    assert!(ran.out.contains("mp-test-of-user ") && !ran.out.contains("\nmp-test-well "), "{ran:?}");
    std::fs::remove_file(link).expect("ours");
}

#[test]
fn a_command_line_in_the_wrong_order_says_the_right_one() {
    let ran = Running::of(command(&["--name", "api", "status"])).wait();
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.err.contains("master-process status"), "{ran:?}");
}

#[test]
fn log_in_a_terminal_is_coloured_unless_the_environment_forbids_it() {
    let raw = |variables: &[(&str, &str)]| {
        let words = ["--ready", "none", "--workers", "1", "--", "sleep", "600"];
        let mut shown = Shown::begin(80, &words, variables);
        eventually(TIMEOUT, "the worker", || shown.recording.text().contains("running 1 worker"));
        rustix::process::kill_process(Pid::from_child(&shown.child), Signal::TERM).expect("our child");
        eventually(TIMEOUT, "the end", || shown.child.try_wait().expect("our child").is_some());
        shown.recording.text()
    };
    assert!(raw(&[]).contains("\x1b[32m"));
    for (name, value) in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let text = raw(&[(name, value)]);
        assert!(!text.contains("\x1b["), "{name}: {text}");
    }
}
