//! The commands that look at and steer a running supervisor: `master-process status` and the like.
//!
//! They run in a process of their own, which has nothing of the supervisor but this program file. [`TABLE`] is the one
//! list of the commands: the command line, the help and the documentation follow it.

mod arguments;
mod doctor;
mod exit;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::ArgMatches;

pub use exit::codes;

/// One command.
pub(crate) struct Topic {
    /// The first word of the command line.
    word: &'static str,
    /// What it does, as the help and the documentation say it.
    about: &'static str,
    /// Its arguments.
    arguments: fn(clap::Command) -> clap::Command,
    /// Runs it. The result is the exit code.
    run: fn(&ArgMatches) -> u8,
}

/// Every command, in the order of the help.
const TABLE: &[Topic] = &[doctor::TOPIC];

/// The commands that are part of the interface and not of this version.
const LATER: [&str; 12] = [
    "status", "ls", "reload", "stop", "scale", "restart", "pause", "resume", "events", "why", "top",
    "metrics",
];

/// A command of the command line, not run yet.
pub struct Invocation {
    word: OsString,
    arguments: Vec<OsString>,
}

/// The command that the first argument names; `None` if the command line is one of the supervisor. The first of `args`
/// is the name of the program. A program called `status` runs with `master-process -- status`.
pub fn invocation(mut args: impl Iterator<Item = OsString>) -> Option<Invocation> {
    let word = args.nth(1)?;
    let is_command = TABLE.iter().any(|topic| word == topic.word) || LATER.iter().any(|later| word == *later);
    is_command.then(|| Invocation { word, arguments: args.collect() })
}

/// Runs a command. The result is the exit code of the process.
pub fn run(invocation: Invocation) -> ExitCode {
    let Some(topic) = TABLE.iter().find(|topic| invocation.word == topic.word) else {
        let word = invocation.word.display();
        return ExitCode::from(exit::usage(&format!("{word} is not part of this version")));
    };
    ExitCode::from(match arguments::read(topic, invocation.arguments) {
        Ok(matches) => (topic.run)(&matches),
        Err(code) => code,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_command(line: &[&str]) -> bool {
        invocation(line.iter().map(OsString::from)).is_some()
    }

    #[test]
    fn the_first_word_decides() {
        assert!(is_command(&["master-process", "status"]));
        assert!(is_command(&["master-process", "doctor", "--json"]));
        for line in [
            &["master-process"][..],
            &["master-process", "--", "status"],
            &["master-process", "-w", "2", "--", "status"],
            &["master-process", "--name", "status", "--", "./app"],
            &["status"],
        ] {
            assert!(!is_command(line), "{line:?}");
        }
    }
}
