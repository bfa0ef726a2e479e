//! What is printed of a comparison.

use std::collections::BTreeSet;
use std::time::Duration;

use super::job::Way;
use super::known::{self, KNOWN};
use super::rounds::{Rounds, Verdict};

/// What was found of one suite.
pub(super) struct Report {
    suite: &'static str,
    /// Why it was not run.
    error: Option<String>,
    tests: usize,
    failed_alone: usize,
    failed_as_worker: usize,
    /// The tests that differ, with what became of them.
    different: Vec<(String, String)>,
    flaky: Vec<(String, String)>,
    /// Of the first run in both ways, and of everything.
    times: (Duration, Duration),
    /// Known differences that are none any more.
    gone: Vec<&'static str>,
}

impl Report {
    pub(super) fn of(suite: &'static str, rounds: &Rounds, first: Duration, all: Duration) -> Report {
        let listed = |names: BTreeSet<String>| {
            names.into_iter().map(|name| (name.clone(), rounds.history(&name))).collect()
        };
        let gone = KNOWN.iter().filter(|known| known.suite == suite).map(|known| known.test);
        Report {
            suite,
            error: None,
            tests: rounds.len(),
            failed_alone: rounds.failed(Way::Alone),
            failed_as_worker: rounds.failed(Way::Worker),
            different: listed(rounds.with(Verdict::Different)),
            flaky: listed(&rounds.with(Verdict::Flaky) | &rounds.with(Verdict::Open)),
            times: (first, all),
            gone: gone.filter(|test| rounds.verdict(test) == Verdict::Same).collect(),
        }
    }

    /// A suite that could not be run.
    pub(super) fn failed(suite: &'static str, error: &anyhow::Error) -> Report {
        Report {
            error: Some(format!("{error:#}")),
            ..Report::of(suite, &Rounds::default(), Duration::ZERO, Duration::ZERO)
        }
    }

    pub(super) fn is_failed(&self) -> bool {
        self.error.is_some()
    }

    /// How many differences are not known.
    pub(super) fn unknown(&self) -> usize {
        self.different.iter().filter(|(test, _)| known::reason(self.suite, test).is_none()).count()
    }

    /// Every difference by name.
    pub(super) fn print(&self) {
        // When the suite itself did not get to its tests, their names say nothing.
        if self.tests > 0 && self.different.len() == self.tests && self.failed_as_worker == self.tests {
            println!("    DIFFERENT  all {} tests: none passed as a worker", self.tests);
            return;
        }
        for (test, history) in &self.different {
            match known::reason(self.suite, test) {
                Some(reason) => println!("    known      {test}: {history} ({reason})"),
                None => println!("    DIFFERENT  {test}: {history}"),
            }
        }
        for (test, history) in &self.flaky {
            println!("    flaky      {test}: {history}");
        }
        for test in &self.gone {
            println!("    no longer different, to be taken out of the table: {test}");
        }
    }
}

/// A line for each suite.
pub(super) fn table(reports: &[Report]) {
    println!(
        "\n{:<17}{:>6}{:>14}{:>18}{:>11}{:>7}{:>7}{:>13}{:>9}",
        "suite",
        "tests",
        "failed alone",
        "failed as worker",
        "different",
        "known",
        "flaky",
        "first round",
        "all"
    );
    for report in reports {
        if let Some(error) = &report.error {
            println!("{:<17}not run: {error}", report.suite);
            continue;
        }
        let seconds = |duration: Duration| format!("{:.0} s", duration.as_secs_f64());
        println!(
            "{:<17}{:>6}{:>14}{:>18}{:>11}{:>7}{:>7}{:>13}{:>9}",
            report.suite,
            report.tests,
            report.failed_alone,
            report.failed_as_worker,
            report.different.len(),
            report.different.len() - report.unknown(),
            report.flaky.len(),
            seconds(report.times.0),
            seconds(report.times.1)
        );
    }
}
