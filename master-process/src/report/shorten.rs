//! Shortening lines to what a pipe takes atomically.

use std::borrow::Cow;

/// Replaces the omitted part of a text: an ellipsis in UTF-8.
const GAP: &[u8] = "…".as_bytes();

/// The shortest length to which a JSON string is cut. With all strings cut to it, every line of the supervisor is
/// short enough.
const SHORTEST: usize = 32;

/// The line, ending in a newline, in at most `limit` bytes. The middle of a longer line is omitted. A JSON object
/// stays one: its string values are cut, the longest first.
pub(super) fn fit(line: &[u8], limit: usize, is_json: bool) -> Cow<'_, [u8]> {
    if line.len() <= limit {
        return Cow::Borrowed(line);
    }
    if !is_json {
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        return Cow::Owned([&without_middle(text, limit.saturating_sub(1)), b"\n".as_slice()].concat());
    }
    let mut most = limit / 2;
    loop {
        let shorter = with_strings_of(line, most);
        if shorter.len() <= limit || most <= SHORTEST {
            return Cow::Owned(shorter);
        }
        most /= 2;
    }
}

/// The JSON text with each string in at most `most` bytes between its quotes.
fn with_strings_of(json: &[u8], most: usize) -> Vec<u8> {
    let mut result = Vec::with_capacity(json.len());
    let mut rest = json;
    while let Some(start) = rest.iter().position(|byte| *byte == b'"') {
        let (before, string) = rest.split_at(start + 1);
        let end = string_end(string);
        result.extend_from_slice(before);
        result.extend_from_slice(&without_middle(&string[..end], most));
        let (quote, after) = string[end..].split_at(usize::from(end < string.len()));
        result.extend_from_slice(quote);
        rest = after;
    }
    result.extend_from_slice(rest);
    result
}

/// The position of the closing quote of a string.
fn string_end(string: &[u8]) -> usize {
    let mut at = 0;
    while at < string.len() && string[at] != b'"' {
        at += unit(&string[at..]);
    }
    at.min(string.len())
}

/// The beginning and the end of the text, in at most `most` bytes. No character and no escape sequence is cut in two.
fn without_middle(text: &[u8], most: usize) -> Cow<'_, [u8]> {
    if text.len() <= most {
        return Cow::Borrowed(text);
    }
    let kept = most.saturating_sub(GAP.len());
    // A message begins with the thing that it is about and ends with what went wrong, so both ends are kept.
    let (head, tail) = (kept / 2, text.len() - (kept - kept / 2));
    let (mut at, mut head_end) = (0, 0);
    while at < tail {
        at += unit(&text[at..]);
        if at <= head {
            head_end = at;
        }
    }
    Cow::Owned([&text[..head_end], GAP, text.get(at..).unwrap_or_default()].concat())
}

/// The length of the character or JSON escape sequence at the beginning, in bytes; at least 1.
fn unit(text: &[u8]) -> usize {
    let length = match text {
        [b'\\', b'u', ..] => 6,
        [b'\\', ..] => 2,
        [_, rest @ ..] => 1 + rest.iter().take_while(|byte| **byte & 0b1100_0000 == 0b1000_0000).count(),
        [] => 1,
    };
    length.min(text.len().max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fitted(line: &str, limit: usize, is_json: bool) -> String {
        String::from_utf8(fit(line.as_bytes(), limit, is_json).into_owned()).expect("UTF-8 stays UTF-8")
    }

    #[test]
    fn a_line_that_fits_is_left_alone() {
        assert!(matches!(fit(b"short\n", 6, false), Cow::Borrowed(b"short\n")));
        assert!(matches!(fit(b"{}\n", 3, true), Cow::Borrowed(b"{}\n")));
    }

    #[test]
    fn the_middle_of_a_long_line_is_left_out() {
        let line = format!("cannot start {}: no such file\n", "x".repeat(500));
        let short = fitted(&line, 100, false);
        assert_eq!(short.len(), 100);
        assert!(short.starts_with("cannot start xxx") && short.contains("x…x"), "{short}");
        assert!(short.ends_with("x: no such file\n"), "{short}");
    }

    #[test]
    fn no_character_and_no_escape_sequence_is_cut() {
        for filler in ["ä", "€", "😀", "\\n", "\\u001b", "\\\\", "\\\""] {
            let line = format!("{{\"message\":\"{}\",\"pid\":7}}\n", filler.repeat(300));
            for limit in 90..130 {
                let short = fitted(&line, limit, true);
                assert!(short.len() <= limit, "{short}");
                let inner = short
                    .strip_prefix("{\"message\":\"")
                    .and_then(|rest| rest.strip_suffix("\",\"pid\":7}\n"))
                    .unwrap_or_else(|| panic!("{short}"));
                let parts: Vec<&str> = inner.split('…').collect();
                assert_eq!(parts.len(), 2, "{short}");
                assert!(parts.iter().all(|part| part.replace(filler, "").is_empty()), "{short}");
            }
        }
    }

    #[test]
    fn all_long_strings_are_cut_and_short_ones_are_not() {
        let long = "y".repeat(20_000);
        let line = format!("{{\"level\":\"INFO\",\"a\":\"{long}\",\"b\":\"{long}\",\"n\":12}}\n");
        let short = fitted(&line, 4096, true);
        assert!(short.len() <= 4096 && short.len() > 1000, "{}", short.len());
        assert!(short.starts_with("{\"level\":\"INFO\",\"a\":\"yy"), "{short}");
        assert!(short.ends_with("yy\",\"n\":12}\n"), "{short}");
    }

    #[test]
    fn what_is_no_json_does_no_harm() {
        for garbage in ["\"", "\"\\", "{\"a", "\\u1", &"\"".repeat(5000), &"\\".repeat(5000)] {
            let _whatever = fit(garbage.as_bytes(), 0, true);
            let _whatever = fit(garbage.as_bytes(), 0, false);
        }
    }
}
