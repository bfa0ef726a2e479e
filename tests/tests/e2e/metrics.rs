//! The metrics over HTTP: what they say, and clients that do not behave.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use master_process_tests::control::{Controlled, command};
use master_process_tests::supervisor::Builder;
use master_process_tests::{
    Supervisor, TIMEOUT, address, eventually, fixtures, flood, needs_root, process, scaled, skip,
};
use rustix::process::Signal;

fn idle(options: &[&str]) -> Builder {
    let throttle: &[&str] = if options.contains(&"--throttle") { &[] } else { &["--throttle", "50ms"] };
    Supervisor::builder().args(["--ready", "none"]).args(throttle).args(options).command(fixtures::idle())
}

/// Runs a supervisor that serves its metrics on a free port.
fn serving(options: &[&str]) -> (Supervisor, SocketAddr) {
    let address: SocketAddr = address::tcp();
    let at = address.to_string();
    let supervisor = idle(&[options, &["--metrics", &at]].concat()).spawn();
    eventually(TIMEOUT, "it answers", || get(address, "/healthz").starts_with("HTTP/1.1 200"));
    (supervisor, address)
}

/// Sends this and reads until the end. Empty if the connection breaks.
fn exchange(mut stream: impl Read + Write, bytes: &[u8]) -> String {
    let mut answer = Vec::new();
    _ = stream.write_all(bytes);
    _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn connect(address: SocketAddr) -> Option<TcpStream> {
    let stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(scaled(TIMEOUT))).expect("a time-out");
    Some(stream)
}

fn get(address: SocketAddr, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n");
    connect(address).map(|stream| exchange(stream, request.as_bytes())).unwrap_or_default()
}

/// The value of a series.
fn value(text: &str, series: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

#[test]
fn a_scrape_has_every_worker_and_counts_over_replacements() {
    let (supervisor, address) = serving(&["-w", "2", "--monitor", "procfs", "--monitor-interval", "100ms"]);
    eventually(TIMEOUT, "both are measured", || {
        let text = get(address, "/metrics");
        value(&text, "master_process_workers_ready") == Some(2.0)
            && value(&text, r#"master_process_worker_resident_memory_bytes{slot="1"}"#).is_some()
    });
    let text = get(address, "/metrics");
    assert!(
        text.starts_with("HTTP/1.1 200 OK\r\nContent-Type: application/openmetrics-text; version=1.0.0"),
        "{text}"
    );
    assert!(text.ends_with("# EOF\n"), "{text}");
    let exits = r#"master_process_worker_restarts_total{slot="0",reason="signal"}"#;
    assert_eq!(value(&text, exits), Some(0.0));
    let victims = supervisor.await_workers(2);
    for victim in &victims {
        process::signal(*victim, Signal::KILL);
    }
    eventually(TIMEOUT, "the restart is counted", || value(&get(address, "/metrics"), exits) == Some(1.0));
    supervisor.signal(Signal::HUP);
    eventually(TIMEOUT, "the reload is counted", || {
        let text = get(address, "/metrics");
        value(&text, r#"master_process_reloads_total{result="complete"}"#) == Some(1.0)
            && value(&text, "master_process_reload_duration_seconds_count") == Some(1.0)
            && value(&text, r#"master_process_worker_info{slot="0",generation="1"}"#) == Some(1.0)
    });
    assert_eq!(value(&get(address, "/metrics"), exits), Some(1.0), "it goes on over the reload");
    assert!(value(&text, "process_resident_memory_bytes").is_some_and(|bytes| bytes > 0.0));
    assert!(value(&text, "process_open_fds").is_some_and(|fds| fds > 3.0));
}

#[test]
fn it_is_ready_when_every_slot_has_a_ready_worker() {
    let address: SocketAddr = address::tcp();
    let folder = tempfile::tempdir().expect("a folder");
    let flag = folder.path().join("go");
    let program = "import os, socket, sys, time\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.02)\n\
                   out = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\nname = os.environ['NOTIFY_SOCKET']\n\
                   out.sendto(b'READY=1', '\\0' + name[1:] if name.startswith('@') else name)\ntime.sleep(1000)";
    let command = [fixtures::python(), "-c".to_owned(), program.to_owned(), flag.display().to_string()];
    let at = address.to_string();
    let builder = Supervisor::builder().args(["--ready", "notify", "-w", "2", "--metrics", &at]);
    let supervisor = builder.command(command).spawn();
    eventually(TIMEOUT, "it is not ready", || get(address, "/readyz").starts_with("HTTP/1.1 503"));
    let answer = get(address, "/readyz");
    assert!(answer.ends_with("\r\n\r\n0 of 2 slots are ready\n"), "{answer}");
    assert!(get(address, "/healthz").starts_with("HTTP/1.1 200"));
    std::fs::write(&flag, "").expect("written");
    eventually(TIMEOUT, "it is ready", || get(address, "/readyz").ends_with("\r\n\r\nready\n"));
    std::fs::remove_file(&flag).expect("removed");
    process::signal(*supervisor.await_workers(2).first().expect("two"), Signal::KILL);
    eventually(TIMEOUT, "one is missing", || get(address, "/readyz").contains("1 of 2 slots are ready"));
    std::fs::write(&flag, "").expect("written");
    eventually(TIMEOUT, "it is ready again", || get(address, "/readyz").starts_with("HTTP/1.1 200"));
}

#[test]
fn curl_reads_it_over_tcp_and_a_unix_socket() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("metrics.sock");
    let at = format!("unix:{}", path.display());
    let supervisor = idle(&["--metrics", &at]).spawn();
    eventually(TIMEOUT, "it listens", || UnixStream::connect(&path).is_ok());
    let (_other, address) = serving(&[]);
    let curl = |args: &[&str]| {
        let output = Command::new("curl").args(["-sS", "--fail", "--max-time", "20"]).args(args).output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let Ok(over_unix) = curl(&["--unix-socket", &path.display().to_string(), "http://localhost/metrics"])
    else {
        eprintln!("skipped: curl is not installed");
        return;
    };
    assert!(over_unix.ends_with("# EOF\n"), "{over_unix}");
    let over_tcp = curl(&[&format!("http://{address}/metrics")]).expect("curl is there");
    assert!(over_tcp.ends_with("# EOF\n"), "{over_tcp}");
    let plain =
        curl(&["-H", "Accept: text/plain", &format!("http://{address}/metrics")]).expect("curl is there");
    assert!(plain.contains("# TYPE master_process_worker_restarts_total counter"), "{plain}");
    let head = curl(&["-I", &format!("http://{address}/healthz")]).expect("curl is there");
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    assert_eq!(supervisor.stop(), 0);
    assert!(!path.exists(), "the socket goes with the supervisor");
}

/// Whether `curl` of a user in this group gets the metrics.
fn is_readable_as(group: &str, path: &Path) -> bool {
    let mut setpriv = Command::new("setpriv");
    setpriv.args(["--reuid", "65534", "--regid", group, "--clear-groups", "--", "curl", "-sS", "--fail"]);
    let socket = path.to_str().expect("UTF-8");
    let output =
        setpriv.args(["--max-time", "20", "--unix-socket", socket, "http://localhost/metrics"]).output();
    let output = output.expect("setpriv is there");
    output.status.success() && output.stdout.ends_with(b"# EOF\n")
}

#[test]
fn a_unix_socket_is_for_its_user_and_the_control_group() {
    needs_root!();
    for (options, mode, in_group) in
        [(&[][..], 0o600, false), (&["--control-group", "54321"][..], 0o660, true)]
    {
        let folder = tempfile::tempdir().expect("a folder");
        let all_search = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(folder.path(), all_search).expect("ours");
        let path = folder.path().join("metrics.sock");
        let at = format!("unix:{}", path.display());
        let _supervisor = idle(&[&["--metrics", &at], options].concat()).spawn();
        eventually(TIMEOUT, "it listens", || UnixStream::connect(&path).is_ok());
        assert_eq!(std::fs::metadata(&path).expect("there").mode() & 0o777, mode);
        assert!(!is_readable_as("65534", &path), "{options:?}");
        assert_eq!(is_readable_as("54321", &path), in_group, "{options:?}");
    }
}

#[test]
fn a_scrape_names_no_command_path_or_address() {
    let control = Controlled::default();
    let (metrics, serves) = (address::tcp(), address::tcp());
    let at = metrics.to_string();
    let builder = control.on(Supervisor::builder()).args(["--metrics", &at]);
    let listen = format!("listen={serves}");
    let _supervisor = builder.command(fixtures::worker(&[&listen])).spawn();
    control.await_ready(1);
    let text = get(metrics, "/metrics");
    assert!(text.contains(r#"master_process_worker_state{slot="0",state="ready"} 1"#), "{text}");
    let folder = control.folder().display().to_string();
    for secret in [serves.to_string().as_str(), &at, &folder, "worker.py", "python", "listen="] {
        assert!(!text.contains(secret), "{secret}: {text}");
    }
}

/// Reads a scrape from standard input with this parser, and prints the value of a series of it.
const PARSE: &str = "
import sys
from prometheus_client import openmetrics, parser
import prometheus_client.openmetrics.parser
parse = {'openmetrics': openmetrics.parser, 'text': parser}[sys.argv[1]].text_string_to_metric_families
found = [(family, sample) for family in parse(sys.stdin.read()) for sample in family.samples]
assert all(family.documentation for family, _ in found), found
for family, sample in found:
    labels = ','.join('%s=%s' % pair for pair in sorted(sample.labels.items()))
    print(family.type, '%s{%s}' % (sample.name, labels), float(sample.value))
";

#[test]
fn the_official_python_client_parses_both_formats() {
    let (_supervisor, address) = serving(&["-w", "2"]);
    let ready = || value(&get(address, "/metrics"), "master_process_workers_ready") == Some(2.0);
    eventually(TIMEOUT, "both are ready", ready);
    for (format, accept, info) in
        [("openmetrics", "application/openmetrics-text", "info"), ("text", "text/plain", "gauge")]
    {
        let request = format!("GET /metrics HTTP/1.1\r\nAccept: {accept}\r\n\r\n");
        let answer = exchange(connect(address).expect("it listens"), request.as_bytes());
        let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
        let mut python = Command::new("/usr/bin/python3");
        let pipe = std::process::Stdio::piped;
        python.args(["-c", PARSE, format]).stdin(pipe()).stdout(pipe()).stderr(pipe());
        let mut python = python.spawn().expect("python");
        python.stdin.take().expect("piped").write_all(body.as_bytes()).expect("taken");
        let output = python.wait_with_output().expect("it ends");
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if err.contains("No module named 'prometheus_client'") {
            skip!("Debian's python3-prometheus-client is not installed");
        }
        assert!(output.status.success(), "{format}: {err}");
        for line in [
            "gauge master_process_slots{} 2.0",
            "gauge master_process_worker_state{slot=1,state=ready} 1.0",
            "counter master_process_worker_restarts_total{reason=exit,slot=0} 0.0",
            "histogram master_process_reload_duration_seconds_bucket{le=+Inf} 0.0",
            &format!("{info} master_process_worker_info{{generation=0,slot=1}} 1.0"),
        ] {
            assert!(out.lines().any(|found| found == line), "{format}: {line}:\n{out}");
        }
    }
}

#[test]
fn an_address_that_is_taken_is_an_error_at_start() {
    let (_first, address) = serving(&[]);
    let second = idle(&["--metrics", &address.to_string()]).run();
    assert_eq!(second.code, Some(1), "{second:?}");
    assert!(second.stderr.concat().contains("--metrics"), "{second:?}");
}

#[test]
fn clients_that_do_not_behave_are_cut_off() {
    let (supervisor, address) = serving(&[]);
    let send = |bytes: &[u8]| connect(address).map(|stream| exchange(stream, bytes)).unwrap_or_default();
    assert!(send(b"\x16\x03\x01\x02\x00hello\r\n\r\n").starts_with("HTTP/1.1 400"), "TLS");
    assert!(send(b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc").starts_with("HTTP/1.1 405"));
    assert!(get(address, "/").starts_with("HTTP/1.1 404"));
    let long = [b"GET /metrics HTTP/1.1\r\nX: ".to_vec(), vec![b'x'; 10_000]].concat();
    assert!(send(&long).starts_with("HTTP/1.1 431"));
    let half = connect(address).expect("it listens");
    let mut writer = half.try_clone().expect("a copy");
    writer.write_all(b"GET /metr").expect("written");
    half.shutdown(Shutdown::Write).expect("half closed");
    assert!(exchange(half, b"").starts_with("HTTP/1.1 400"));
    let closed = connect(address).expect("it listens");
    (&closed).write_all(b"GET /healthz HTTP/1.1\r\n\r\n").expect("written");
    closed.shutdown(Shutdown::Write).expect("half closed");
    assert!(exchange(closed, b"").starts_with("HTTP/1.1 200"), "its request was complete");
    let since = Instant::now();
    assert!(
        exchange(connect(address).expect("it listens"), b"GET /").starts_with("HTTP/1.1 408"),
        "too slow"
    );
    assert!(since.elapsed() < scaled(Duration::from_secs(15)));
    let mut statuses: Vec<String> = Vec::new();
    eventually(TIMEOUT, "a flood is refused", || {
        statuses.push(get(address, "/healthz").chars().take(12).collect());
        statuses.iter().any(|status| status == "HTTP/1.1 429")
    });
    eventually(TIMEOUT, "it answers again", || get(address, "/healthz").starts_with("HTTP/1.1 200"));
    let lines = supervisor.logged(&["closed a client of the metrics"]);
    assert!((1..=12).contains(&lines.len()), "{lines:?}");
}

#[test]
fn a_thousand_connections_do_not_delay_a_replacement() {
    let (supervisor, address) = serving(&["--throttle", "0"]);
    flood::does_not_delay_replacements(&supervisor, || {
        TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok()
    });
    eventually(TIMEOUT, "it answers", || get(address, "/healthz").starts_with("HTTP/1.1 200"));
}

#[test]
fn one_exporter_serves_all_instances() {
    let folder = tempfile::tempdir().expect("a folder");
    let start = |name: &str| idle(&["--name", name]).env("RUNTIME_DIRECTORY", folder.path()).spawn();
    let supervisors: Vec<Supervisor> = ["api", "billing", "worker"].into_iter().map(start).collect();
    for name in ["api", "billing", "worker"] {
        let path = folder.path().join(format!("{name}.sock"));
        eventually(TIMEOUT, "it listens", || UnixStream::connect(&path).is_ok());
    }
    let address: SocketAddr = address::tcp();
    let mut exporter = command(&["metrics", "--all", "--listen", &address.to_string()]);
    exporter.env("RUNTIME_DIRECTORY", folder.path());
    let mut exporter = exporter.spawn().expect("the binary is there");
    let up = |name: &str| value(&get(address, "/metrics"), &format!("master_process_up{{name=\"{name}\"}}"));
    eventually(TIMEOUT, "all are there", || {
        ["api", "billing", "worker"].iter().all(|name| up(name) == Some(1.0))
    });
    let text = get(address, "/metrics");
    assert_eq!(value(&text, r#"master_process_slots{name="billing"}"#), Some(1.0), "{text}");
    assert!(text.ends_with("# EOF\n"));
    let [api, rest @ ..] = <[Supervisor; 3]>::try_from(supervisors).expect("three");
    assert_eq!(api.stop(), 0);
    eventually(TIMEOUT, "one is gone", || up("api").is_none() && up("worker") == Some(1.0));
    exporter.kill().expect("ours");
    _ = exporter.wait();
    drop(rest);
}

/// The text between quotes after `"expr":`, and the like, of a file.
fn expressions(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).expect("it is there");
    let whole: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let mut found = Vec::new();
    let mut rest = vec![&whole];
    while let Some(value) = rest.pop() {
        match value {
            serde_json::Value::Object(fields) => {
                found.extend(fields.get("expr").and_then(|expr| Some(expr.as_str()?.to_owned())));
                rest.extend(fields.values());
            }
            serde_json::Value::Array(values) => rest.extend(values),
            serde_json::Value::Null
            | serde_json::Value::Bool(_)
            | serde_json::Value::Number(_)
            | serde_json::Value::String(_) => {}
        }
    }
    found
}

/// The names of series in an expression.
fn names(expression: &str) -> impl Iterator<Item = &str> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("master_process_") || word.starts_with("process_"))
}

#[test]
fn the_dashboard_and_the_alerts_use_what_a_scrape_has() {
    let packaging = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging"));
    let control = Controlled::default();
    let address: SocketAddr = address::tcp();
    let options = ["--metrics", &address.to_string(), "--max-memory", "1GiB", "--monitor", "procfs"];
    let server = control.on(Supervisor::builder().args(["--monitor-interval", "100ms"]).args(options));
    let served: SocketAddr = address::tcp();
    let program = format!(
        "import socket, time\nlistener = socket.create_server(('{}', {}))\ntime.sleep(1000)",
        served.ip(),
        served.port()
    );
    let _supervisor = server.command([fixtures::python(), "-c".to_owned(), program]).spawn();
    let complete = |text: &str| {
        text.contains("\nmaster_process_worker_resident_memory_bytes")
            && text.contains("accept_queue_drops_total")
    };
    eventually(TIMEOUT, "everything is measured", || complete(&get(address, "/metrics")));
    let text = get(address, "/metrics");
    let dashboard = expressions(&packaging.join("grafana/master-process.json"));
    assert!(dashboard.len() >= 8, "{dashboard:?}");
    let alerts =
        std::fs::read_to_string(packaging.join("prometheus/master-process.rules.yml")).expect("it is there");
    for name in dashboard.iter().map(String::as_str).chain([alerts.as_str()]).flat_map(names) {
        let is_there = text.lines().any(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' '))
        });
        assert!(is_there || name == "master_process_up", "{name} is not in\n{text}");
    }
}

#[test]
fn promtool_takes_the_alerts_and_they_fire() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/prometheus"));
    let promtool = |args: &[&str]| Command::new("promtool").args(args).current_dir(folder).output();
    let Ok(checked) = promtool(&["check", "rules", "master-process.rules.yml"]) else {
        eprintln!("skipped: promtool is not installed (Debian's package prometheus)");
        return;
    };
    assert!(checked.status.success(), "{checked:?}");
    let tested = promtool(&["test", "rules", "master-process.test.yml"]).expect("it is there");
    assert!(tested.status.success(), "{tested:?}");
}
