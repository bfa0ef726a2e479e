//! How long starts and replacements take.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::overhead::Options;
use super::running::Running;
use super::stats::{Summary, ratio, summary};
use super::subject::Subject;

/// Promised: at most this many times the baseline, for a start and for a replacement.
const PROMISED_RATIO: f64 = 1.6;

/// Left between two kills, so that each meets a subject that has finished with the last one, as in life. It is a
/// hundred times what a replacement takes.
const BREATH: Duration = Duration::from_millis(5);

/// What is timed of one subject, in nanoseconds.
#[derive(Default)]
struct Timings {
    start: Vec<u64>,
    respawn: Vec<u64>,
    burst: Vec<u64>,
}

/// Which of the timings a table shows.
type Column = fn(&Timings) -> &Vec<u64>;

/// Of which subjects that is promised.
type Promised = fn(&dyn Subject) -> bool;

/// Times every subject in every round, prints a table, and gives the broken promises.
pub(crate) fn measure(
    subjects: &[Box<dyn Subject>],
    worker: &Path,
    options: &Options,
) -> Result<Vec<String>> {
    let mut timings: Vec<Timings> = subjects.iter().map(|_| Timings::default()).collect();
    // One round more than requested: the first finds cold caches, and is not counted.
    for round in 0..=options.rounds as usize {
        // Each round begins with another subject, so that none is always the one after a rest.
        for turn in 0..subjects.len() {
            let which = (round + turn) % subjects.len();
            let timed = time(subjects[which].as_ref(), worker, options)?;
            if round > 0 {
                timings[which].start.extend(timed.start);
                timings[which].respawn.extend(timed.respawn);
                timings[which].burst.extend(timed.burst);
            }
        }
    }

    let workers = options.workers;
    println!("\n{workers} workers, {} rounds; microseconds, the spread is from 10 % to 90 %", options.rounds);
    println!("{:<34}{:>10}{:>20}{:>8}", "", "median", "spread", "ratio");
    let mut broken = Vec::new();
    // The last one is shown and not promised: it is the kernel's work on many filters at once, coming and going.
    let tables: [(String, Column, Promised); 3] = [
        (format!("start of {workers}"), |timings| &timings.start, |subject| subject.starts_bare()),
        ("replacement of one".into(), |timings| &timings.respawn, |_| true),
        (format!("replacement of {workers} at once"), |timings| &timings.burst, |_| false),
    ];
    for (what, values, promised) in tables {
        let Some(baseline) = timings.first().and_then(|timings| summary(values(timings).clone())) else {
            continue;
        };
        println!("{what}");
        for (subject, timings) in subjects.iter().zip(&timings) {
            let Some(row) = summary(values(timings).clone()) else {
                continue;
            };
            let ratio = ratio(row.median, baseline.median);
            print_row(subject.name(), row, ratio);
            if subject.is_ours() && promised(subject.as_ref()) && ratio > PROMISED_RATIO {
                broken.push(format!(
                    "{what}, {}: {ratio:.2} times the baseline, promised {PROMISED_RATIO}",
                    subject.name().trim()
                ));
            }
        }
    }
    Ok(broken)
}

fn time(subject: &dyn Subject, worker: &Path, options: &Options) -> Result<Timings> {
    let mut timings = Timings::default();
    let (mut running, start) = Running::start(subject, options.workers, worker)?;
    if options.start {
        timings.start.push(start);
    }
    if options.respawn {
        for _ in 0..options.kills {
            std::thread::sleep(BREATH);
            timings.respawn.push(running.kill_one()?);
        }
        for _ in 0..options.bursts {
            std::thread::sleep(BREATH * 4);
            timings.burst.push(running.kill_all()?);
        }
    }
    running.end()?;
    Ok(timings)
}

fn print_row(name: &str, row: Summary, ratio: f64) {
    let spread = format!("{} .. {}", micros(row.low), micros(row.high));
    println!("  {name:<32}{:>10}{spread:>20}{ratio:>8.2}", micros(row.median));
}

fn micros(ns: u64) -> u64 {
    ns.div_ceil(1000)
}
