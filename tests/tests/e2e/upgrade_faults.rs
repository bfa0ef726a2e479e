//! New programs that cannot take over, upgrades in the middle of everything else, and a supervisor that is killed in one.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use master_process_tests::cgroup::Place;
use master_process_tests::script::{said, script_with};
use master_process_tests::supervisor::binary;
use master_process_tests::upgraded::Upgraded;
use master_process_tests::{Supervisor, TIMEOUT, address, eventually, fixtures, load, process, scaled};
use rustix::process::Signal;

/// A program that accepts every state. It has this program take over with a state in which one descriptor is another number,
/// which is not open: that goes on from it up to there, and gives way. The way back leads through this program again, which
/// has the real one execute with the real state.
const BREAKS_A_DESCRIPTOR: &str = r#"#!@PYTHON@
import fcntl, json, os, struct, sys
REAL, PART = '@BINARY@', '@PART@'
def checksum(data):
    total = 0xcbf29ce484222325
    for at in range(0, len(data), 8):
        word = int.from_bytes(data[at:at + 8].ljust(8, b'\0'), 'little')
        total = ((total ^ word) * 0x100000001b3) & (1 << 64) - 1
        total = (total << 23 | total >> 41) & (1 << 64) - 1
    return total
def sealed(data):
    fd = os.memfd_create('state', os.MFD_ALLOW_SEALING)
    os.write(fd, b'mpstate1' + struct.pack('<QQ', len(data), checksum(data)) + data)
    fcntl.fcntl(fd, 1033, 15)  # F_ADD_SEALS: all of them
    os.set_inheritable(fd, True)
    return fd
if sys.argv[1:] == ['--check-state']:
    os.write(4, b'accepts 9.9\n')
    sys.exit(0)
pid, state, back, reason = os.environ['MASTER_PROCESS_STATE'].split(':', 3)
if reason:
    state, back = os.environ.pop('ORIGINAL').split(':')
    os.environ['MASTER_PROCESS_STATE'] = f'{pid}:{state}::{reason}'
    os.execve(int(back), sys.argv, os.environ)
whole = json.loads(os.pread(int(state), 1 << 30, 24))
*way, last = [int(word) if word.isdigit() else word for word in PART.split('.')]
at = whole['driver']
for word in way: at = at[word]
assert isinstance(at[last], int), at
at[last] = 9999
for fd in map(int, (state, back)):  # they stay open: the state names them, and nothing takes them
    stat = os.fstat(fd)
    whole['descriptors'].append([fd, stat.st_dev, stat.st_ino, stat.st_mode & 0o170000])
script = os.open(sys.argv[0], os.O_RDONLY)
os.set_inheritable(script, True)
os.environ['MASTER_PROCESS_STATE'] = f'{pid}:{sealed(json.dumps(whole).encode())}:{script}:'
os.environ['ORIGINAL'] = f'{state}:{back}'
os.execve(REAL, sys.argv, os.environ)
"#;

/// Serves a TCP port and a Unix path.
const SERVES_BOTH: &str = "
import threading
made = bound(HOST, PORT); made.listen(64)
path = socket.socket(socket.AF_UNIX)
path.bind(sys.argv[2]); path.listen(64)
say('ready')
threading.Thread(target=serve, args=(path,), daemon=True).start()
serve(made)";

/// What is sent to it, and everything that it answers.
fn exchange(path: &Path, request: &[u8]) -> String {
    let mut answer = Vec::new();
    if let Ok(mut stream) = UnixStream::connect(path) {
        stream.set_read_timeout(Some(scaled(TIMEOUT))).expect("a time-out");
        _ = stream.write_all(request);
        _ = stream.read_to_end(&mut answer);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

const SCRAPE: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n";

#[test]
fn what_a_new_program_had_restored_when_it_gave_way_is_as_before() {
    let (upgraded, address) = (Upgraded::new(), address::tcp());
    let (metrics, served) = (upgraded.controlled.folder().join("m"), upgraded.controlled.folder().join("s"));
    let place = Place::make(true);
    let mut builder =
        upgraded.builder().args(["-w", "2", "--metrics", &format!("unix:{}", metrics.display())]);
    if let Some(place) = &place {
        builder = builder.wrap(place.launcher());
    }
    let supervisor = builder.command(script_with(SERVES_BOTH, address, [&served])).spawn();
    said(&supervisor, 2);
    upgraded.controlled.await_ready(2);
    let (pid, workers) = (supervisor.pid(), supervisor.workers());
    let mut follower = upgraded.controlled.client();
    follower.send(r#"{"command":"events","follow":true}"#);
    let notify = process::environment(*workers.first().expect("two"))
        .into_iter()
        .find_map(|variable| variable.strip_prefix("NOTIFY_SOCKET=").map(str::to_owned))
        .expect("a worker has it");
    let cgroups = place.as_ref().map(Place::workers);
    // From the first to the last thing that is taken from the state.
    let mut parts = vec![
        "notify.fd",
        "share.sockets.copies.copies.0.fd",
        "workers.1.pidfd",
        "call_listeners.open.1.1",
        "control.server.claim.lock",
        "control.server.listener",
        "control.server.clients.0.1.connection.fd",
        "endpoint.listener.file.lock",
        "endpoint.listener.fd",
    ];
    if place.is_some() {
        parts.extend(["trees.parent.own", "trees.cgroups.1.1.own"]);
    }
    for part in parts {
        let text = BREAKS_A_DESCRIPTOR.replace("@PYTHON@", &fixtures::python());
        let text = text.replace("@BINARY@", &binary().display().to_string()).replace("@PART@", part);
        upgraded.replace_by_script(&text);
        upgraded.is_refused("descriptor 9999 is missing");
        assert_eq!((supervisor.pid(), supervisor.workers()), (pid, workers.clone()), "{part}");
        assert!(load::who(address).is_some(), "{part}");
        assert!(exchange(&served, b"GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 200"), "{part}");
        assert!(exchange(&metrics, SCRAPE).ends_with("# EOF\n"), "{part}");
        assert!(notify.starts_with('@') || Path::new(&notify).exists(), "{part}: {notify}");
        assert_eq!(place.as_ref().map(Place::workers), cgroups, "{part}");
    }
    let told = || follower.line().is_some_and(|line| line.contains("supervisor.upgrade_failed"));
    eventually(TIMEOUT, "a client that follows the events is told", told);
    upgraded.replace_by_copy();
    upgraded.upgrade();
    assert!(supervisor.reload(2).is_disjoint(&workers));
    assert_eq!(supervisor.stop(), 0);
    assert!(!served.exists() && !metrics.exists(), "they are removed at the end");
    assert!(notify.starts_with('@') || !Path::new(&notify).exists(), "{notify}");
    assert!(place.is_none_or(|place| place.is_empty()));
}

#[test]
fn files_that_are_no_program_change_nothing() {
    let (upgraded, address) = (Upgraded::new(), address::tcp());
    let supervisor = upgraded.builder().command(fixtures::listening(address, &[])).spawn();
    upgraded.controlled.await_ready(1);
    let worker = supervisor.workers();
    upgraded.replace_by_script("#!/bin/sh\nexit 0\n");
    upgraded.is_refused("it does not answer as a master-process does");
    // It answers, and keeps the descriptor of the answer open.
    upgraded.replace_by_script("#!/bin/sh\necho accepts 9.9 >&4\nexec sleep 1000\n");
    upgraded.is_refused("it has not answered within 5.0s");
    upgraded.replace(|path| {
        fs::copy(binary(), path).expect("there is room for a copy");
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).expect("ours");
    });
    upgraded.is_refused("execve: Permission denied");
    upgraded.replace(|path| fs::write(path, "").expect("ours"));
    upgraded.is_refused("execve: Permission denied");
    fs::remove_file(&upgraded.program).expect("it is there");
    fs::create_dir(&upgraded.program).expect("ours");
    upgraded.is_refused("it is not a regular file");
    fs::remove_dir(&upgraded.program).expect("it is empty");
    upgraded.replace(|path| rustix::fs::symlink("/no/such/file", path).expect("ours"));
    upgraded.is_refused("No such file or directory");
    assert_eq!(supervisor.workers(), worker);
    assert_eq!(process::children(supervisor.pid()).len(), 1, "no program that was asked is left");
    upgraded.replace_by_copy();
    upgraded.upgrade();
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn the_file_that_was_checked_takes_over_also_if_another_one_has_its_path_by_then() {
    let (upgraded, address) = (Upgraded::new(), address::tcp());
    let supervisor = upgraded.builder().command(fixtures::listening(address, &[])).spawn();
    upgraded.controlled.await_ready(1);
    let worker = supervisor.workers();
    let other = upgraded.controlled.folder().join("other");
    let real = upgraded.controlled.folder().join("real");
    fs::rename(&upgraded.program, &real).expect("the same folder");
    fs::write(&other, "#!/bin/sh\nexit 3\n").expect("ours");
    fs::set_permissions(&other, fs::Permissions::from_mode(0o755)).expect("ours");
    upgraded.replace_by_script(&format!(
        "#!/bin/sh\n[ \"$1\" = --check-state ] && {{ mv {} {}; echo accepts 9.9 >&4; exit 0; }}\nexec {} \"$@\"\n",
        other.display(),
        upgraded.program.display(),
        real.display()
    ));
    upgraded.upgrade();
    assert!(!other.exists(), "it has the path");
    upgraded.is_refused("it does not answer as a master-process does");
    // The program at its path is the real one again, so that it is known as the supervisor.
    upgraded.replace_by_copy();
    upgraded.upgrade();
    assert_eq!(supervisor.workers(), worker);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn a_program_that_accepts_and_ends_has_ended_the_supervisor_and_its_workers() {
    let (upgraded, address) = (Upgraded::new(), address::tcp());
    let supervisor = upgraded.builder().args(["-w", "2"]).command(fixtures::listening(address, &[])).spawn();
    upgraded.controlled.await_ready(2);
    upgraded.replace_by_script("#!/bin/sh\n[ \"$1\" = --check-state ] && echo accepts 9.9 >&4\nexit 0\n");
    supervisor.signal(Signal::USR1);
    assert_eq!(supervisor.wait_exit(scaled(TIMEOUT)).code(), Some(0));
    eventually(TIMEOUT, "its workers are gone", || supervisor.survivors().is_empty());
}

#[test]
fn a_stop_goes_on_after_an_upgrade_and_ends_in_its_time() {
    let (upgraded, address) = (Upgraded::new(), address::tcp());
    let command = fixtures::listening(address, &["term=ignore"]);
    let supervisor = upgraded.builder().args(["-w", "2", "--kill-timeout", "2s"]).command(command).spawn();
    upgraded.controlled.await_ready(2);
    supervisor.signal(Signal::TERM);
    supervisor.await_events(2, "term");
    upgraded.upgrade();
    assert_eq!(supervisor.wait_exit(scaled(TIMEOUT)).code(), Some(0));
    assert_eq!(supervisor.logged(&["did not stop within 2.", "sending sigkill"]).len(), 2);
    assert_eq!(supervisor.survivors(), [0; 0]);
}

#[test]
fn signals_that_come_with_the_request_for_an_upgrade_are_carried_out() {
    let (upgraded, address) = (Upgraded::new(), address::tcp());
    let supervisor = upgraded.builder().args(["-w", "2"]).command(fixtures::listening(address, &[])).spawn();
    upgraded.controlled.await_ready(2);
    for round in 1..=5 {
        let before = supervisor.await_workers(2);
        // A second request while one is in progress changes nothing.
        for signal in [Signal::USR1, Signal::HUP, Signal::USR1] {
            supervisor.signal(signal);
        }
        supervisor.eventually("reloaded and upgraded", || {
            let now = supervisor.workers();
            let status = upgraded.controlled.status();
            now.len() == 2 && now.is_disjoint(&before) && status["upgraded"]["count"].as_u64() >= Some(round)
        });
        assert_eq!(upgraded.controlled.status()["generation"], round);
        upgraded.controlled.await_ready(2);
    }
    supervisor.signal(Signal::USR1);
    supervisor.signal(Signal::TERM);
    assert_eq!(supervisor.wait_exit(scaled(TIMEOUT)).code(), Some(0));
    assert_eq!(supervisor.survivors(), [0; 0]);
}

#[test]
fn clients_of_the_events_and_of_the_metrics_notice_no_upgrade() {
    let upgraded = Upgraded::new();
    let metrics = upgraded.controlled.folder().join("m");
    let options = ["-w", "2", "--ready", "none", "--metrics", &format!("unix:{}", metrics.display())];
    let supervisor = upgraded.builder().args(options).command(fixtures::idle()).spawn();
    upgraded.controlled.await_ready(2);
    let mut follower = upgraded.controlled.client();
    follower.send(r#"{"command":"events","follow":true}"#);
    // One that scrapes too often is told so, which is an answer, too.
    let is_whole = |answer: &str| answer.ends_with("# EOF\n") || answer.ends_with("\ntoo many requests\n");
    let (stop, scrapes) = (std::sync::atomic::AtomicBool::new(false), std::sync::atomic::AtomicU32::new(0));
    let load = std::sync::atomic::Ordering::Relaxed;
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(load) {
                    let answer = exchange(&metrics, SCRAPE);
                    if !is_whole(&answer) {
                        stop.store(true, load);
                        panic!("a scrape is not whole: {answer:?}");
                    }
                    scrapes.fetch_add(1, load);
                }
            });
        }
        for _ in 0..10 {
            let before = scrapes.load(load);
            let more = || scrapes.load(load) > before + 4 || stop.load(load);
            supervisor.eventually("scrapes are answered", more);
            upgraded.upgrade();
        }
        stop.store(true, load);
    });
    let (mut upgrades, mut last) = (0, None);
    while upgrades < 10 {
        let line = follower.line().expect("it stays connected");
        let event: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        let seq = event["seq"].as_u64();
        assert!(last.is_none() || seq.is_none() || seq == last.map(|last: u64| last + 1), "{last:?} {line}");
        last = seq.or(last);
        upgrades += u32::from(event["event"] == "supervisor.upgraded");
    }
    assert_eq!(supervisor.stop(), 0);
}

/// Waits until the supervisor, which was killed, has left nothing.
fn nothing_is_left(supervisor: &Supervisor) {
    assert_eq!(supervisor.wait_exit(scaled(TIMEOUT)).code(), None, "a signal has ended it");
    eventually(TIMEOUT, "nothing is left", || supervisor.survivors().is_empty());
}

#[test]
fn kill_9_while_the_new_program_is_asked_and_while_it_takes_over_leaves_nothing() {
    let hangs = [
        // Asked.
        "touch asked; exec sleep 1000",
        // About to take over.
        "[ \"$1\" = --check-state ] && { echo accepts 9.9 >&4; exit 0; }; touch asked; exec sleep 1000",
    ];
    for text in hangs {
        let (upgraded, address) = (Upgraded::new(), address::tcp());
        let command = fixtures::listening(address, &[]);
        let supervisor = upgraded.builder().args(["-w", "2"]).command(command).spawn();
        upgraded.controlled.await_ready(2);
        let asked = upgraded.controlled.folder().join("asked");
        upgraded.replace_by_script(&format!(
            "#!/bin/sh\n{}\n",
            text.replace("asked", &asked.display().to_string())
        ));
        // Later its program is that of the script.
        let pid = supervisor.pid();
        supervisor.signal(Signal::USR1);
        supervisor.eventually("the new program runs", || asked.exists());
        process::signal(pid, Signal::KILL);
        nothing_is_left(&supervisor);
    }
}

#[test]
fn a_supervisor_that_was_killed_in_an_upgrade_is_followed_by_another_one() {
    let (upgraded, address) = (Upgraded::new(), address::tcp());
    let start = || {
        let builder = upgraded.builder().args(["-w", "2"]).command(fixtures::listening(address, &[]));
        let supervisor = builder.spawn();
        upgraded.controlled.await_ready(2);
        supervisor
    };
    for wait in [3, 12, 30] {
        let supervisor = start();
        supervisor.signal(Signal::USR1);
        master_process_tests::offset(Duration::from_millis(wait));
        supervisor.signal(Signal::KILL);
        nothing_is_left(&supervisor);
    }
    let supervisor = start();
    upgraded.upgrade();
    assert_eq!(supervisor.stop(), 0);
}
