//! The commands that look at and steer a running supervisor: `master-process status` and the like.
//!
//! They run in a process of their own, which has nothing of the supervisor but this program file. `TABLE` is the one
//! list of the commands: the command line, the help and the documentation follow it.

mod arguments;
mod connection;
mod doctor;
mod events;
mod exit;
mod find;
mod ls;
mod markdown;
mod metrics;
mod order;
mod reload;
mod show;
mod status;
mod steer;
#[cfg(feature = "top")]
mod top;
mod why;

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;

use clap::ArgMatches;

use connection::Failure;
pub use exit::codes;
pub use markdown::{codes_as_markdown, commands_as_markdown};

/// One command.
pub(crate) struct Topic {
    /// The first word of the command line.
    word: &'static str,
    /// What follows it.
    form: &'static str,
    /// What it does, as the help and the documentation say it.
    about: &'static str,
    /// Its arguments.
    arguments: fn(clap::Command) -> clap::Command,
    /// Runs it. The result is the exit code.
    run: fn(&ArgMatches) -> Result<u8, Failure>,
}

/// Every command, in the order of the help.
const TABLE: &[Topic] = &[
    Topic {
        word: "status",
        form: "[--wide] [-o FIELD,...]",
        about: "Show one instance: a row for each worker, and what to do about those that have a problem",
        arguments: status::arguments,
        run: status::run,
    },
    Topic {
        word: "ls",
        form: "",
        about: "Show all instances of this host that you may see, the worst first",
        arguments: ls::arguments,
        run: ls::run,
    },
    Topic {
        word: "reload",
        form: "[--wait] [--timeout DUR]",
        about: "Replace all workers, as SIGHUP does. With --wait, show how it goes, and fail when it is given up",
        arguments: reload::arguments,
        run: reload::run,
    },
    Topic {
        word: "stop",
        form: "[--wait] [--timeout DUR]",
        about: "Stop all workers and the supervisor, as SIGTERM does; a second time: kill what is left",
        arguments: steer::stop_arguments,
        run: steer::stop,
    },
    Topic {
        word: "scale",
        form: "N [--wait] [--timeout DUR]",
        about: "Run this number of workers",
        arguments: steer::scale_arguments,
        run: steer::scale,
    },
    Topic {
        word: "restart",
        form: "SLOT [--wait] [--timeout DUR]",
        about: "Replace the worker of one slot: the new one is ready before the old one stops",
        arguments: steer::restart_arguments,
        run: steer::restart,
    },
    Topic {
        word: "pause",
        form: "",
        about: "Pause the resource limits of all workers",
        arguments: steer::plain_arguments,
        run: steer::pause,
    },
    Topic {
        word: "resume",
        form: "",
        about: "Put the resource limits of all workers into force again",
        arguments: steer::plain_arguments,
        run: steer::resume,
    },
    Topic {
        word: "upgrade",
        form: "[--wait] [--timeout DUR]",
        about: "Have the program that is at the supervisor's path now take over, as SIGUSR1 does; the workers are not touched",
        arguments: steer::upgrade_arguments,
        run: steer::upgrade,
    },
    Topic {
        word: "events",
        form: "[-f] [--since SEQ]",
        about: "Show the recent events; with -f, each further one as it happens",
        arguments: events::arguments,
        run: events::run,
    },
    Topic {
        word: "why",
        form: "SLOT",
        about: "Show the last five ends of a slot that nobody asked for, each with everything that is known of it",
        arguments: why::arguments,
        run: why::run,
    },
    Topic {
        word: "metrics",
        form: "--all --listen ADDR",
        about: "Serve the metrics of all instances of this host that you may see, until it is stopped",
        arguments: metrics::arguments,
        run: metrics::run,
    },
    #[cfg(feature = "top")]
    Topic {
        word: "top",
        form: "",
        about: "Show one instance live in the terminal, and steer it by keys",
        arguments: top::arguments,
        run: top::run,
    },
    doctor::TOPIC,
];

/// The commands that are part of the interface and not of this build.
const LATER: &[&str] = &[
    #[cfg(not(feature = "top"))]
    "top",
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
    is_command(&word).then(|| Invocation { word, arguments: args.collect() })
}

/// Whether a word is a command.
pub(crate) fn is_command(word: &OsStr) -> bool {
    TABLE.iter().any(|topic| word == topic.word) || LATER.iter().any(|later| word == *later)
}

/// Runs a command. The result is the exit code of the process.
pub fn run(invocation: Invocation) -> ExitCode {
    let Some(topic) = TABLE.iter().find(|topic| invocation.word == topic.word) else {
        let word = invocation.word.display();
        return ExitCode::from(exit::usage(&format!("{word} is not part of this build")));
    };
    ExitCode::from(match arguments::read(topic, invocation.arguments) {
        Ok(matches) => {
            (topic.run)(&matches).unwrap_or_else(|failure| exit::error(failure.code, &failure.why))
        }
        Err(code) => code,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_line_of_command(line: &[&str]) -> bool {
        invocation(line.iter().map(OsString::from)).is_some()
    }

    #[test]
    fn the_first_word_decides() {
        assert!(is_line_of_command(&["master-process", "status"]));
        assert!(is_line_of_command(&["master-process", "doctor", "--json"]));
        for line in [
            &["master-process"][..],
            &["master-process", "--", "status"],
            &["master-process", "-w", "2", "--", "status"],
            &["master-process", "--name", "status", "--", "./app"],
            &["status"],
        ] {
            assert!(!is_line_of_command(line), "{line:?}");
        }
    }
}
