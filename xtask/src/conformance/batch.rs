//! Suites whose tests are commands of their own: one job runs them one after the other.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::suite::{Outcome, Results};

/// Runs `"$@" NAME` for each line of the file `$1`, for `$0` seconds at most each, and prints a line with the exit status
/// after what the test has printed. The line begins with an empty one: the test's last one may lack its end.
const LOOP: &str = r#"
limit=$0 names=$1; shift
while read -r name; do
    timeout --kill-after=5 "$limit" "$@" "$name" 2>&1 < /dev/null
    printf '\n@@RESULT %d %s\n' $? "$name"
done < "$names""#;

const RESULT: &str = "@@RESULT ";

/// The words of a job that runs the tests `names` by `command NAME`, each for `limit` at most.
pub(super) fn words<S: Into<OsString>>(
    scratch: &Path,
    names: impl IntoIterator<Item = String>,
    command: impl IntoIterator<Item = S>,
    limit: Duration,
) -> Result<Vec<OsString>> {
    let list = scratch.join("names");
    let text: String = names.into_iter().map(|name| name + "\n").collect();
    fs::write(&list, text).context("writing the names of the tests")?;
    let mut words: Vec<OsString> = ["sh", "-c", LOOP].map(Into::into).to_vec();
    words.extend([limit.as_secs().to_string().into(), list.into()]);
    words.extend(command.into_iter().map(Into::into));
    Ok(words)
}

/// The names that are run: those selected, or all.
pub(super) fn selected(
    all: Vec<String>,
    selection: Option<&BTreeSet<String>>,
) -> impl Iterator<Item = String> {
    all.into_iter().filter(move |name| selection.is_none_or(|selection| selection.contains(name)))
}

/// The results, each judged by the exit status and what the test printed.
pub(super) fn read(output: &str, judge: impl Fn(i32, &str) -> Outcome) -> Results {
    let mut results = Results::new();
    let mut printed = String::new();
    for line in output.lines() {
        let result = line.strip_prefix(RESULT).and_then(|rest| rest.split_once(' '));
        match result.and_then(|(status, name)| Some((status.parse().ok()?, name))) {
            Some((status, name)) => {
                results.insert(name.to_owned(), judge(status, &printed));
                printed.clear();
            }
            None => {
                printed.push_str(line);
                printed.push('\n');
            }
        }
    }
    results
}

#[cfg(test)]
mod tests {
    use super::super::suite::Outcome;

    #[test]
    fn each_test_is_judged_by_what_it_printed_itself() {
        let output = "one\n\n@@RESULT 0 a\nskip\n@@RESULT 0 b/c\n\n@@RESULT 1 d\nunfinished";
        let results = super::read(output, |status, printed| match status {
            0 if printed.contains("skip") => Outcome::Skipped,
            0 => Outcome::Passed,
            _ => Outcome::Failed,
        });
        let expected = [("a", Outcome::Passed), ("b/c", Outcome::Skipped), ("d", Outcome::Failed)];
        assert_eq!(results, expected.map(|(name, outcome)| (name.to_owned(), outcome)).into());
    }
}
