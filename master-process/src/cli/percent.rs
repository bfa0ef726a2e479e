//! `--max-cpu PERCENT|off`.

use super::error::Parsed;

/// What one percent of a CPU is, in nanoseconds of each second.
const PERCENT_NS: f64 = 10_000_000.0;

/// 10,000 CPUs. Any more is a mistake.
const MOST: f64 = 1_000_000.0;

/// CPU nanoseconds in a second; `None`: `off`.
pub(super) fn parse_or_off(text: &str) -> Parsed<Option<u64>> {
    if text.eq_ignore_ascii_case("off") {
        return Ok(None);
    }
    let number = text.strip_suffix('%').unwrap_or(text);
    // `parse` alone would take `inf`, `1e3` and `+5`.
    let plain = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let percent = number.parse::<f64>().ok().filter(|percent| plain && (0.01..=MOST).contains(percent));
    match percent {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within 10^5 and 10^13")]
        Some(percent) => Ok(Some((percent * PERCENT_NS).round() as u64)),
        None => Err("is not a share of a CPU; give percent of one CPU, such as 95 or 250, or off".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_of_one_cpu() {
        assert_eq!(parse_or_off("95"), Ok(Some(950_000_000)));
        assert_eq!(parse_or_off("95%"), Ok(Some(950_000_000)));
        assert_eq!(parse_or_off("12.5"), Ok(Some(125_000_000)));
        assert_eq!(parse_or_off("800"), Ok(Some(8_000_000_000)));
        assert_eq!(parse_or_off("off"), Ok(None));
    }

    #[test]
    fn garbage_is_told_what_is_accepted() {
        for garbage in
            ["", "%", "0", "0.001", "-5", "+5", "1e3", "inf", "NaN", "95 %", "95%%", ".", "1000001", "all"]
        {
            let reason = parse_or_off(garbage).expect_err(garbage);
            assert!(reason.starts_with("is not a share of a CPU; give percent"), "{garbage}: {reason}");
        }
    }
}
