//! `--workers N|max|auto`.

use super::count;
use super::error::Parsed;
use crate::config::MAX_WORKERS;

/// A number of workers; `cpus` is asked only where the answer depends on it.
pub(super) fn parse(text: &str, cpus: impl Fn() -> u32) -> Parsed<u32> {
    if text.eq_ignore_ascii_case("max") {
        return Ok(cpus().clamp(1, MAX_WORKERS));
    }
    if text.eq_ignore_ascii_case("auto") {
        return Ok(cpus().saturating_sub(1).clamp(1, MAX_WORKERS));
    }
    count::within(text, &(1..=MAX_WORKERS))
        .ok_or_else(|| format!("is not a number of workers; give 1 to {MAX_WORKERS}, max or auto").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_8_cpus(text: &str) -> Parsed<u32> {
        parse(text, || 8)
    }

    #[test]
    fn a_number_is_that_many() {
        assert_eq!(on_8_cpus("1"), Ok(1));
        assert_eq!(on_8_cpus("100000"), Ok(100_000));
    }

    #[test]
    fn max_and_auto_follow_the_cpus_in_any_case() {
        for max in ["max", "MAX", "Max"] {
            assert_eq!(on_8_cpus(max), Ok(8));
        }
        for auto in ["auto", "AUTO", "aUto"] {
            assert_eq!(on_8_cpus(auto), Ok(7));
        }
    }

    #[test]
    fn auto_leaves_one_worker_on_one_cpu() {
        assert_eq!(parse("auto", || 1), Ok(1));
    }

    #[test]
    fn garbage_is_told_what_is_accepted() {
        for garbage in ["0", "-1", "100001", "1e9", "1000000000", "", " ", "1.5", "maximum", "+1"] {
            let reason = on_8_cpus(garbage).expect_err(garbage);
            assert!(reason.ends_with("give 1 to 100000, max or auto"), "{reason}");
        }
    }
}
