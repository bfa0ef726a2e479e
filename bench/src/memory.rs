//! How much memory a subject takes, and how much more with each worker.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::running::Running;
use super::stats::{ratio, summary};
use super::subject::Subject;

/// Promised: at most so much for the supervisor itself.
const PROMISED_KIB: f64 = 3.0 * 1024.0;

/// Promised: at most so much more for each worker: what `status` and `why` tell of it is kept.
const PROMISED_KIB_PER_WORKER: f64 = 3.0;

/// A supervisor has done by then what it does after the last start: it has loaded eBPF, and taken samples.
const SETTLED_AFTER: Duration = Duration::from_secs(5);

/// Memory comes in pages and does not vary; three starts are to notice when it does.
const ROUNDS: usize = 3;

/// Measures every subject with one worker and with many, prints a table, and gives the broken promises.
pub(crate) fn measure(subjects: &[Box<dyn Subject>], worker: &Path, workers: u32) -> Result<Vec<String>> {
    println!("\nmemory (PSS) of the process itself, KiB");
    println!("{:<34}{:>10}{:>14}{:>14}", "", "1 worker", format!("{workers} workers"), "each worker");
    let promised = PROMISED_KIB + PROMISED_KIB_PER_WORKER * f64::from(workers);
    let mut broken = Vec::new();
    for subject in subjects {
        let one = pss_kib(subject.as_ref(), worker, 1)?;
        let many = pss_kib(subject.as_ref(), worker, workers)?;
        let each = ratio(many.saturating_sub(one), u64::from(workers.saturating_sub(1).max(1)));
        println!("  {:<32}{one:>10}{many:>14}{each:>14.2}", subject.name());
        if !subject.is_ours() {
            continue;
        }
        let name = subject.name().trim();
        if ratio(one, 1) > PROMISED_KIB + PROMISED_KIB_PER_WORKER || ratio(many, 1) > promised {
            broken.push(format!(
                "memory, {name}: {one} KiB with 1 worker and {many} with {workers}, promised {promised}"
            ));
        }
        // Below this number the next page decides, and not the worker.
        if workers >= 100 && each > PROMISED_KIB_PER_WORKER {
            broken
                .push(format!("memory, {name}: {each:.2} KiB a worker, promised {PROMISED_KIB_PER_WORKER}"));
        }
    }
    println!(
        "  {:<32}{:>10}{promised:>14}{PROMISED_KIB_PER_WORKER:>14.2}",
        "promised",
        PROMISED_KIB + PROMISED_KIB_PER_WORKER
    );
    Ok(broken)
}

fn pss_kib(subject: &dyn Subject, worker: &Path, workers: u32) -> Result<u64> {
    let mut values = Vec::new();
    for _ in 0..ROUNDS {
        let (running, _) = Running::start(subject, workers, worker)?;
        std::thread::sleep(SETTLED_AFTER);
        values.push(running.pss_kib()?);
        running.end()?;
    }
    Ok(summary(values).map_or(0, |summary| summary.median))
}
