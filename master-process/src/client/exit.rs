//! The exit codes of the commands, and the one line that an error is.

use std::fmt::Display;
use std::io::Write;

/// The exit codes. `status` and `ls` follow the LSB's codes of `service NAME status`.
pub mod codes {
    /// Done; of `status` and `ls`: every slot has a ready worker.
    pub const OK: u8 = 0;
    /// Wrong usage.
    pub const USAGE: u8 = 2;
    /// No such instance runs.
    pub const NOT_RUNNING: u8 = 3;
    /// It cannot be told: no permission, or no answer.
    pub const UNKNOWN: u8 = 4;
    /// Some slot has no ready worker, also while it starts.
    pub const DEGRADED: u8 = 150;
    /// Given up: the old workers serve.
    pub const GIVEN_UP: u8 = 151;
    /// Superseded by a newer request.
    pub const SUPERSEDED: u8 = 153;
    /// The time-out of the command has passed; the supervisor goes on.
    pub const TIMED_OUT: u8 = 154;

    /// The meaning of each code with `status` and `ls`, and with the other commands, in the order of the documentation.
    pub const TABLE: [(u8, &str, &str); 8] = [
        (OK, "every slot has a ready worker", "done"),
        (USAGE, "wrong usage", "wrong usage, or the request does not fit: no such slot"),
        (NOT_RUNNING, "no such instance runs", "the same"),
        (UNKNOWN, "cannot tell: no permission, no answer", "the same"),
        (DEGRADED, "some slot has no ready worker, also while it starts", ""),
        (GIVEN_UP, "", "given up: the old workers serve"),
        (SUPERSEDED, "", "superseded by a newer request"),
        (TIMED_OUT, "", "the time-out has passed; the supervisor goes on"),
    ];
}

/// Prints the one line of an error. Returns the code.
pub(super) fn error(code: u8, why: &dyn Display) -> u8 {
    // If standard error is closed, the message has no other destination.
    let _closed = writeln!(std::io::stderr(), "master-process: {why}");
    code
}

/// Prints a usage error. Returns its code.
pub(super) fn usage(why: &dyn Display) -> u8 {
    error(codes::USAGE, why)
}
