//! `--give-up N/DUR|off`.

use super::error::{Parsed, Reason};
use super::{count, duration};
use crate::config::GiveUp;

/// When the supervisor gives up; `None`: never.
pub(super) fn parse(text: &str) -> Parsed<Option<GiveUp>> {
    if text == "off" {
        return Ok(None);
    }
    let Some((deaths, within)) = text.split_once('/') else {
        return Err(form());
    };
    let Some(deaths) = count::within(deaths, &(1..=count::MAX_COUNT)) else {
        return Err(form());
    };
    let within =
        duration::positive(within).map_err(|reason| Reason::from(format!("has a time that {reason}")))?;
    Ok(Some(GiveUp { deaths, within }))
}

fn form() -> Reason {
    format!("is not N/DUR; give 1 to {} deaths and a time, such as 5/1min, or off", count::MAX_COUNT).into()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn deaths_within_a_time() {
        let minute = Duration::from_secs(60);
        assert_eq!(parse("5/1min"), Ok(Some(GiveUp { deaths: 5, within: minute })));
        assert_eq!(parse("1/60000"), Ok(Some(GiveUp { deaths: 1, within: minute })));
        assert_eq!(parse("off"), Ok(None));
    }

    #[test]
    fn garbage_is_told_the_form() {
        for garbage in ["", "5", "/", "0/1min", "-1/1min", "/1min", "1e3/1min", "OFF", "4294967296/1s"] {
            let reason = parse(garbage).expect_err(garbage);
            assert!(reason.contains("such as 5/1min, or off"), "{garbage}: {reason}");
        }
    }

    #[test]
    fn a_wrong_time_is_told_as_such() {
        for garbage in ["5/", "5/0", "5/soon", "5/1s/1s", "5/-1s", "5/1000years"] {
            let reason = parse(garbage).expect_err(garbage);
            assert!(reason.starts_with("has a time that is "), "{garbage}: {reason}");
        }
    }
}
