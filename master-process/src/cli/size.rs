//! Sizes of memory: a number with a unit.

use bytesize::ByteSize;

use super::count::is_digits;
use super::error::{Parsed, Reason};

/// What one of the ancestor's sizes is a number of.
const MIB: u64 = 1 << 20;

/// A size as it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Size {
    /// In bytes.
    Bytes(u64),
    /// A number without a unit: what it counts depends on who says it.
    Bare(u64),
}

/// So many MiB in bytes; `None`: more than there can be.
pub(super) fn mib(number: u64) -> Option<u64> {
    number.checked_mul(MIB)
}

/// A size, zero excluded; `None`: `off`.
pub(super) fn parse_or_off(text: &str) -> Parsed<Option<Size>> {
    if text.eq_ignore_ascii_case("off") {
        return Ok(None);
    }
    let size = if is_digits(text) {
        Size::Bare(text.parse().map_err(|_| too_large())?)
    } else {
        Size::Bytes(with_unit(text)?)
    };
    match size {
        Size::Bytes(0) | Size::Bare(0) => Err("is zero; give a size such as 1200MiB, or off".into()),
        Size::Bytes(u64::MAX) => Err(too_large()),
        size @ (Size::Bytes(_) | Size::Bare(_)) => Ok(Some(size)),
    }
}

/// `M` alone is what systemd and container engines take it for: 1024 times 1024.
fn with_unit(text: &str) -> Parsed<u64> {
    let letter = text.chars().last().filter(|last| "kmgtKMGT".contains(*last));
    let whole = if letter.is_some() { format!("{text}iB") } else { text.to_owned() };
    let garbage = || "is not a size; give a number with a unit (1200MiB, 1.2GB), or off".into();
    whole.parse::<ByteSize>().map(|size| size.as_u64()).map_err(|_unread| garbage())
}

fn too_large() -> Reason {
    "is more memory than there can be; give a size such as 1200MiB, or off".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_understood() {
        let bytes = |text| match parse_or_off(text) {
            Ok(Some(Size::Bytes(bytes))) => bytes,
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(bytes("1200MiB"), 1200 << 20);
        assert_eq!(bytes("1.2GB"), 1_200_000_000);
        assert_eq!(bytes("300M"), 300 << 20);
        assert_eq!(bytes("2g"), 2 << 30);
        assert_eq!(bytes("512 KiB"), 512 << 10);
        assert_eq!(bytes("100000B"), 100_000);
    }

    #[test]
    fn off_is_no_size() {
        assert_eq!(parse_or_off("off"), Ok(None));
    }

    #[test]
    fn a_bare_number_is_left_to_whoever_asked() {
        assert_eq!(parse_or_off("100"), Ok(Some(Size::Bare(100))));
        assert_eq!(mib(100), Some(100 << 20));
        assert_eq!(mib(u64::MAX), None);
    }

    #[test]
    fn garbage_is_told_what_is_accepted() {
        for garbage in
            ["", " ", "1e3", "-5", "-5MiB", "MiB", "5 parsecs", "0x5MiB", "+5MiB", "1.5", "1.5.5MB", "∞"]
        {
            let reason = parse_or_off(garbage).expect_err(garbage);
            assert!(
                reason.starts_with("is not a size; give a number with a unit (1200MiB"),
                "{garbage}: {reason}"
            );
        }
    }

    #[test]
    fn nothing_and_everything_are_no_limits() {
        for zero in ["0", "0MiB", "0.0GB"] {
            assert!(parse_or_off(zero).expect_err(zero).starts_with("is zero"));
        }
        for large in ["99999999999999999999999", "99999999999999EiB"] {
            assert!(parse_or_off(large).expect_err(large).starts_with("is more memory"), "{large}");
        }
    }
}
