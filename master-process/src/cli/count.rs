//! Whole numbers within bounds.

use std::ops::RangeInclusive;

/// The most early deaths or attempts that may be asked for: larger than any of use, small enough that a list with
/// an entry for each stays below a few megabytes.
pub(super) const MAX_COUNT: u32 = 100_000;

/// Digits and nothing else, within the range; the caller knows what to say otherwise.
pub(super) fn within(text: &str, range: &RangeInclusive<u32>) -> Option<u32> {
    // `parse` alone would take `+5`.
    if !is_digits(text) {
        return None;
    }
    text.parse().ok().filter(|number| range.contains(number))
}

/// Whether the text is a bare, unsigned number.
pub(super) fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// 1 to [`MAX_COUNT`].
pub(super) fn at_least_one(text: &str) -> super::error::Parsed<u32> {
    within(text, &(1..=MAX_COUNT)).ok_or_else(|| format!("is not a count; give 1 to {MAX_COUNT}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_inclusive() {
        assert_eq!(within("1", &(1..=3)), Some(1));
        assert_eq!(within("3", &(1..=3)), Some(3));
        assert_eq!(within("0", &(1..=3)), None);
        assert_eq!(within("4", &(1..=3)), None);
    }

    #[test]
    fn only_digits_are_a_number() {
        for garbage in ["", " ", "+5", "-5", "5 ", "1e1", "0x5", "5.0", "٣", "99999999999999999999"] {
            assert_eq!(within(garbage, &(0..=u32::MAX)), None, "{garbage:?}");
        }
    }

    #[test]
    fn the_message_has_the_bounds() {
        assert_eq!(at_least_one("0").expect_err("too small"), "is not a count; give 1 to 100000");
        assert_eq!(at_least_one("3"), Ok(3));
    }
}
