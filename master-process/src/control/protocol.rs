//! The lines of the protocol: one JSON object each, in both directions. `docs/control.md` describes them.

use serde::{Deserialize, Serialize};

use super::SCHEMA;
use super::event::Event;
use super::journal::Restarts;
use super::snapshot::{LastEnd, Snapshot};

/// The longest request, in bytes, with its newline. The longest that has a meaning takes a tenth of that.
pub const MAX_REQUEST: usize = 1024;

/// What a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// The whole state.
    Status,
    /// A reload.
    Reload {
        /// Send all further events.
        follow: bool,
    },
    /// A stop of everything.
    Stop {
        /// As above.
        follow: bool,
    },
    /// Another number of workers.
    Scale {
        /// The number.
        workers: u32,
        /// As above.
        follow: bool,
    },
    /// A new worker in a slot.
    Restart {
        /// The slot.
        slot: u32,
        /// As above.
        follow: bool,
    },
    /// Pause (`true`) or resume the limits.
    Pause(bool),
    /// An upgrade in place.
    Upgrade {
        /// As above.
        follow: bool,
    },
    /// The recent events.
    Events {
        /// After this one.
        since: u64,
        /// And all further ones.
        follow: bool,
    },
    /// The last ends of a slot.
    Why {
        /// The slot.
        slot: u32,
    },
}

/// A request as it is written.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    schema: Option<u32>,
    command: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    slot: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    workers: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    since: Option<u64>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    follow: bool,
}

/// Reads a line.
///
/// # Errors
/// The answer that says what is wrong.
pub fn parse_request(line: &[u8]) -> Result<Request, ErrorReply> {
    let bad = |message: String| ErrorReply::new("bad_request", message);
    let written: Written =
        serde_json::from_slice(line).map_err(|error| bad(format!("no request: {error}")))?;
    if written.schema.is_some_and(|schema| schema != SCHEMA) {
        return Err(ErrorReply::new("unknown_schema", format!("this supervisor has schema {SCHEMA}")));
    }
    let Written { slot, workers, since, follow, .. } = written;
    let request = match (written.command.as_str(), slot, workers, since) {
        ("status", None, None, None) if !follow => Request::Status,
        ("reload", None, None, None) => Request::Reload { follow },
        ("stop", None, None, None) => Request::Stop { follow },
        ("scale", None, Some(workers), None) => Request::Scale { workers, follow },
        ("restart", Some(slot), None, None) => Request::Restart { slot, follow },
        ("pause", None, None, None) if !follow => Request::Pause(true),
        ("resume", None, None, None) if !follow => Request::Pause(false),
        ("upgrade", None, None, None) => Request::Upgrade { follow },
        ("events", None, None, since) => Request::Events { since: since.unwrap_or(0), follow },
        ("why", Some(slot), None, None) if !follow => Request::Why { slot },
        (
            "status" | "reload" | "stop" | "scale" | "restart" | "pause" | "resume" | "upgrade" | "events"
            | "why",
            ..,
        ) => {
            return Err(bad(format!("{} does not take these fields", written.command)));
        }
        _other => return Err(ErrorReply::new("unknown_command", "no such command".to_owned())),
    };
    Ok(request)
}

impl Request {
    /// The line of the request, with its newline.
    pub fn line(self) -> Vec<u8> {
        let written = |command: &str| Written {
            schema: Some(SCHEMA),
            command: command.to_owned(),
            ..Written::default()
        };
        let written = match self {
            Request::Status => written("status"),
            Request::Reload { follow } => Written { follow, ..written("reload") },
            Request::Stop { follow } => Written { follow, ..written("stop") },
            Request::Scale { workers, follow } => {
                Written { workers: Some(workers), follow, ..written("scale") }
            }
            Request::Restart { slot, follow } => Written { slot: Some(slot), follow, ..written("restart") },
            Request::Upgrade { follow } => Written { follow, ..written("upgrade") },
            Request::Pause(true) => written("pause"),
            Request::Pause(false) => written("resume"),
            Request::Events { since, follow } => Written { since: Some(since), follow, ..written("events") },
            Request::Why { slot } => Written { slot: Some(slot), ..written("why") },
        };
        line(&written)
    }
}

/// A value as a line.
pub(super) fn line(value: &impl Serialize) -> Vec<u8> {
    line_of(value, 0)
}

/// The same, with room for this many bytes from the start.
fn line_of(value: &impl Serialize, room: usize) -> Vec<u8> {
    let mut line = Vec::with_capacity(room);
    // Our own types have nothing that JSON cannot hold.
    let _always = serde_json::to_writer(&mut line, value);
    line.push(b'\n');
    line
}

/// The bytes of a worker's row, at most as a rule.
const ROW: usize = 400;

/// The answer to a request.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// The version of the protocol.
    pub schema: u32,
    /// The whole state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Box<Snapshot>>,
    /// The supervisor does it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted: Option<Accepted>,
    /// The last ends of a slot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<Why>,
    /// The events end here: the number of the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_of_events: Option<u64>,
    /// The request was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorReply>,
}

impl Reply {
    /// An answer with nothing in it.
    pub fn new() -> Reply {
        Reply { schema: SCHEMA, ..Reply::default() }
    }

    /// The refusal of a request.
    pub fn error(error: ErrorReply) -> Reply {
        Reply { error: Some(error), ..Reply::new() }
    }

    /// The line of the answer, with its newline.
    pub fn line(&self) -> Vec<u8> {
        let rows = self.status.as_ref().map_or(0, |status| status.workers.len());
        line_of(self, rows * ROW)
    }
}

/// What the supervisor does.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Accepted {
    /// The number of the last event before: all that follows from the request comes later.
    pub seq: u64,
    /// The name of the instance.
    pub name: String,
    /// The number of the reload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reload: Option<u32>,
    /// The number of slots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots_total: Option<u32>,
    /// The slots that are replaced at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<u32>,
    /// The failed starts of one slot after which it is given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// The slot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<u32>,
    /// The pid of the worker that is replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// The number of workers before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<u32>,
    /// The number of workers from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<u32>,
    /// Whether the limits are paused now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits_paused: Option<bool>,
}

/// The last ends of a slot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Why {
    /// The name of the instance.
    pub name: String,
    /// The slot.
    pub slot: u32,
    /// The replaced workers, by reason.
    pub restarts_total: Restarts,
    /// The last one first.
    pub ends: Vec<LastEnd>,
}

/// A refusal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorReply {
    /// A stable word.
    pub code: String,
    /// A sentence for people.
    pub message: String,
}

impl ErrorReply {
    /// A refusal.
    pub fn new(code: &str, message: String) -> ErrorReply {
        ErrorReply { code: code.to_owned(), message }
    }

    /// There is no such slot; the last one is `last`.
    pub fn no_such_slot(slot: u32, last: u32) -> ErrorReply {
        ErrorReply::new("no_such_slot", format!("there is no slot {slot}: expected 0 to {last}"))
    }

    /// No such number of workers is possible.
    pub fn no_such_number(most: u32) -> ErrorReply {
        ErrorReply::new("not_possible", format!("expected 1 to {most} workers"))
    }
}

/// A line that the supervisor sends.
#[derive(Debug, Clone, PartialEq)]
pub enum Line {
    /// An event.
    Event(Box<Event>),
    /// An answer.
    Reply(Box<Reply>),
}

impl Line {
    /// Reads a line.
    ///
    /// # Errors
    /// It is not a line of this protocol.
    pub fn parse(line: &[u8]) -> serde_json::Result<Line> {
        // Every event has its number first or second; an answer never has that field at its top.
        let head = &line[..line.len().min(64)];
        let is_event = head.starts_with(b"{\"time\"") || head.starts_with(b"{\"seq\"");
        match is_event {
            true => serde_json::from_slice(line).map(|event| Line::Event(Box::new(event))),
            false => serde_json::from_slice(line).map(|reply| Line::Reply(Box::new(reply))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::Noise;

    #[test]
    fn every_request_survives_the_line() {
        for request in [
            Request::Status,
            Request::Reload { follow: true },
            Request::Stop { follow: false },
            Request::Scale { workers: 7, follow: true },
            Request::Restart { slot: 0, follow: false },
            Request::Pause(true),
            Request::Pause(false),
            Request::Events { since: u64::MAX, follow: true },
            Request::Why { slot: 3 },
        ] {
            let line = request.line();
            assert!(line.ends_with(b"\n") && line.len() <= MAX_REQUEST);
            let text = String::from_utf8_lossy(&line);
            assert_eq!(parse_request(line.trim_ascii_end()), Ok(request), "{text}");
        }
    }

    #[test]
    fn what_is_no_request_is_refused_with_a_reason() {
        for (line, code) in [
            ("", "bad_request"),
            ("hello", "bad_request"),
            ("[]", "bad_request"),
            ("{}", "bad_request"),
            (r#"{"command":7}"#, "bad_request"),
            (r#"{"command":"status"} {"command":"stop"}"#, "bad_request"),
            (r#"{"command":"status","slot":1}"#, "bad_request"),
            (r#"{"command":"scale"}"#, "bad_request"),
            (r#"{"command":"scale","workers":-1}"#, "bad_request"),
            (r#"{"command":"scale","workers":1e9}"#, "bad_request"),
            (r#"{"command":"restart","slot":4294967296}"#, "bad_request"),
            (r#"{"command":"events","sicne":3}"#, "bad_request"),
            (r#"{"command":"shutdown"}"#, "unknown_command"),
            (r#"{"schema":2,"command":"status"}"#, "unknown_schema"),
        ] {
            let error = parse_request(line.as_bytes()).expect_err(line);
            assert_eq!(error.code, code, "{line}: {}", error.message);
        }
        assert_eq!(parse_request(br#" {"command" : "status"} "#), Ok(Request::Status));
    }

    #[test]
    fn a_line_of_the_supervisor_is_an_event_or_an_answer() {
        let event = Event::missed(3, 9);
        assert_eq!(Line::parse(&line(&event)).expect("a line"), Line::Event(Box::new(event)));
        let reply = Reply { end_of_events: Some(4), ..Reply::new() };
        assert_eq!(Line::parse(&reply.line()).expect("a line"), Line::Reply(Box::new(reply)));
        assert!(Line::parse(b"garbage").is_err());
    }

    /// Random bytes, and requests with a few bytes changed: the parser answers each, and never panics.
    #[test]
    fn no_bytes_upset_the_parser() {
        let mut noise = Noise::new();
        let pieces: &[&[u8]] = &[
            b"{",
            b"}",
            b"\"command\"",
            b":",
            b"\"status\"",
            b",",
            b"[",
            b"\\u00",
            b"1e999",
            b"\"slot\"",
            b"\xff",
        ];
        for round in 0..20_000 {
            let mut bytes = match round % 3 {
                0 => Request::Scale { workers: 3, follow: true }.line(),
                1 => noise.some_of(pieces, 12),
                _ => b"[".repeat(noise.below(MAX_REQUEST)),
            };
            noise.spoil(&mut bytes);
            if let Err(error) = parse_request(&bytes) {
                assert!(!error.code.is_empty() && !error.message.is_empty());
            }
        }
    }
}
