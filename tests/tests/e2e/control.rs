//! The control socket: where it is, who may use it, and clients that do not behave.

use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use master_process_tests::control::{Client, Controlled, Running, command};
use master_process_tests::supervisor::{Builder, await_gone, binary};
use master_process_tests::{
    Supervisor, TIMEOUT, always, eventually, fixtures, flood, needs_root, process, skip,
};
use rustix::process::Signal;
use serde_json::Value;

fn idle(options: &[&str]) -> Builder {
    let throttle: &[&str] = if options.contains(&"--throttle") { &[] } else { &["--throttle", "50ms"] };
    let builder = Supervisor::builder().args(["--ready", "none"]).args(throttle);
    builder.args(options).command(fixtures::idle())
}

fn started(options: &[&str]) -> (Controlled, Supervisor) {
    let control = Controlled::default();
    let supervisor = control.on(idle(options)).spawn();
    _ = control.client();
    (control, supervisor)
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("readable").filter_map(Result::ok);
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| name.contains(".sock"));
    names.sort();
    names
}

#[test]
fn the_socket_is_for_its_user_alone_and_goes_with_the_supervisor() {
    let (control, supervisor) = started(&[]);
    assert_eq!(std::fs::metadata(&control.path).expect("there").mode() & 0o777, 0o600);
    assert_eq!(names(control.folder()), ["example.sock", "example.sock.lock"]);
    assert_eq!(supervisor.stop(), 0);
    assert_eq!(names(control.folder()), [""; 0]);
}

#[test]
fn two_supervisors_of_one_default_name_have_two_sockets() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let start = || idle(&[]).env("RUNTIME_DIRECTORY", folder.path()).spawn();
    let first = start();
    let command = fixtures::idle();
    let name = Path::new(&command[0]).file_name().expect("a name").to_string_lossy().into_owned();
    let path = |suffix: &str| folder.path().join(format!("{name}{suffix}.sock"));
    eventually(TIMEOUT, "the first one has the name", || UnixStream::connect(path("")).is_ok());
    let second = start();
    eventually(TIMEOUT, "the second one has a number", || UnixStream::connect(path("-2")).is_ok());
    let told = Client::connect(&path("-2")).ask(r#"{"command":"status"}"#);
    assert_eq!(told["status"]["name"], format!("{name}-2"));
    assert_eq!(told["status"]["pid"], second.pid());
    assert_eq!(first.stop(), 0);
    assert_eq!(second.stop(), 0);
}

#[test]
fn a_name_that_is_taken_is_an_error_that_names_the_pid() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let builder = || idle(&["--name", "api"]).env("RUNTIME_DIRECTORY", folder.path());
    let first = builder().spawn();
    let path = folder.path().join("api.sock");
    eventually(TIMEOUT, "it listens", || UnixStream::connect(&path).is_ok());
    let second = builder().run();
    assert_eq!(second.code, Some(1), "{second:?}");
    assert!(second.stderr.concat().contains(&format!("pid {}", first.pid())), "{second:?}");
    assert!(second.stdout.is_empty(), "no worker was started");
    assert!(UnixStream::connect(&path).is_ok(), "the first one is not disturbed");
}

#[test]
fn the_socket_of_a_killed_supervisor_is_replaced() {
    let control = Controlled::default();
    let first = control.on(idle(&[])).spawn();
    _ = control.client();
    let pid = first.pid();
    first.signal(Signal::KILL);
    await_gone(pid);
    assert_eq!(names(control.folder()), ["example.sock", "example.sock.lock"], "it could not clean up");
    let second = control.on(idle(&[])).spawn();
    // Until it has taken the path, the kernel may still accept connections on the socket of the first one.
    second.eventually("it runs", || !second.logged(&["running 1 worker"]).is_empty());
    eventually(TIMEOUT, "the second one answers", || UnixStream::connect(&control.path).is_ok());
    assert_eq!(control.status()["pid"], second.pid());
}

#[test]
fn what_is_not_a_control_socket_is_left_alone() {
    let control = Controlled::default();
    std::fs::write(&control.path, "important").expect("written");
    let finished = control.on(idle(&[])).run();
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert_eq!(std::fs::read_to_string(&control.path).expect("still there"), "important");
    std::fs::remove_file(&control.path).expect("removed");
    let _other = UnixListener::bind(&control.path).expect("another program listens");
    let finished = control.on(idle(&[])).run();
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert!(UnixStream::connect(&control.path).is_ok(), "it still listens");
}

#[test]
fn without_a_directory_it_runs_without_the_socket() {
    needs_root!();
    let wrapper = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--"];
    let vars = ["RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"];
    let builder = || vars.iter().fold(idle(&[]).wrap(wrapper), |builder, name| builder.env(name, ""));
    let supervisor = builder().spawn();
    supervisor.eventually("it says so", || !supervisor.logged(&["no control socket"]).is_empty());
    assert_eq!(supervisor.stop(), 0);
    let named = builder().args(["--name", "api"]).run();
    assert_eq!(named.code, Some(1), "{named:?}");
}

#[test]
fn control_off_opens_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let supervisor = idle(&["--control", "off"]).env("RUNTIME_DIRECTORY", folder.path()).spawn();
    supervisor.await_workers(1);
    supervisor.await_rest();
    assert_eq!(names(folder.path()), [""; 0]);
    assert_eq!(supervisor.stop(), 0);
}

/// Runs a command as another user.
fn as_nobody(control: &Controlled, group: &str) -> master_process_tests::control::Ran {
    let folder = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(control.folder(), folder).expect("ours");
    let mut setpriv = std::process::Command::new("setpriv");
    setpriv.args(["--reuid", "65534", "--regid", group, "--clear-groups", "--"]);
    setpriv.arg(binary()).args(["status", "--control"]).arg(&control.path);
    setpriv.stdin(std::process::Stdio::null());
    setpriv.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    Running::of(setpriv).wait()
}

#[test]
fn another_user_has_no_permission_and_the_group_has() {
    needs_root!();
    let (control, _supervisor) = started(&[]);
    let ran = as_nobody(&control, "65534");
    assert_eq!(ran.code, Some(4), "{ran:?}");
    assert!(ran.err.contains("no permission"), "{ran:?}");
    let control = Controlled::default();
    let _supervisor = control.on(idle(&["--control-group", "54321"])).spawn();
    control.await_ready(1);
    let metadata = std::fs::metadata(&control.path).expect("there");
    assert_eq!((metadata.mode() & 0o777, metadata.gid()), (0o660, 54321));
    assert_eq!(as_nobody(&control, "54321").code, Some(0));
    assert_eq!(as_nobody(&control, "65534").code, Some(4));
    // Whoever changes the mode of the socket does not change who may use it.
    let all = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    std::fs::set_permissions(&control.path, all).expect("ours");
    assert_eq!(as_nobody(&control, "65534").code, Some(4));
}

/// Whether an answer is the expected one, in which `…` stands for anything.
fn fits(expected: &str, answer: &str) -> bool {
    let mut parts = expected.split('…');
    let mut rest = match parts.next().and_then(|first| answer.strip_prefix(first)) {
        Some(rest) => rest,
        None => return false,
    };
    let mut ends_open = false;
    for part in parts {
        ends_open = part.is_empty();
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    ends_open || rest.is_empty()
}

#[test]
fn the_examples_of_the_documentation_are_true() {
    let page = std::fs::read_to_string(fixtures::repository().join("docs/control.md")).expect("the page");
    let (control, _supervisor) = started(&["-w", "2"]);
    control.await_ready(2);
    let mut client = control.client();
    let mut examples = 0;
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let Some(request) = line.strip_prefix("> ") else { continue };
        let expected = lines.next().and_then(|line| line.strip_prefix("< ")).expect("an answer");
        client.send(request);
        let answer = client.line().expect("an answer");
        assert!(fits(expected, &answer), "{request}\n expected {expected}\n but was {answer}");
        examples += 1;
    }
    assert!(examples >= 8, "the page was not read");
}

/// The commands of the page that are for a shell: lines with four spaces before them.
fn shell_examples(page: &str) -> Vec<&str> {
    page.lines().filter_map(|line| line.strip_prefix("    ")).filter(|line| line.contains("socat")).collect()
}

#[test]
fn the_shell_examples_of_the_documentation_work() {
    let page = std::fs::read_to_string(fixtures::repository().join("docs/control.md")).expect("the page");
    let (control, _supervisor) = started(&["-w", "2"]);
    control.await_ready(2);
    let socket = control.path.to_str().expect("UTF-8");
    let mut outputs = Vec::new();
    for example in shell_examples(&page) {
        let line = example.replace("/run/master-process/api.sock", socket);
        assert_ne!(line, example, "it names the socket");
        let output = std::process::Command::new("sh").args(["-c", &line]).output().expect("a shell");
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        if err.contains("not found") {
            skip!(format!("{err}: Debian's packages socat and jq"));
        }
        assert!(output.status.success(), "{line}: {err}");
        outputs.push(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    assert_eq!(outputs.first().map(String::as_str), Some("2"), "workers_ready");
    let states = outputs.get(1).expect("a second example");
    assert_eq!(states, "0\tready\n1\tready");
    let event = outputs.get(2).expect("a third example");
    assert!(event.contains("\"seq\":1,\"event\":\"supervisor.started\""), "{event}");
    assert_eq!(outputs.len(), 3);
}

#[test]
fn events_have_numbers_without_gaps_and_go_on_while_they_are_followed() {
    let (control, supervisor) = started(&["-w", "2"]);
    control.await_ready(2);
    let mut client = control.client();
    client.send(r#"{"command":"events","follow":true}"#);
    let first = client.await_event("worker.ready");
    assert_eq!(first["slot"], 0);
    let victim = *supervisor.await_workers(2).first().expect("two");
    process::signal(victim, Signal::KILL);
    let ended = client.await_event("worker.ended");
    assert_eq!((&ended["pid"], &ended["end"]["signal_name"]), (&victim.into(), &"SIGKILL".into()));
    let ready = client.await_event("worker.ready");
    let mut again = control.client();
    again.send(r#"{"command":"events"}"#);
    let mut numbers = Vec::new();
    let end = loop {
        let line: Value = serde_json::from_str(&again.line().expect("more")).expect("JSON");
        match line["end_of_events"].as_u64() {
            Some(end) => break end,
            None => numbers.push(line["seq"].as_u64().expect("a number")),
        }
    };
    assert_eq!(numbers, (1..=end).collect::<Vec<_>>());
    assert!(ready["seq"].as_u64() <= Some(end));
}

#[test]
fn a_client_that_closes_its_half_gets_its_answer() {
    let (control, _supervisor) = started(&[]);
    let mut client = control.client();
    client.send(r#"{"command":"status"}"#);
    client.stream().shutdown(std::net::Shutdown::Write).expect("its half");
    let lines = client.await_end(TIMEOUT);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("workers_ready"));
    let mut follower = control.client();
    follower.send(r#"{"command":"events","follow":true}"#);
    follower.stream().shutdown(std::net::Shutdown::Write).expect("its half");
    assert_eq!(follower.await_event("supervisor.started")["seq"], 1);
    assert!(control.client().ask(r#"{"command":"pause"}"#)["accepted"].is_object());
    follower.await_event("monitor.changed");
}

/// Waits until the supervisor has closed the client for this reason.
fn is_cut_off(supervisor: &Supervisor, client: &mut Client, reason: &str) {
    let lines = client.await_end(TIMEOUT);
    supervisor.eventually(reason, || !supervisor.logged(&["closed a client", reason]).is_empty());
    assert!(lines.iter().all(|line| line.contains("\"error\"") || line.contains("schema")), "{lines:?}");
}

#[test]
fn clients_that_do_not_behave_are_cut_off_with_one_line_each() {
    let (control, supervisor) = started(&[]);
    let mut garbage = control.client();
    (0..3).for_each(|_| garbage.send("not JSON"));
    is_cut_off(&supervisor, &mut garbage, "its requests are not valid");
    let mut long = control.client();
    _ = long.stream().write_all(&[b'x'; 5000]);
    is_cut_off(&supervisor, &mut long, "its request is too long");
    let mut half = control.client();
    half.stream().write_all(b"{\"command\":").expect("taken");
    half.stream().shutdown(std::net::Shutdown::Write).expect("its half");
    is_cut_off(&supervisor, &mut half, "in the middle of a request");
    let mut flood = control.client();
    for _ in 0..200 {
        if flood.stream().write_all(b"{\"command\":\"why\",\"slot\":0}\n").is_err() {
            break;
        }
    }
    is_cut_off(&supervisor, &mut flood, "too many requests");
    assert_eq!(control.status()["state"], "ready", "and it serves the others");
}

#[test]
fn a_client_that_says_nothing_or_does_not_read_is_cut_off() {
    let (control, supervisor) = started(&["-w", "40"]);
    control.await_ready(40);
    let mut silent = control.client();
    // The answers of two hundred kilobytes fill what the kernel keeps for a connection that nobody reads.
    let mut slow = control.client();
    for _ in 0..40 {
        _ = slow.stream().write_all(b"{\"command\":\"status\"}\n");
    }
    let since = Instant::now();
    supervisor.eventually("both are closed", || {
        !supervisor.logged(&["closed a client", "sent no request"]).is_empty()
            && !supervisor.logged(&["closed a client", "does not read"]).is_empty()
    });
    assert!(since.elapsed() >= Duration::from_secs(5), "not at once");
    let lines = silent.await_end(TIMEOUT);
    assert!(lines.iter().all(|line| line.contains("closed")), "{lines:?}");
}

#[test]
fn a_slow_follower_is_told_how_many_events_it_has_missed() {
    let (control, _supervisor) = started(&[]);
    let mut client = control.client();
    // Far more than the events that are kept, while it reads nothing.
    let mut busy = control.client();
    for round in 0..600 {
        let command = if round % 2 == 0 { "pause" } else { "resume" };
        busy = if round % 40 == 39 { control.client() } else { busy };
        assert!(busy.ask(&format!(r#"{{"command":"{command}"}}"#))["accepted"].is_object());
    }
    client.send(r#"{"command":"events"}"#);
    let first: Value = serde_json::from_str(&client.line().expect("a line")).expect("JSON");
    assert_eq!(first["event"], "missed", "{first}");
    let second: Value = serde_json::from_str(&client.line().expect("a line")).expect("JSON");
    assert_eq!(second["seq"].as_u64(), first["seq"].as_u64().map(|seq| seq + 1));
    assert_eq!(first["missed"], first["seq"], "from the first one on");
}

#[test]
fn a_thousand_connections_do_not_delay_a_replacement() {
    let (control, supervisor) = started(&["--throttle", "0"]);
    flood::does_not_delay_replacements(&supervisor, || UnixStream::connect(&control.path).ok());
    assert_eq!(control.run(&["status"]).code, Some(0));
    assert!(supervisor.logged(&["closed a client"]).len() <= 12, "the log stays readable");
}

#[test]
fn an_idle_supervisor_with_a_follower_makes_no_system_call() {
    let control = Controlled::default();
    let supervisor = control.on(idle(&["--monitor", "off"])).spawn();
    control.await_ready(1);
    let mut follower = control.client();
    follower.send(r#"{"command":"events","follow":true}"#);
    follower.await_event("worker.ready");
    let pid = supervisor.pid();
    let switches = || process::status(pid, "voluntary_ctxt_switches").expect("it runs");
    let settle = |switches: &dyn Fn() -> String| {
        let mut last = switches();
        // A client that has come and gone leaves one check of the clients' times.
        eventually(TIMEOUT, "it sleeps for more than ten seconds", || {
            let since = Instant::now();
            while since.elapsed() < Duration::from_secs(2) {
                std::thread::sleep(Duration::from_millis(50));
                let now = switches();
                if now != last {
                    last = now;
                    return false;
                }
            }
            true
        });
    };
    settle(&switches);
    std::thread::sleep(Duration::from_secs(11));
    let before = switches();
    always(Duration::from_secs(3), "it sleeps", || switches() == before);
    // The helper thread of the sockets is there with and without the control socket.
    let threads = process::threads(pid);
    assert!(threads.len() <= 2, "{threads:?}");
}

#[test]
fn clients_are_answered_while_the_supervisor_stops() {
    let control = Controlled::default();
    let program = "import signal, time\nsignal.signal(signal.SIGTERM, lambda *_: None)\nprint('ready', flush=True)\n\
                   while True: time.sleep(1)";
    let command = [fixtures::python(), "-c".to_owned(), program.to_owned()];
    let builder = Supervisor::builder().args(["--ready", "none", "--kill-timeout", "3s"]).command(command);
    let supervisor = control.on(builder).spawn();
    supervisor.eventually("the handler is set", || !supervisor.output().is_empty());
    assert!(control.client().ask(r#"{"command":"stop"}"#)["accepted"].is_object());
    let status = control.status();
    assert_eq!((&status["state"], &status["workers"][0]["state"]), (&"stopping".into(), &"stopping".into()));
    assert_eq!(control.client().ask(r#"{"command":"reload"}"#)["error"]["code"], "stopping");
    supervisor.eventually("it says who has asked", || {
        !supervisor.logged(&["stopping 1 worker", "requested by"]).is_empty()
    });
    assert_eq!(supervisor.wait_exit(TIMEOUT).code(), Some(0));
}

#[test]
fn the_loop_with_epoll_serves_clients_as_well() {
    let control = Controlled::default();
    let _supervisor = control.on(idle(&["-w", "3"]).env("MASTER_PROCESS_LOOP", "epoll")).spawn();
    control.await_ready(3);
    let mut client = control.client();
    client.send(r#"{"command":"scale","workers":5,"follow":true}"#);
    client.await_event("scaled");
    control.await_ready(5);
    let mut rest = [0; 1];
    client.stream().set_nonblocking(true).expect("every socket");
    _ = client.stream().read(&mut rest);
    drop(client);
    assert_eq!(control.run(&["status"]).code, Some(0));
    _ = command(&["ls"]);
}
