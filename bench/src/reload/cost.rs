//! What sharing costs a request: the same program with and without it, in turns.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use master_process_tests::load::Target;
use rustix::param::clock_ticks_per_second;

use xtask::run;

use super::program::{Program, Programs};
use super::site::{Over, Site};
use super::{Section, caught, left_out, row, table};

/// Promised: at least so much of the throughput without sharing.
const PROMISED: f64 = 0.95;

/// The median is of these; each has both sides beside each other, so that what else the machine does meets both.
const PAIRS: usize = 5;

/// Long enough that the ends of a run do not matter and short enough that both sides of a pair meet the same machine.
const SECONDS: &str = "3s";

/// Clients of a run, in one thread: the other CPU is the program's.
const CONNECTIONS: &str = "32";

/// What one run has shown.
#[derive(Clone, Copy)]
struct Speed {
    per_second: f64,
    /// CPU time of the worker for each request.
    micros: f64,
}

/// Measures every row.
pub(super) fn measure(programs: &Programs) -> Section {
    let mut section = Section::default();
    let head = ["program", "shared, requests/s", "alone, requests/s", "ratio", "ratio of CPU time"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for program in [Program::Hyper, Program::Go].into_iter().filter(|program| programs.wanted(*program)) {
        for keep in [true, false] {
            let connections = if keep { "kept alive" } else { "one for each request" };
            let name = format!("{}, connections {connections}", program.name());
            match caught(|| pairs(programs, program, keep)) {
                Ok(pairs) => {
                    let of = |value: fn(&(Speed, Speed)) -> f64| median(pairs.iter().map(value).collect());
                    let ratio = of(|(shared, alone)| shared.per_second / alone.per_second);
                    let cpu = of(|(shared, alone)| shared.micros / alone.micros);
                    let (shared, alone) = (of(|pair| pair.0.per_second), of(|pair| pair.1.per_second));
                    if ratio < PROMISED {
                        section.broken.push(format!("cost, {name}: {ratio:.3}, promised {PROMISED}"));
                    }
                    rows.push(row([
                        &name,
                        &format!("{shared:.0}"),
                        &format!("{alone:.0}"),
                        &format!("{ratio:.3}"),
                        &format!("{cpu:.3}"),
                    ]));
                }
                Err(error) => {
                    section.broken.push(format!("cost, {name}: not measured, {error:#}"));
                    rows.push(left_out(&name, head.len(), &format!("{error:#}")));
                }
            }
        }
    }
    section.text = format!(
        "One worker with `--share slots` and with `--share off`, in turns; medians of {PAIRS} pairs of runs of {SECONDS}. The \
         CPU time is the worker's for each request.\n\n{}",
        table(&rows)
    );
    section
}

/// Pairs of runs, with sharing and without. Each has two programs of its own: where one happens to lie in memory is worth
/// some percent for as long as it lives, and would be taken for what sharing costs.
fn pairs(programs: &Programs, program: Program, keep: bool) -> Result<Vec<(Speed, Speed)>> {
    let mut pairs = Vec::new();
    // One more than counted: the first finds cold caches.
    for round in 0..=PAIRS {
        let sites = ["slots", "off"].map(|share| Site::start(programs, program, Over::Tcp, share, 1));
        let [shared, alone] = sites;
        let (shared, alone) = (shared?, alone?);
        // Neither is always the one after the other.
        let pair = if round % 2 == 0 {
            let first = speed(&shared, keep)?;
            (first, speed(&alone, keep)?)
        } else {
            let first = speed(&alone, keep)?;
            (speed(&shared, keep)?, first)
        };
        eprintln!("{}: {:.0} and {:.0}", program.name(), pair.0.per_second, pair.1.per_second);
        if round > 0 {
            pairs.push(pair);
        }
        shared.end()?;
        alone.end()?;
    }
    Ok(pairs)
}

fn speed(site: &Site, keep: bool) -> Result<Speed> {
    let Target::Tcp(address) = site.target else { anyhow::bail!("wrk speaks TCP") };
    let worker = site.supervisor.await_workers(1).into_iter().next().context("no worker runs")?;
    let before = cpu_seconds(worker)?;
    let output = Command::new(run::find("wrk").context("wrk is not installed")?)
        .args(["--threads", "1", "--connections", CONNECTIONS, "--duration", SECONDS])
        .args(["--header", if keep { "Connection: keep-alive" } else { "Connection: close" }])
        .arg(format!("http://{address}/"))
        .stdin(Stdio::null())
        .output()
        .context("starting wrk")?;
    let cpu = cpu_seconds(worker)? - before;
    ensure!(output.status.success(), "wrk ended with {}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    // A failed request costs nothing and counts for nothing: a run with one is no measurement.
    ensure!(
        !text.contains("Socket errors") && !text.contains("Non-2xx"),
        "requests failed: {}",
        text.lines().filter(|line| line.contains("errors") || line.contains("Non-2xx")).collect::<String>()
    );
    let (requests, per_second) = parse(&text).context("wrk printed no result")?;
    Ok(Speed { per_second, micros: cpu * 1e6 / requests })
}

/// How many requests, and how many a second, of what wrk prints.
fn parse(text: &str) -> Option<(f64, f64)> {
    let requests = text.lines().find_map(|line| line.trim().split_once(" requests in ")?.0.parse().ok())?;
    let per_second =
        text.lines().find_map(|line| line.trim().strip_prefix("Requests/sec:")?.trim().parse().ok())?;
    Some((requests, per_second))
}

/// What a process has used so far, all its threads together.
fn cpu_seconds(pid: i32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    // After the name, which may hold anything, come the fields from the third on; the times are fields 14 and 15.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: Vec<u32> = fields.skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    ensure!(ticks.len() == 2, "no times in {path}");
    let second = u32::try_from(clock_ticks_per_second()).context("the clock ticks too fast")?;
    Ok(f64::from(ticks.iter().sum::<u32>()) / f64::from(second))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_is_read_from_what_wrk_prints() {
        let text = "Running 3s test @ http://127.0.0.1:3000/\n  2 threads and 32 connections\n  \
                    59032 requests in 3.00s, 7.71MB read\nRequests/sec:  19670.61\nTransfer/sec:      2.57MB\n";
        assert_eq!(parse(text), Some((59032.0, 19670.61)));
        assert_eq!(parse("unable to connect to 127.0.0.1:1 Connection refused\n"), None);
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
    }

    #[test]
    fn this_process_has_used_some_time() -> Result<()> {
        let pid = i32::try_from(std::process::id())?;
        assert!(cpu_seconds(pid)? >= 0.0);
        Ok(())
    }
}
