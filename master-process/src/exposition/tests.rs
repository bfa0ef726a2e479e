use std::io::Write;
use std::process::{Command, Stdio};

use super::*;
use crate::control::ReloadTotals;

fn example() -> Snapshot {
    let mut snapshot: Snapshot =
        serde_json::from_str(include_str!("../client/example.json")).expect("it is a snapshot");
    snapshot.reloads_total = ReloadTotals { complete: 12, given_up: 1, superseded: 0 };
    snapshot.reload_duration_seconds.add(3.25);
    snapshot.reload_duration_seconds.add(9000.0);
    snapshot.process.memory_bytes = Some(4 << 20);
    snapshot
}

fn has(text: &str, line: &str) {
    assert!(text.lines().any(|one| one == line), "{line} is not in\n{text}");
}

#[test]
fn every_name_is_as_the_documentation_has_it() {
    let text = one(example(), Format::OpenMetrics);
    assert!(text.ends_with("# EOF\n"));
    for line in [
        "# UNIT master_process_worker_cpu_seconds seconds",
        "# TYPE master_process_build info",
        "master_process_slots 4",
        "master_process_workers_ready 3",
        r#"master_process_worker_info{slot="3",generation="12"} 1"#,
        r#"master_process_worker_state{slot="2",state="hung"} 1"#,
        r#"master_process_worker_accept_queue_length{slot="2"} 117"#,
        r#"master_process_worker_accept_queue_drops_total{slot="2"} 12"#,
        r#"master_process_worker_restarts_total{slot="0",reason="oom"} 1"#,
        r#"master_process_worker_restarts_total{slot="0",reason="hung"} 0"#,
        r#"master_process_reloads_total{result="complete"} 12"#,
        r#"master_process_reload_duration_seconds_bucket{le="5.0"} 1"#,
        r#"master_process_reload_duration_seconds_bucket{le="+Inf"} 2"#,
        "process_resident_memory_bytes 4194304",
    ] {
        has(&text, line);
    }
    assert!(!text.contains("pid="), "the label is the slot");
    let page = include_str!("../../../docs/metrics.md");
    for name in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let name = name.split(' ').next().unwrap_or_default();
        assert!(page.contains(&format!("`{name}")), "{name} is not in docs/metrics.md");
    }
}

/// The names and labels of all series; each may occur once.
fn series(text: &str) -> Vec<&str> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.rsplit_once(' ').expect("a value").0).collect()
}

#[test]
fn a_series_occurs_once_also_while_a_slot_has_two_workers() {
    let mut snapshot = example();
    let twin = snapshot.workers[0].clone();
    snapshot.workers.insert(1, twin);
    let memory = snapshot.workers[0].memory_bytes.expect("known");
    let text = one(snapshot, Format::OpenMetrics);
    let mut names = series(&text);
    names.sort_unstable();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count);
    has(&text, &format!(r#"master_process_worker_resident_memory_bytes{{slot="0"}} {}"#, 2 * memory));
    has(&text, r#"master_process_worker_state{slot="0",state="ready"} 2"#);
}

#[test]
fn several_instances_are_told_apart_by_name() {
    let instances = vec![
        Instance { name: "api".to_owned(), snapshot: Some(example()) },
        Instance { name: "b".to_owned(), snapshot: Some(example()) },
        Instance { name: "gone".to_owned(), snapshot: None },
    ];
    let text = all(instances, Format::OpenMetrics);
    has(&text, r#"master_process_up{name="api"} 1"#);
    has(&text, r#"master_process_up{name="gone"} 0"#);
    has(&text, r#"master_process_slots{name="b"} 4"#);
    has(&text, r#"master_process_worker_state{name="b",slot="2",state="hung"} 1"#);
    assert_eq!(text.matches("# TYPE master_process_slots ").count(), 1, "a family comes once");
    assert!(all(Vec::new(), Format::OpenMetrics).ends_with("# EOF\n"));
}

#[test]
fn a_label_cannot_break_out_of_its_quotes() {
    let instances = vec![Instance { name: "a\"} 1\nx{\\".to_owned(), snapshot: None }];
    has(&all(instances, Format::OpenMetrics), r#"master_process_up{name="a\"} 1\nx{\\"} 0"#);
}

#[test]
fn an_instance_with_a_full_queue_is_not_ready() {
    let mut snapshot = example();
    assert_eq!(not_ready(&snapshot).as_deref(), Some("3 of 4 slots are ready"));
    snapshot.state = crate::control::State::Ready;
    snapshot.queue_full = false;
    assert_eq!(not_ready(&snapshot), None);
    snapshot.queue_full = true;
    assert_eq!(not_ready(&snapshot).as_deref(), Some("an accept queue is full"));
    snapshot.state = crate::control::State::Stopping;
    assert_eq!(not_ready(&snapshot).as_deref(), Some("stopping"));
}

/// What a program says about the text; `None`: it is not installed.
fn checked(mut program: Command, text: &str) -> Option<(bool, String)> {
    let pipes = program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = pipes.spawn().ok()?;
    child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let said = [output.stdout, output.stderr].concat();
    Some((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
}

#[test]
fn promtool_finds_nothing_to_complain_about() {
    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]);
    match checked(promtool, &one(example(), Format::Prometheus)) {
        Some(said) => assert_eq!(said, (true, String::new())),
        None => eprintln!("skipped: promtool is not installed (Debian's package prometheus)"),
    }
}

#[test]
fn the_parser_of_pythons_client_takes_it() {
    let code = "\
import sys
try:
    from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse
except ImportError:
    sys.exit(77)
print(len([sample for family in parse(sys.stdin.read()) for sample in family.samples]))
";
    let instances = vec![Instance { name: "api".to_owned(), snapshot: Some(example()) }];
    for text in [one(example(), Format::OpenMetrics), all(instances, Format::OpenMetrics)] {
        let mut python = Command::new("python3");
        python.args(["-c", code]);
        let count = format!("{}\n", series(&text).len());
        match checked(python, &text) {
            Some((true, said)) => assert_eq!(said, count),
            Some((false, said)) if said.is_empty() => eprintln!("skipped: no prometheus_client for python3"),
            Some((false, said)) => panic!("{said}\n{text}"),
            None => eprintln!("skipped: no python3"),
        }
    }
}
