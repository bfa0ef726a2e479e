//! Durations: a number with a unit; a bare number is milliseconds, as the ancestor had it.

use std::time::Duration;

use super::count::is_digits;
use super::error::Parsed;

/// 100 years of 365.25 days. Any longer is a mistake, and `now + duration` stays far from every overflow.
const LONGEST: Duration = Duration::from_secs(3_155_760_000);

/// Enough for 100 years in milliseconds. humantime 2.4 panics when parts add up to 2^64 seconds exactly in the
/// carry of the nanoseconds, which takes 16 digits or more.
const MAX_DIGITS: usize = 14;

/// A duration, zero included.
pub(super) fn parse(text: &str) -> Parsed<Duration> {
    let known = match is_digits(text) {
        true => text.parse().ok().map(Duration::from_millis),
        false => with_units(text)?,
    };
    known.filter(|duration| *duration <= LONGEST).ok_or("is too long; give 100 years at most".into())
}

/// A duration, zero excluded.
pub(super) fn positive(text: &str) -> Parsed<Duration> {
    match parse(text)? {
        Duration::ZERO => Err("is zero; give a duration longer than that, such as 60s".into()),
        duration => Ok(duration),
    }
}

/// `None`: a duration, but too long to be read.
fn with_units(text: &str) -> Parsed<Option<Duration>> {
    if text.bytes().filter(u8::is_ascii_digit).count() > MAX_DIGITS {
        return Err(
            "has too many digits to be a duration; give a number with a larger unit (300ms, 5s, 2min)".into(),
        );
    }
    match humantime::parse_duration(text) {
        Ok(duration) => Ok(Some(duration)),
        Err(humantime::DurationError::NumberOverflow) => Ok(None),
        Err(_) => Err(
            "is not a duration; give a number with a unit (300ms, 5s, 2min), a bare number is milliseconds"
                .into(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_understood() {
        assert_eq!(parse("300ms"), Ok(Duration::from_millis(300)));
        assert_eq!(parse("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(parse("2min"), Ok(Duration::from_secs(120)));
        assert_eq!(parse("1min 30s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse("1.5s"), Ok(Duration::from_millis(1500)));
    }

    #[test]
    fn a_bare_number_is_milliseconds() {
        assert_eq!(parse("5"), Ok(Duration::from_millis(5)));
        assert_eq!(parse("0"), Ok(Duration::ZERO));
        assert_eq!(parse("5000"), Ok(Duration::from_secs(5)));
    }

    #[test]
    fn garbage_is_told_what_is_accepted() {
        for garbage in
            ["", " ", "1e3", "-5", "-5s", "5 parsecs", "s", "5 s s", "5s,", "0x5s", "1.s", "+5", "5;", "∞"]
        {
            let reason = parse(garbage).expect_err(garbage);
            assert!(
                reason.starts_with("is not a duration; give a number with a unit (300ms"),
                "{garbage}: {reason}"
            );
        }
    }

    #[test]
    fn a_hundred_years_are_the_longest() {
        assert_eq!(parse("100years"), Ok(LONGEST));
        assert_eq!(parse("3155760000000"), Ok(LONGEST));
        for long in ["101years", "3155760000001", "100years 1ns", "99999999999999", "99999999999999years"] {
            assert!(parse(long).expect_err(long).contains("100 years at most"), "{long}");
        }
        assert!(parse("99999999999999999999999").is_err());
    }

    #[test]
    fn what_makes_humantime_panic_is_refused() {
        assert!(parse("18446744073709551615s 1000000000ns").is_err());
        assert!(parse("18446744073709551615s999ms1ms").is_err());
    }

    #[test]
    fn zero_is_refused_where_it_makes_no_sense() {
        for zero in ["0", "0s", "0min 0ms"] {
            assert_eq!(parse(zero), Ok(Duration::ZERO));
            assert!(positive(zero).expect_err(zero).starts_with("is zero"));
        }
        assert_eq!(positive("1"), Ok(Duration::from_millis(1)));
        assert!(positive("garbage").expect_err("garbage").starts_with("is not a duration"));
    }
}
