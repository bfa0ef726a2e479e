//! The supervisor killed under load: with `--orphans keep` its workers serve on.

use anyhow::{Result, ensure};
use master_process_tests::load::{Connections, Tally};
use master_process_tests::process::{self, Stat};
use master_process_tests::{TIMEOUT, eventually};
use rustix::process::Signal;

use super::clients::{Clients, ended, failed};
use super::program::{Program, Programs};
use super::site::{Over, Site};
use super::{Section, caught, left_out, row, table};

const WORKERS: usize = 4;

const CLIENTS: usize = 16;

/// Each with a supervisor of its own: one can be killed once.
const ROUNDS: usize = 5;

/// What each worker answers before the kill, and once more after it.
const EACH: u64 = 500;

/// Measures every row.
pub(super) fn measure(programs: &Programs) -> Section {
    let mut section = Section::default();
    let head = ["workers", "requests", "refused", "other failures", "lost"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let all = [Program::NodePlain, Program::Go, Program::PythonHttp];
    for program in all.into_iter().filter(|program| programs.wanted(*program)) {
        let name = program.name();
        match caught(|| rounds(programs, program)) {
            Ok(tallies) => {
                tallies.iter().for_each(|tally| eprintln!("{name}: {tally}"));
                let sum = |of: fn(&Tally) -> u64| tallies.iter().map(of).sum::<u64>();
                if sum(failed) > 0 {
                    section.broken.push(format!("orphans, {name}: {} requests failed", sum(failed)));
                }
                let other = sum(Tally::inexcusable) - sum(|tally| tally.refused);
                rows.push(row([&name, &sum(ended), &sum(|tally| tally.refused), &other, &sum(Tally::lost)]));
            }
            Err(error) => {
                section.broken.push(format!("orphans, {name}: not measured, {error:#}"));
                rows.push(left_out(name, head.len(), &format!("{error:#}")));
            }
        }
    }
    section.text = format!(
        "`kill -9` of the supervisor, with `--orphans keep` and {WORKERS} workers that a reload has just started, while \
         {CLIENTS} clients send requests, {ROUNDS} times. Its workers keep serving.\n\n{}",
        table(&rows)
    );
    section
}

fn rounds(programs: &Programs, program: Program) -> Result<Vec<Tally>> {
    (0..ROUNDS).map(|_| orphaned(programs, program)).collect()
}

/// The outcomes of one round. The workers end with the site, which finds them by their marks.
fn orphaned(programs: &Programs, program: Program) -> Result<Tally> {
    let site = Site::start_with(programs, program, Over::Tcp, &["--orphans", "keep"], WORKERS)?;
    let workers: Vec<Stat> = site.supervisor.reload(WORKERS).into_iter().filter_map(process::stat).collect();
    let clients = site.waiting_clients(CLIENTS, Connections::Fresh);
    all_answer(&clients, &workers);
    site.supervisor.signal(Signal::KILL);
    eventually(TIMEOUT, "the supervisor is gone", || site.supervisor.exited().is_some());
    all_answer(&clients, &workers);
    let tally = clients.stop();
    ensure!(tally.ok.len() == WORKERS, "{} processes have answered, not {WORKERS}", tally.ok.len());
    Ok(tally)
}

fn all_answer(clients: &Clients, workers: &[Stat]) {
    let answers = |tally: &Tally, worker: &Stat| tally.ok.get(&worker.pid.to_string()).copied().unwrap_or(0);
    let before = clients.tally();
    eventually(TIMEOUT, "every worker answers", || {
        let now = clients.tally();
        workers.iter().all(|worker| answers(&now, worker) >= answers(&before, worker) + EACH)
    });
}
