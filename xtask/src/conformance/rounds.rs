//! From repeated runs to differences: what happened once may be chance.

use std::collections::{BTreeMap, BTreeSet};

use super::job::Way;
use super::suite::{Outcome, Results};

/// The first run and three re-runs, each in both ways.
pub(super) const MAX_ROUNDS: usize = 4;

/// The number of rounds that must differ before a difference counts.
const CONFIRMED: usize = 2;

/// What became of one test in one round: alone, and as a worker.
type Pair = (Outcome, Outcome);

/// What the rounds so far say of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// No round differs.
    Same,
    /// It differs again and again, and is steady alone.
    Different,
    /// It differed too seldom to count, or is not steady alone.
    Flaky,
    /// Only another round can decide.
    Open,
}

/// All rounds of a suite, test by test.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    pairs: BTreeMap<String, Vec<Pair>>,
}

impl Rounds {
    /// Adds a round. In a re-run of some tests, those that were not selected count when both ways have them: they may
    /// have been run along.
    pub(super) fn add(&mut self, alone: &Results, worker: &Results) {
        let names: BTreeSet<&String> = alone.keys().chain(worker.keys()).collect();
        for name in names {
            let of = |results: &Results| results.get(name).copied().unwrap_or(Outcome::Missing);
            self.pairs.entry(name.clone()).or_default().push((of(alone), of(worker)));
        }
    }

    pub(super) fn verdict(&self, name: &str) -> Verdict {
        self.pairs.get(name).map_or(Verdict::Same, |pairs| judge(pairs))
    }

    /// The tests with this verdict.
    pub(super) fn with(&self, verdict: Verdict) -> BTreeSet<String> {
        self.pairs.iter().filter(|(_, pairs)| judge(pairs) == verdict).map(|(name, _)| name.clone()).collect()
    }

    /// How many tests there are.
    pub(super) fn len(&self) -> usize {
        self.pairs.len()
    }

    /// How many did not pass in the first round, those that were skipped aside.
    pub(super) fn failed(&self, way: Way) -> usize {
        self.pairs
            .values()
            .filter(|pairs| pairs.first().is_some_and(|pair| is_failure(of(*pair, way))))
            .count()
    }

    /// What became of a test in each round, in words: `passed→failed` is alone and as a worker.
    pub(super) fn history(&self, name: &str) -> String {
        let pairs = self.pairs.get(name).map(Vec::as_slice).unwrap_or_default();
        let words = pairs.iter().map(|(alone, worker)| format!("{}→{}", alone.name(), worker.name()));
        words.collect::<Vec<_>>().join(", ")
    }
}

fn of((alone, worker): Pair, way: Way) -> Outcome {
    match way {
        Way::Alone => alone,
        Way::Worker => worker,
    }
}

fn is_failure(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Failed | Outcome::Missing)
}

fn judge(pairs: &[Pair]) -> Verdict {
    let different = pairs.iter().filter(|(alone, worker)| alone != worker).count();
    let is_steady = pairs.iter().all(|(alone, _)| Some(*alone) == pairs.first().map(|first| first.0));
    match different {
        0 => Verdict::Same,
        _ if !is_steady => Verdict::Flaky,
        CONFIRMED.. => Verdict::Different,
        _ if pairs.len() < MAX_ROUNDS => Verdict::Open,
        _ => Verdict::Flaky,
    }
}

#[cfg(test)]
mod tests {
    use super::super::suite::Outcome::{self, Failed, Passed};
    use super::{Verdict, judge};

    const SAME: (Outcome, Outcome) = (Passed, Passed);
    const WORSE: (Outcome, Outcome) = (Passed, Failed);

    #[test]
    fn a_difference_counts_when_it_comes_again() {
        assert_eq!(judge(&[SAME]), Verdict::Same);
        assert_eq!(judge(&[WORSE]), Verdict::Open);
        assert_eq!(judge(&[WORSE, WORSE]), Verdict::Different);
        assert_eq!(judge(&[WORSE, SAME, SAME, WORSE]), Verdict::Different);
    }

    #[test]
    fn one_difference_in_four_rounds_is_chance() {
        assert_eq!(judge(&[WORSE, SAME, SAME]), Verdict::Open);
        assert_eq!(judge(&[WORSE, SAME, SAME, SAME]), Verdict::Flaky);
    }

    #[test]
    fn what_is_not_steady_alone_is_no_measure() {
        assert_eq!(judge(&[WORSE, (Failed, Passed)]), Verdict::Flaky);
        assert_eq!(judge(&[(Failed, Failed), SAME]), Verdict::Same);
    }

    #[test]
    fn to_pass_where_it_fails_alone_is_a_difference_too() {
        assert_eq!(judge(&[(Failed, Passed), (Failed, Passed)]), Verdict::Different);
    }
}
