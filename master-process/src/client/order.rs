//! What the commands that change something have in common: the request, whether to wait, and how it ended.

use std::time::Instant;

use clap::ArgMatches;

use super::connection::{Connection, Failure};
use super::exit::codes;
use super::{arguments, find, show};
use crate::control::{Accepted, Request, SCHEMA};

/// Where the further lines of a text begin.
const INDENT: usize = 2;

/// A request that the supervisor has accepted.
pub(super) struct Order {
    pub(super) connection: Connection,
    pub(super) accepted: Accepted,
    /// Whether to wait until it is decided.
    pub(super) wait: bool,
    pub(super) json: bool,
    begun: Instant,
    /// When to stop waiting.
    pub(super) until: Option<Instant>,
}

impl Order {
    /// Sends the request. `request` is told whether to follow the events.
    pub(super) fn give(matches: &ArgMatches, request: impl Fn(bool) -> Request) -> Result<Order, Failure> {
        let wait = matches.try_get_one::<bool>("wait").ok().flatten().copied().unwrap_or_default();
        let json = matches.get_flag("json");
        let begun = Instant::now();
        let until = if wait { arguments::timeout(matches).map(|timeout| begun + timeout) } else { None };
        let mut connection = find::connect(matches)?;
        let (reply, text) = connection.ask(request(wait))?;
        let accepted =
            reply.accepted.ok_or_else(|| Failure::new(codes::UNKNOWN, "the answer is to another request"))?;
        if json {
            show::print(&format!("{text}\n"));
        }
        Ok(Order { connection, accepted, wait, json, begun, until })
    }

    /// Prints text for people.
    pub(super) fn say(&self, text: &str) {
        if !self.json {
            show::print(&show::wrapped(text, show::columns(), INDENT));
        }
    }

    /// Prints a line of JSON that was received, if JSON is wanted.
    pub(super) fn pass_on(&self, text: &str) {
        if self.json {
            show::print(&format!("{text}\n"));
        }
    }

    /// The time since the request.
    pub(super) fn took(&self) -> String {
        show::tenths(self.begun.elapsed().as_secs_f64())
    }

    /// The name of the instance.
    pub(super) fn name(&self) -> String {
        show::plain(&self.accepted.name)
    }

    /// The command line of another command for the instance.
    pub(super) fn next(&self, words: &str) -> String {
        find::command_for(words, &self.accepted.name, &self.connection.path.to_string_lossy())
    }

    /// Prints how it ended. Returns the code.
    pub(super) fn end(&self, code: u8, text: &str) -> u8 {
        if self.json {
            let result = serde_json::json!({ "outcome": outcome(code), "message": text });
            print_result(&result);
        } else {
            self.say(text);
        }
        code
    }

    /// Prints that the time is over. Returns the code.
    pub(super) fn timed_out(&self) -> u8 {
        self.end(codes::TIMED_OUT, &format!("time-out after {}; it goes on", self.took()))
    }

    /// The connection ended before it was decided.
    pub(super) fn lost() -> Failure {
        Failure::new(
            codes::UNKNOWN,
            "the supervisor has ended, or has closed the connection, before this was decided",
        )
    }
}

/// The word for an exit code in JSON.
fn outcome(code: u8) -> &'static str {
    match code {
        codes::OK => "complete",
        codes::GIVEN_UP => "given_up",
        codes::SUPERSEDED => "superseded",
        _timed_out => "timed_out",
    }
}

/// Prints the last line of a command that waits, in JSON.
pub(super) fn print_result(result: &serde_json::Value) {
    let line = serde_json::json!({ "schema": SCHEMA, "result": result });
    show::print(&format!("{line}\n"));
}
