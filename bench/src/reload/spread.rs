//! How connections that stay fall on the workers.

use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use master_process_tests::load::Target;
use master_process_tests::process;

use super::program::{Program, Programs};
use super::site::{Over, Site};
use super::{Section, caught, left_out, row, table};

const WORKERS: usize = 4;

const CONNECTIONS: usize = 400;

/// Promised of each worker: an even spread is 100, and chance alone stays within 40 of it in all but one of 100,000 runs.
const FEWEST: usize = 60;
const MOST: usize = 150;

/// On the loopback network: a listener has room, or not.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// Measures the default and one queue for all.
pub(super) fn measure(programs: &Programs) -> Section {
    let mut section = Section::default();
    let head = ["`--share`", "connections of each worker"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    if !programs.wanted(Program::NodePlain) {
        return section;
    }
    for share in ["auto", "shared"] {
        match caught(|| held(programs, share)) {
            Ok(counts) => {
                let shown: Vec<String> = counts.iter().map(usize::to_string).collect();
                let shown = shown.join(" / ");
                if share == "auto" && counts.iter().any(|count| !(FEWEST..=MOST).contains(count)) {
                    section.broken.push(format!("spread: {shown}, promised {FEWEST} to {MOST} each"));
                }
                rows.push(row([&format!("`{share}`"), &shown]));
            }
            Err(error) => {
                section.broken.push(format!("spread, {share}: not measured, {error:#}"));
                rows.push(left_out(share, head.len(), &format!("{error:#}")));
            }
        }
    }
    section.text =
        format!("{CONNECTIONS} idle connections over {WORKERS} workers of node:\n\n{}", table(&rows));
    section
}

/// The connections of each worker while all are open, the most first. They are counted where they are: among the
/// worker's descriptors.
fn held(programs: &Programs, share: &str) -> Result<Vec<usize>> {
    let site = Site::start(programs, Program::NodePlain, Over::Tcp, share, WORKERS)?;
    let idle: Vec<(i32, usize)> =
        site.supervisor.await_workers(WORKERS).into_iter().map(|pid| (pid, sockets(pid))).collect();
    let Target::Tcp(address) = site.target else { bail!("this is about TCP") };
    // No request is sent: a worker that has work gets less of a queue that all share, and these are idle.
    let connections: Vec<TcpStream> = (0..CONNECTIONS)
        .map(|_| TcpStream::connect_timeout(&address, CONNECT_TIMEOUT).context("connecting"))
        .collect::<Result<_>>()?;
    let mut counts = site.until("all connections are open", || {
        let counts: Vec<usize> =
            idle.iter().map(|(pid, before)| sockets(*pid).saturating_sub(*before)).collect();
        (counts.iter().sum::<usize>() == CONNECTIONS).then_some(counts)
    });
    drop(connections);
    site.end()?;
    counts.sort_unstable_by(|one, other| other.cmp(one));
    Ok(counts)
}

fn sockets(pid: i32) -> usize {
    let is_socket = |file: &Path| file.to_string_lossy().starts_with("socket:");
    process::descriptors(pid).iter().filter(|(_, file)| is_socket(file)).count()
}
