//! Permission bits, in octal as chmod(1) and umask(1) take them.

use super::error::Parsed;

/// The nine bits that a mode or a umask may have: a socket has no use for setuid and the like.
const ALL: u32 = 0o777;

/// `664`, `0664`, `0o664`.
pub(super) fn parse(text: &str) -> Parsed<u32> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    // `from_str_radix` alone would take `+7`.
    let plain = digits.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    let mode = if plain { u32::from_str_radix(digits, 8).ok() } else { None };
    mode.filter(|mode| *mode <= ALL).ok_or("is not a mode; give octal digits up to 777, such as 664".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_octal_with_any_prefix() {
        for text in ["664", "0664", "0o664"] {
            assert_eq!(parse(text), Ok(0o664));
        }
        assert_eq!(parse("0"), Ok(0));
        assert_eq!(parse("777"), Ok(0o777));
    }

    #[test]
    fn garbage_is_told_what_is_accepted() {
        for garbage in
            ["", "0o", "0x1b4", "8", "668", "1777", "-7", "+7", " 664", "rw-rw-r--", "u+rw", "99999999999"]
        {
            assert!(parse(garbage).expect_err(garbage).contains("octal digits up to 777"));
        }
    }
}
