//! Durations in a form that is short to read.

use std::fmt;
use std::time::Duration;

/// `7ms`, `0.7s`, `12.3s`, `2m 5s`.
#[derive(Debug, Clone, Copy)]
pub struct Span(pub Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Span(span) = *self;
        if span < Duration::from_millis(100) {
            write!(f, "{}ms", span.as_millis())
        } else if span < Duration::from_secs(100) {
            write!(f, "{:.1}s", span.as_secs_f64())
        } else {
            write!(f, "{}", humantime::format_duration(Duration::from_secs(span.as_secs())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_short_to_read() {
        let text = |millis| Span(Duration::from_millis(millis)).to_string();
        assert_eq!(text(0), "0ms");
        assert_eq!(text(7), "7ms");
        assert_eq!(text(700), "0.7s");
        assert_eq!(text(12_345), "12.3s");
        assert_eq!(text(125_999), "2m 5s");
    }
}
