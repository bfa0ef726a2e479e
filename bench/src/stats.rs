//! Medians and their spread.

/// What many measurements of one thing come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Summary {
    /// Half of the measurements lie below it.
    pub(crate) median: u64,
    /// A tenth of the measurements lie below it.
    pub(crate) low: u64,
    /// A tenth of the measurements lie above it.
    pub(crate) high: u64,
}

/// `None` of nothing.
pub(crate) fn summary(mut values: Vec<u64>) -> Option<Summary> {
    values.sort_unstable();
    let last = values.len().checked_sub(1)?;
    Some(Summary { median: values[last / 2], low: values[last / 10], high: values[last - last / 10] })
}

/// How many times the baseline it is.
#[expect(clippy::cast_precision_loss, reason = "nanoseconds and KiB of one run stay far below 2^52")]
pub(crate) fn ratio(value: u64, baseline: u64) -> f64 {
    value as f64 / baseline as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_nothing_there_is_no_median() {
        assert_eq!(summary(vec![]), None);
    }

    #[test]
    fn one_tenth_lies_outside_on_each_side() {
        let summary = summary((1..=21).rev().collect());
        assert_eq!(summary, Some(Summary { median: 11, low: 3, high: 19 }));
    }
}
