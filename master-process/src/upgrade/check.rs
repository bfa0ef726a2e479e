//! The question to a new program whether it can take over: it is started with the state, and answers.

use std::io::{self, Write};
use std::os::fd::{AsFd, RawFd};
use std::process::ExitCode;

use super::{State, VERSION};
use crate::sys::handover;
use crate::{cli, exit_code};

/// The argument that asks the question.
pub const CHECK: &str = "--check-state";

/// The descriptors of the program that is asked: the state, where the answer goes, and the file of the program.
pub const STATE_FD: RawFd = 3;
/// See [`STATE_FD`].
pub const ANSWER_FD: RawFd = 4;
/// See [`STATE_FD`].
pub const PROGRAM_FD: RawFd = 5;

/// The longest answer, in bytes.
const LONGEST: usize = 512;

/// The answer of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It can take over; its version.
    Accepts(String),
    /// It cannot, and why.
    Refuses(String),
}

impl Answer {
    /// Reads the text that a program has written. A program without an answer refuses.
    pub fn parse(text: &[u8]) -> Answer {
        let text = String::from_utf8_lossy(&text[..text.len().min(LONGEST)]);
        let line: String =
            text.lines().next().unwrap_or_default().chars().filter(|c| !c.is_control()).collect();
        match line.split_once(' ') {
            Some(("accepts", version)) if !version.is_empty() => Answer::Accepts(version.to_owned()),
            Some(("refuses", why)) => Answer::Refuses(why.to_owned()),
            Some(_) | None => Answer::Refuses("it does not answer as a master-process does".to_owned()),
        }
    }

    fn text(&self) -> String {
        match self {
            Answer::Accepts(version) => format!("accepts {version}\n"),
            Answer::Refuses(why) => format!("refuses {}\n", why.replace('\n', " ")),
        }
    }
}

/// Whether this command line asks the question.
pub fn is_check(mut arguments: impl Iterator<Item = std::ffi::OsString>) -> bool {
    arguments.nth(1).is_some_and(|argument| argument == CHECK) && arguments.next().is_none()
}

/// Answers the question: reads the state and the command line in it as if it took over.
pub fn answer_check() -> ExitCode {
    let answer = match read() {
        Ok(()) => Answer::Accepts(VERSION.to_owned()),
        Err(why) => Answer::Refuses(why),
    };
    let Some(to) = handover::left_open(ANSWER_FD) else { return ExitCode::from(exit_code::USAGE) };
    let written = std::fs::File::from(to).write_all(answer.text().as_bytes());
    match (answer, written) {
        (Answer::Accepts(_), Ok(())) => ExitCode::SUCCESS,
        (Answer::Accepts(_) | Answer::Refuses(_), _) => ExitCode::from(exit_code::FATAL),
    }
}

fn read() -> Result<(), String> {
    let state = handover::left_open(STATE_FD).ok_or("there is no state")?;
    let bytes = handover::unseal(state.as_fd()).map_err(|error: io::Error| format!("the state: {error}"))?;
    let state = State::parse(&bytes)?;
    match cli::parse(state.arguments.into_iter().map(|argument| argument.0)) {
        Ok(cli::Command::Run(_)) => Ok(()),
        Ok(cli::Command::Help(_) | cli::Command::Version(_)) => {
            Err("the command line runs nothing".to_owned())
        }
        Err(error) => Err(format!("the command line: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_as_it_was_written_and_anything_else_refuses() {
        for answer in [Answer::Accepts("0.2.0".to_owned()), Answer::Refuses("no\nroom".to_owned())] {
            let read = Answer::parse(answer.text().as_bytes());
            assert_eq!(read.text(), answer.text());
        }
        for text in ["", "accepts", "accepts ", "hello world", "\u{0}"] {
            assert!(matches!(Answer::parse(text.as_bytes()), Answer::Refuses(_)), "{text:?}");
        }
        let long = format!("refuses {}", "a\u{1b}b".repeat(1000));
        let Answer::Refuses(why) = Answer::parse(long.as_bytes()) else { unreachable!("it does") };
        assert!(why.len() < LONGEST && !why.contains('\u{1b}'));
    }

    #[test]
    fn only_the_whole_command_line_asks() {
        let asks = |line: &[&str]| is_check(line.iter().map(std::ffi::OsString::from));
        assert!(asks(&["master-process", "--check-state"]));
        assert!(!asks(&["master-process", "--check-state", "--", "x"]) && !asks(&["--check-state"]));
    }
}
