//! What upgrades in place cost: requests that fail meanwhile, the pause in which no event is handled, and what is left.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use master_process_tests::control::Client;
use master_process_tests::load::{Connections, Load};
use master_process_tests::upgraded::Upgraded;
use master_process_tests::{address, fixtures, process};

use super::control::Steered;
use super::reload::{row, table};
use super::running::Running;
use super::stats::{Summary, ratio, summary};

/// What is run.
pub(crate) struct Options {
    pub(crate) program: PathBuf,
    pub(crate) listener: PathBuf,
    /// Of the upgrades under load, at least.
    pub(crate) requests: u64,
    pub(crate) upgrades: u64,
    /// The idle workers of a supervisor with many.
    pub(crate) workers: u32,
    pub(crate) rounds: u32,
    /// The upgrades one after the other.
    pub(crate) repeats: u32,
    /// A broken promise is a failure.
    pub(crate) check: bool,
}

/// Promised: the pause with a thousand idle workers, in milliseconds, in the median. The goal is 20.
const PAUSE_MS: f64 = 40.0;

/// Promised: what many upgrades add to the supervisor's own memory, in KiB, and to its descriptors.
const GROWTH_KIB: u64 = 512;
const MORE_DESCRIPTORS: usize = 3;

/// The workers under load, and the clients.
const WORKERS: usize = 4;
const CLIENTS: usize = 16;

/// The time after which the last upgrade has done all that follows it.
const SETTLED_WITHIN: Duration = Duration::from_secs(10);

const TIMEOUT: Duration = Duration::from_secs(600);

/// Measures, prints the tables, and with `check` fails when a promise is broken.
pub(crate) fn run(options: &Options) -> Result<()> {
    let mut broken = Vec::new();
    broken.extend(under_load(options)?);
    broken.extend(idle(options)?);
    broken.extend(repeated(options)?);
    for promise in &broken {
        println!("BROKEN: {promise}");
    }
    if options.check && !broken.is_empty() {
        bail!("{} promises are broken", broken.len());
    }
    Ok(())
}

/// The pause of the last upgrade, in nanoseconds, and the number of all.
fn last_pause(client: &mut Client) -> Option<(u64, u64)> {
    let answer = client.ask(r#"{"command":"status"}"#);
    let last = &answer["status"]["upgraded"];
    let pause = Duration::try_from_secs_f64(last["pause_seconds"].as_f64()?).ok()?;
    Some((u64::try_from(pause.as_nanos()).ok()?, last["count"].as_u64()?))
}

fn milliseconds(nanoseconds: u64) -> f64 {
    ratio(nanoseconds, 1_000_000)
}

/// The cells of a table: the median of the pauses, the spread, and the longest one.
fn cells(pauses: &[u64]) -> Result<[String; 3]> {
    let Summary { median, low, high } = summary(pauses.to_vec()).context("nothing was measured")?;
    let longest = pauses.iter().max().copied().unwrap_or_default();
    let [median, low, high, longest] = [median, low, high, longest].map(milliseconds);
    Ok([format!("{median:.1} ms"), format!("{low:.1}–{high:.1} ms"), format!("{longest:.1} ms")])
}

/// Upgrades to a new file each time while clients send requests.
fn under_load(options: &Options) -> Result<Vec<String>> {
    let (upgraded, address) = (Upgraded::new(), address::tcp());
    let builder = upgraded.builder().args(["-w", &WORKERS.to_string()]).env("LISTEN", address.to_string());
    let supervisor = builder.command(fixtures::python_http()).spawn();
    upgraded.controlled.await_ready(WORKERS as u64);
    let (pid, before) = (supervisor.pid(), supervisor.workers());
    let clients = Load::start(address, CLIENTS, Connections::Fresh);
    let ended = || {
        let tally = clients.tally();
        tally.served() + tally.lost() + tally.inexcusable()
    };
    let await_requests = |due: u64| -> Result<()> {
        let deadline = Instant::now() + TIMEOUT;
        while ended() < due {
            ensure!(Instant::now() < deadline, "{} of {due} requests", ended());
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    };
    let mut pauses = Vec::new();
    for upgrade in 1..=options.upgrades {
        await_requests(upgrade * options.requests / (options.upgrades + 1))?;
        upgraded.replace_by_copy();
        upgraded.upgrade();
        pauses.push(last_pause(&mut upgraded.controlled.client()).context("no upgrade is known")?.0);
    }
    await_requests(options.requests)?;
    let tally = clients.stop();
    let failed = tally.lost() + tally.inexcusable();
    let kept = before.intersection(&supervisor.workers()).count();
    let same =
        supervisor.pid() == pid && upgraded.controlled.status()["upgraded"]["count"] == options.upgrades;
    ensure!(supervisor.stop() == 0, "the supervisor did not stop in order");
    let [median, spread, longest] = cells(&pauses)?;
    println!(
        "{} upgrades while {CLIENTS} clients send requests, each on a connection of its own:\n",
        options.upgrades
    );
    let head = ["requests", "failed", "workers with the same pid", "pause, median", "spread", "longest"];
    let kept_of = format!("{kept} of {}", before.len());
    let requests = tally.served() + failed;
    println!(
        "{}",
        table(&[
            row(head.each_ref().map(|cell| cell as _)),
            row([&requests, &failed, &kept_of, &median, &spread, &longest])
        ])
    );
    let mut broken = Vec::new();
    if failed > 0 {
        broken.push(format!("upgrades under load: {failed} requests failed: {tally}"));
    }
    if kept < before.len() || !same {
        broken.push(format!("upgrades under load: {kept} of {} workers kept their pids", before.len()));
    }
    Ok(broken)
}

/// Upgrades of many workers that do nothing, each with a listener.
fn idle(options: &Options) -> Result<Vec<String>> {
    let folder = tempfile::tempdir().context("a temporary folder")?;
    let steered = Steered { program: &options.program, folder: folder.path(), listens: true };
    let (running, _took) = Running::start(&steered, options.workers, &options.listener)?;
    let path = steered.socket("control.sock");
    let deadline = Instant::now() + TIMEOUT;
    let mut client = Client::connect(&path);
    while client.ask(r#"{"command":"status"}"#)["status"]["workers_ready"] != options.workers {
        ensure!(Instant::now() < deadline, "the workers are not ready");
        std::thread::sleep(Duration::from_millis(100));
    }
    let mut pauses = Vec::new();
    for round in 1..=u64::from(options.rounds) {
        // After the start, and after each upgrade, eBPF is loaded.
        std::thread::sleep(Duration::from_secs(1));
        client.ask(r#"{"command":"upgrade"}"#);
        pauses.push(loop {
            match last_pause(&mut client) {
                Some((pause, count)) if count == round => break pause,
                _not_yet => ensure!(Instant::now() < deadline, "no upgrade {round}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        });
    }
    drop(running);
    let [median, spread, longest] = cells(&pauses)?;
    println!("{} upgrades of idle workers, each with a listener:\n", options.rounds);
    let head = ["workers", "pause, median", "spread", "longest"];
    println!(
        "{}",
        table(&[
            row(head.each_ref().map(|cell| cell as _)),
            row([&options.workers, &median, &spread, &longest])
        ])
    );
    let median = summary(pauses).map_or(0.0, |summary| milliseconds(summary.median));
    let is_broken = options.workers <= 1000 && median > PAUSE_MS;
    let line = format!("{} workers: a pause of {median:.1} ms, promised {PAUSE_MS} ms", options.workers);
    Ok(is_broken.then_some(line).into_iter().collect())
}

/// Upgrades one after the other, with the descriptors and the memory before and after.
fn repeated(options: &Options) -> Result<Vec<String>> {
    let (upgraded, address) = (Upgraded::new(), address::tcp());
    let builder = upgraded.builder().args(["-w", "3"]).env("LISTEN", address.to_string());
    let supervisor = builder.command(fixtures::python_http()).spawn();
    upgraded.controlled.await_ready(3);
    let (pid, before) = (supervisor.pid(), supervisor.workers());
    let anonymous = || -> Result<u64> {
        let text = process::status(pid, "RssAnon").context("the supervisor is gone")?;
        Ok(text.trim_end_matches("kB").trim().parse()?)
    };
    let clients = Load::start(address, 2, Connections::Fresh);
    let mut pauses = Vec::new();
    let upgrade = |pauses: &mut Vec<u64>| -> Result<()> {
        upgraded.upgrade();
        pauses.push(last_pause(&mut upgraded.controlled.client()).context("no upgrade is known")?.0);
        Ok(())
    };
    // eBPF, whose descriptors count, is loaded after the start and after each upgrade.
    let measures = |times: usize| {
        supervisor.eventually("it measures", || supervisor.logged(&["monitor: "]).len() >= times);
    };
    measures(1);
    for upgrades in 1..=3 {
        upgrade(&mut pauses)?;
        measures(1 + upgrades);
    }
    let (descriptors, memory) = (process::descriptors(pid).len(), anonymous()?);
    for _ in 0..options.repeats {
        upgrade(&mut pauses)?;
    }
    // While eBPF is loaded there are some more.
    let deadline = Instant::now() + SETTLED_WITHIN;
    while process::descriptors(pid).len() > descriptors && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
    let (descriptors_after, memory_after) = (process::descriptors(pid).len(), anonymous()?);
    let tally = clients.stop();
    let failed = tally.lost() + tally.inexcusable();
    let kept = before.intersection(&supervisor.workers()).count();
    ensure!(supervisor.stop() == 0, "the supervisor did not stop in order");
    let [median, spread, longest] = cells(&pauses)?;
    println!("{} upgrades one after the other, under load:\n", options.repeats);
    let head = [
        "requests",
        "failed",
        "workers with the same pid",
        "descriptors before",
        "after",
        "own memory before",
        "after",
        "pause, median",
        "spread",
        "longest",
    ];
    let cells: [&dyn std::fmt::Display; 10] = [
        &(tally.served() + failed),
        &failed,
        &format!("{kept} of {}", before.len()),
        &descriptors,
        &descriptors_after,
        &format!("{memory} KiB"),
        &format!("{memory_after} KiB"),
        &median,
        &spread,
        &longest,
    ];
    println!("{}", table(&[row(head.each_ref().map(|cell| cell as _)), row(cells)]));
    let mut broken = Vec::new();
    if failed > 0 || kept < before.len() {
        broken.push(format!("{} upgrades: {failed} requests failed, {kept} workers kept", options.repeats));
    }
    if descriptors_after > descriptors + MORE_DESCRIPTORS || memory_after > memory + GROWTH_KIB {
        broken.push(format!(
            "{} upgrades: {descriptors} descriptors and {memory} KiB before, {descriptors_after} and {memory_after} KiB after",
            options.repeats
        ));
    }
    Ok(broken)
}
