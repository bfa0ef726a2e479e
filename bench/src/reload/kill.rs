//! Workers killed under load: what they had accepted is lost, and nothing else.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::Result;
use master_process_tests::load::{Connections, Tally};
use master_process_tests::process;

use super::clients::{Clients, ended, failed};
use super::program::{Program, Programs};
use super::site::{Over, Site};
use super::{Section, caught, left_out, row, table};

const WORKERS: usize = 4;

/// Each has one request at a time: that many can have been accepted at most.
const CLIENTS: usize = 16;

/// One kill can hit a moment in which nothing is at hand.
const ROUNDS: usize = 5;

/// Longer than the default `--throttle`: a worker that dies sooner is replaced with a delay, and that is not the case
/// that is looked at.
const PAST_THE_THROTTLE: Duration = Duration::from_millis(1100);

/// How many are killed at a time.
#[derive(Clone, Copy)]
enum Victims {
    One,
    All,
}

/// What the kills of one row have cost.
#[derive(Default)]
struct Costs {
    requests: u64,
    refused: u64,
    /// Failed in a way that no worker's death explains, refused ones included.
    inexcusable: u64,
    /// Lost in the worst round.
    lost: u64,
    /// From the kill until a new worker answered, in the worst round.
    gap: Duration,
    /// The longest that a client waited, in the worst round: in the second before a kill, and from then until the
    /// replacements serve.
    undisturbed: Duration,
    longest: Duration,
}

/// Measures every row.
pub(super) fn measure(programs: &Programs) -> Section {
    let mut section = Section::default();
    let head = [
        "killed",
        "requests",
        "refused",
        "other failures",
        "lost by a kill, at most",
        "new worker answers after",
        "longest wait before",
        "longest wait with the kill",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for program in [Program::NodePlain, Program::Go].into_iter().filter(|program| programs.wanted(*program)) {
        for victims in [Victims::One, Victims::All] {
            let killed = match victims {
                Victims::One => format!("one of {WORKERS}"),
                Victims::All => format!("all {WORKERS} at once"),
            };
            let name = format!("{}: {killed}", program.name());
            match caught(|| killed_under_load(programs, program, victims)) {
                Ok(costs) => {
                    section.broken.extend(broken(&name, &costs));
                    let gap = format!("{} ms", costs.gap.as_millis());
                    let unexplained = costs.inexcusable - costs.refused;
                    let millis = |span: Duration| format!("{:.1} ms", span.as_secs_f64() * 1e3);
                    let (before, with) = (millis(costs.undisturbed), millis(costs.longest));
                    rows.push(row([
                        &name,
                        &costs.requests,
                        &costs.refused,
                        &unexplained,
                        &costs.lost,
                        &gap,
                        &before,
                        &with,
                    ]));
                }
                Err(error) => {
                    section.broken.push(format!("kill, {name}: not measured, {error:#}"));
                    rows.push(left_out(&name, head.len(), &format!("{error:#}")));
                }
            }
        }
    }
    section.text = format!(
        "`kill -9` while {CLIENTS} clients send requests, {ROUNDS} times. What a worker had accepted dies with it, at most one \
         request of each client; what waits is served by the others, or by the next worker.\n\n{}",
        table(&rows)
    );
    section
}

fn broken(name: &str, costs: &Costs) -> Vec<String> {
    let mut broken = Vec::new();
    if costs.inexcusable > 0 {
        broken
            .push(format!("kill, {name}: {} requests failed that no worker had accepted", costs.inexcusable));
    }
    if costs.lost > CLIENTS as u64 {
        broken.push(format!("kill, {name}: {} requests lost by one kill, of {CLIENTS} clients", costs.lost));
    }
    broken
}

fn killed_under_load(programs: &Programs, program: Program, victims: Victims) -> Result<Costs> {
    let site = Site::start(programs, program, Over::Tcp, "auto", WORKERS)?;
    let clients = site.waiting_clients(CLIENTS, Connections::Fresh);
    let mut costs = Costs::default();
    for _ in 0..ROUNDS {
        let workers = site.supervisor.await_workers(WORKERS);
        let (seen, before) = (Instant::now(), clients.tally());
        let all_serve =
            |tally: &Tally| workers.iter().all(|pid| answers(tally, *pid) > answers(&before, *pid));
        site.eventually("every worker serves, and has lived for a while", || {
            seen.elapsed() > PAST_THE_THROTTLE && all_serve(&clients.tally())
        });
        costs.undisturbed = costs.undisturbed.max(clients.take_longest());
        let gap = kill(&site, &clients, &workers, victims);
        costs.longest = costs.longest.max(clients.take_longest());
        costs.gap = costs.gap.max(gap);
        let after = clients.tally();
        costs.lost = costs.lost.max(after.lost() - before.lost());
    }
    let tally = clients.stop();
    site.end()?;
    eprintln!("{}: {tally}", program.name());
    costs.requests = ended(&tally);
    costs.refused = tally.refused;
    costs.inexcusable = failed(&tally) - tally.lost();
    Ok(costs)
}

/// Kills, and waits until everybody has a replacement and all of those have answered. The time until the first did.
fn kill(site: &Site, clients: &Clients, workers: &BTreeSet<i32>, victims: Victims) -> Duration {
    let count = match victims {
        Victims::One => 1,
        Victims::All => WORKERS,
    };
    let known = clients.tally();
    let dying: Vec<_> = workers.iter().take(count).filter_map(|pid| process::stat(*pid)).collect();
    let begun = Instant::now();
    dying.iter().copied().for_each(process::kill_exactly);
    let new = |tally: &Tally| tally.ok.keys().filter(|pid| !known.ok.contains_key(*pid)).count();
    site.eventually("a new worker answers", || new(&clients.tally()) > 0);
    let gap = begun.elapsed();
    site.eventually("every new worker answers", || new(&clients.tally()) >= count);
    gap
}

fn answers(tally: &Tally, pid: i32) -> u64 {
    tally.ok.get(&pid.to_string()).copied().unwrap_or_default()
}
