//! The supervisor's exit codes: the contract with service managers and scripts.

/// The meaning of each code, in the order of the table in the documentation.
pub const TABLE: [(u8, &str); 6] = [
    (STOPPED, "stopped by a signal, or by the end of its terminal"),
    (
        FATAL,
        "it could not start for a reason that is not below, and nothing was left running; or its program has changed (`--on-upgrade exit`)",
    ),
    (USAGE, "wrong usage: one line names the flag or variable, the value, and what would be accepted"),
    (GAVE_UP, "gave up: too many early exits (`--give-up`)"),
    (NOT_EXECUTABLE, "the command cannot be executed (only if the very first start fails so)"),
    (NOT_FOUND, "the command was not found (only if the very first start fails so)"),
];

/// Stopped by a signal, or by the end of its terminal.
pub const STOPPED: u8 = 0;
/// Something that the supervisor cannot do without was refused, or its program has changed.
pub const FATAL: u8 = 1;
/// Wrong usage.
pub const USAGE: u8 = 2;
/// `--give-up`'s limit was reached; sysexits' EX_SOFTWARE.
pub const GAVE_UP: u8 = 70;
/// As a shell has it for a command that it may not execute.
pub const NOT_EXECUTABLE: u8 = 126;
/// As a shell has it for a command that it does not find.
pub const NOT_FOUND: u8 = 127;
