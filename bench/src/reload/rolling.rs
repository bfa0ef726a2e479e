//! Rolling restarts under load.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use master_process_tests::load::{Connections, Tally};
use rustix::process::Signal;

use super::clients::{Clients, ended, failed};
use super::program::{Program, Programs};
use super::site::{Over, Rights, Site};
use super::{Section, caught, left_out, row, table};

/// Of each row.
const RELOADS: u64 = 8;

const WORKERS: usize = 4;

/// Enough that every worker has requests at hand at every moment, and few enough that the machine is the programs'.
const CLIENTS: usize = 16;

/// One row.
struct Case {
    program: Program,
    over: Over,
    share: &'static str,
    connections: Connections,
    rights: Rights,
}

impl Case {
    /// Nothing may fail in it. What is not the default is shown for comparison; what happens to a kept connection that
    /// its server closes is no supervisor's to decide.
    fn is_promised(&self) -> bool {
        self.share == "auto" && self.connections == Connections::Fresh
    }

    fn name(&self) -> String {
        let mut name = self.program.name().to_owned();
        if self.over == Over::Unix {
            name += ", Unix socket";
        }
        if self.share != "auto" {
            name = format!("{name}, `--share {}`", self.share);
        }
        if self.connections == Connections::KeepAlive {
            name += ", kept alive";
        }
        match self.rights {
            Rights::All => {}
            Rights::WithoutBpf => name += ", without CAP_BPF",
            Rights::User => name += ", ordinary user",
            Rights::Container => name += ", container profile",
        }
        name
    }
}

fn cases() -> Vec<Case> {
    let case =
        |program, over, share, connections| Case { program, over, share, connections, rights: Rights::All };
    let (plain, graceful) = (Program::NodePlain, Program::NodeGraceful);
    let mut cases: Vec<Case> = Program::ALL
        .into_iter()
        .map(|program| case(program, Over::Tcp, "auto", Connections::Fresh))
        .collect();
    cases.extend([
        case(plain, Over::Unix, "auto", Connections::Fresh),
        case(Program::Uvicorn, Over::Unix, "auto", Connections::Fresh),
        case(plain, Over::Tcp, "shared", Connections::Fresh),
        case(plain, Over::Tcp, "auto", Connections::KeepAlive),
        case(graceful, Over::Tcp, "auto", Connections::KeepAlive),
    ]);
    for rights in [Rights::WithoutBpf, Rights::User, Rights::Container] {
        for program in [plain, Program::Go] {
            cases.push(Case { rights, ..case(program, Over::Tcp, "auto", Connections::Fresh) });
        }
    }
    cases
}

/// Measures every row.
pub(super) fn measure(programs: &Programs, requests: u64) -> Section {
    let mut section = Section::default();
    let head = [
        "program",
        "requests",
        "refused",
        "reset",
        "timed out",
        "truncated",
        "other",
        "closed while idle",
        "answered by",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for case in cases().iter().filter(|case| programs.wanted(case.program)) {
        let name = case.name();
        match caught(|| rolled(programs, case, requests)) {
            Ok(tally) => {
                eprintln!("{name}: {tally}");
                if case.is_promised() && failed(&tally) > 0 {
                    section.broken.push(format!("reload, {name}: {} requests failed", failed(&tally)));
                }
                rows.push(row_of(&name, &tally));
            }
            Err(error) => {
                eprintln!("{name}: {error:#}");
                section.broken.push(format!("reload, {name}: not measured, {error:#}"));
                rows.push(left_out(&name, head.len(), &format!("{error:#}")));
            }
        }
    }
    section.text = format!(
        "{RELOADS} reloads of {WORKERS} workers while {CLIENTS} clients send requests, each on a connection of its own \
         unless it says otherwise. The last column is the number of processes that answered.\n\n{}",
        table(&rows)
    );
    section
}

fn row_of(name: &str, tally: &Tally) -> Vec<String> {
    let other: u64 = tally.other.values().sum();
    // The answers of redis have no pid.
    let processes = if tally.pids().is_empty() { "–".to_owned() } else { tally.ok.len().to_string() };
    row([
        &name,
        &ended(tally),
        &tally.refused,
        &tally.reset,
        &tally.timeout,
        &tally.truncated,
        &other,
        &tally.idle_closed,
        &processes,
    ])
}

fn rolled(programs: &Programs, case: &Case, requests: u64) -> Result<Tally> {
    let options = ["--share", case.share];
    let site = Site::start_as(case.rights, programs, case.program, case.over, &options, WORKERS)?;
    let clients = site.waiting_clients(CLIENTS, case.connections);
    let mut witness = Witness::default();
    for reload in 1..=RELOADS {
        let due = due(reload, requests);
        site.eventually("the requests between two reloads", || witness.look(&clients) >= due);
        site.supervisor.signal(Signal::HUP);
        let line = format!("reload {reload} complete after");
        site.eventually(&line, || {
            witness.look(&clients);
            !site.supervisor.logged(&[&line]).is_empty()
        });
    }
    site.eventually("the requests of the row", || witness.look(&clients) >= requests);
    let tally = clients.stop();
    if case.is_promised() && failed(&tally) > 0 {
        // What the supervisor did around that moment says why.
        witness.moments.iter().for_each(|moment| eprintln!("{moment}"));
        site.supervisor.log().iter().for_each(|line| eprintln!("{line}"));
    }
    site.end()?;
    Ok(tally)
}

/// Remembers when requests failed.
#[derive(Default)]
struct Witness {
    failed: u64,
    moments: Vec<String>,
}

impl Witness {
    /// How many requests are over.
    fn look(&mut self, clients: &Clients) -> u64 {
        let tally = clients.tally();
        if failed(&tally) > self.failed {
            self.failed = failed(&tally);
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let (day, millis) = (now.as_secs() % 86_400, now.subsec_millis());
            let (hour, minute, second) = (day / 3600, day / 60 % 60, day % 60);
            let failed = self.failed;
            self.moments.push(format!(
                "{hour:02}:{minute:02}:{second:02}.{millis:03}Z: {failed} failed so far: {tally}"
            ));
        }
        ended(&tally)
    }
}

/// How many requests are to be over before a reload. They come in pairs, spread over the row: the second of a pair
/// comes as soon as the first is complete, while the workers before it still drain.
fn due(reload: u64, requests: u64) -> u64 {
    reload.div_ceil(2) * requests / (RELOADS / 2 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reloads_lie_within_the_requests() {
        let dues: Vec<u64> = (1..=RELOADS).map(|reload| due(reload, 50_000)).collect();
        assert_eq!(dues, [10_000, 10_000, 20_000, 20_000, 30_000, 30_000, 40_000, 40_000]);
    }
}
