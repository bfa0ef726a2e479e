//! The text of a message: `NAME=VALUE` lines, sd_notify(3).

/// Longer statuses are cut: they would not fit into a line of the log.
const MAX_STATUS: usize = 256;

/// The assignments of one message that the supervisor supports.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ParsedMessage {
    /// `READY=1` was sent.
    pub ready: bool,
    /// `X_MONITOR=pause` (true) or `X_MONITOR=resume` (false), the last one.
    pub pauses_monitor: Option<bool>,
    /// `STATUS=…`, the last one.
    pub status: Option<String>,
}

/// Parses a datagram with one `NAME=VALUE` on each line. Unknown assignments are ignored, as sd_notify(3) demands.
pub fn parse(text: &[u8]) -> ParsedMessage {
    let mut parsed = ParsedMessage::default();
    for line in text.split(|byte| *byte == b'\n') {
        if line == b"READY=1" {
            parsed.ready = true;
        } else if line == b"X_MONITOR=pause" {
            parsed.pauses_monitor = Some(true);
        } else if line == b"X_MONITOR=resume" {
            parsed.pauses_monitor = Some(false);
        } else if let Some(status) = line.strip_prefix(b"STATUS=") {
            parsed.status =
                Some(String::from_utf8_lossy(&status[..status.len().min(MAX_STATUS)]).into_owned());
        }
    }
    parsed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_a_line_of_its_own() {
        assert!(parse(b"READY=1").ready);
        assert!(parse(b"STATUS=warm\nREADY=1\n").ready);
        assert!(!parse(b"READY=0").ready);
        assert!(!parse(b"XREADY=1").ready);
        assert!(!parse(b"READY=11").ready);
        assert!(!parse(b"").ready);
    }

    #[test]
    fn a_worker_can_pause_and_resume_its_limits() {
        assert_eq!(parse(b"X_MONITOR=pause").pauses_monitor, Some(true));
        assert_eq!(parse(b"X_MONITOR=pause\nREADY=1\nX_MONITOR=resume").pauses_monitor, Some(false));
        assert_eq!(parse(b"X_MONITOR=off\nXX_MONITOR=pause").pauses_monitor, None);
    }

    #[test]
    fn the_status_may_hold_anything() {
        let parsed = parse(b"STATUS=a=b \xff\nMAINPID=1");
        assert_eq!(parsed.status.as_deref(), Some("a=b \u{fffd}"));
        assert!(!parsed.ready);
    }
}
