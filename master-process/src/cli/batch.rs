//! `--reload-batch N|N%|all`.

use super::count;
use super::error::Parsed;
use crate::config::{Batch, MAX_WORKERS};

/// How many slots at a time.
pub(super) fn parse(text: &str) -> Parsed<Batch> {
    let batch = match text.strip_suffix('%') {
        Some(percent) => count::within(percent, &(1..=100)).map(Batch::Percent),
        None if text == "all" => Some(Batch::All),
        None => count::within(text, &(1..=MAX_WORKERS)).map(Batch::Slots),
    };
    batch.ok_or_else(|| {
        format!("is not a number of slots; give 1 to {MAX_WORKERS}, 1% to 100%, or all").into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_percent_or_all() {
        assert_eq!(parse("1"), Ok(Batch::Slots(1)));
        assert_eq!(parse("25%"), Ok(Batch::Percent(25)));
        assert_eq!(parse("100%"), Ok(Batch::Percent(100)));
        assert_eq!(parse("all"), Ok(Batch::All));
    }

    #[test]
    fn garbage_is_told_what_is_accepted() {
        for garbage in ["", "0", "0%", "101%", "%", "50 %", "50%%", "-1", "1.5%", "ALL", "half", "100001"] {
            let reason = parse(garbage).expect_err(garbage);
            assert!(reason.ends_with("give 1 to 100000, 1% to 100%, or all"), "{garbage}: {reason}");
        }
    }
}
