//! What a user reads when something that they wrote is wrong: always one line.

use std::borrow::Cow;
use std::fmt;

/// Why a text is not a value: the rest of a line that begins with the text itself, such as
/// `is not a duration; give …`.
pub(super) type Reason = Cow<'static, str>;

/// What a parser of values answers.
pub(super) type Parsed<T> = Result<T, Reason>;

/// One line that names the flag or variable, the value, and what would be accepted.
///
/// Nobody tells usage errors apart, all of them end with exit 2, so there is nothing in it but the line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageError(String);

impl UsageError {
    /// An error that is not about one value.
    pub(super) fn new(line: impl AsRef<str>) -> Self {
        // What clap or the host's own messages bring along may be of several lines or colour the terminal.
        Self(line.as_ref().split(|c: char| c.is_control()).collect::<Vec<_>>().join(" "))
    }

    /// The value that `source` gave, and why it is none.
    pub(super) fn value(source: &impl fmt::Display, text: &str, reason: &str) -> Self {
        Self::new(format!("{source}: {text:?} {reason}"))
    }
}

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_one_line_whatever_the_value() {
        let error = UsageError::value(&"--user", "a\nb\u{1b}[31m\"", "is\nwrong");
        assert_eq!(error.to_string(), r#"--user: "a\nb\u{1b}[31m\"" is wrong"#);
    }
}
