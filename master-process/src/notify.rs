//! The sd_notify protocol: what a worker says of itself.

/// What is longer is no status for a person, and would not fit into a line of the log.
const LONGEST_STATUS: usize = 256;

/// What one message says, as far as we listen.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// `READY=1`.
    pub ready: bool,
    /// `X_MONITOR=pause` (true) or `X_MONITOR=resume` (false), the last one.
    pub pauses_monitor: Option<bool>,
    /// `STATUS=…`, the last one.
    pub status: Option<String>,
}

/// Reads a datagram: one `NAME=VALUE` a line. What is unknown is passed over, as sd_notify(3) asks.
pub fn parse(text: &[u8]) -> Said {
    let mut said = Said::default();
    for line in text.split(|byte| *byte == b'\n') {
        if line == b"READY=1" {
            said.ready = true;
        } else if line == b"X_MONITOR=pause" {
            said.pauses_monitor = Some(true);
        } else if line == b"X_MONITOR=resume" {
            said.pauses_monitor = Some(false);
        } else if let Some(status) = line.strip_prefix(b"STATUS=") {
            said.status =
                Some(String::from_utf8_lossy(&status[..status.len().min(LONGEST_STATUS)]).into_owned());
        }
    }
    said
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
        let said = parse(b"STATUS=a=b \xff\nMAINPID=1");
        assert_eq!(said.status.as_deref(), Some("a=b \u{fffd}"));
        assert!(!said.ready);
    }
}
