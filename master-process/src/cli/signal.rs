//! Signals by name or number.

use super::count;
use super::error::{Parsed, Reason};
use crate::config::Signal;
use crate::sys::signal_names;

/// The kernel's last signal.
const LAST: u32 = 64;

/// A signal that can ask a process to end.
pub(super) fn parse_stop(text: &str) -> Parsed<Signal> {
    let signal = parse(text)?;
    if ends_nothing(signal) {
        return Err("ends no process by itself; give a signal that does, such as TERM, INT or QUIT".into());
    }
    Ok(signal)
}

/// `TERM`, `SIGTERM`, `15`, `RTMIN+3`, in any case.
pub(super) fn parse(text: &str) -> Parsed<Signal> {
    if let Some(number) = count::within(text, &(1..=LAST)) {
        return i32::try_from(number).map(Signal).map_err(|_| unknown());
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    signal_names::number(name).or_else(|| realtime(name)).map(Signal).ok_or_else(unknown)
}

/// `RTMIN`, `RTMIN+n`, `RTMAX`, `RTMAX-n`, within the range that the C library leaves free.
fn realtime(name: &str) -> Option<i32> {
    let (first, last) = (libc::SIGRTMIN(), libc::SIGRTMAX());
    let number = if let Some(offset) = name.strip_prefix("RTMIN") {
        first.checked_add(steps(offset, '+')?)?
    } else {
        last.checked_sub(steps(name.strip_prefix("RTMAX")?, '-')?)?
    };
    (first..=last).contains(&number).then_some(number)
}

/// Nothing, or the sign and a number.
fn steps(offset: &str, sign: char) -> Option<i32> {
    if offset.is_empty() {
        return Some(0);
    }
    let number = count::within(offset.strip_prefix(sign)?, &(0..=LAST))?;
    i32::try_from(number).ok()
}

/// A signal that a process can have a handler for.
pub(super) fn parse_handled(text: &str) -> Parsed<Signal> {
    let signal = parse(text)?;
    if [libc::SIGKILL, libc::SIGSTOP].contains(&signal.0) {
        return Err("cannot be handled by any process; give a signal that can, such as USR1".into());
    }
    Ok(signal)
}

/// Whether the default action is to stop, to resume, or the bookkeeping of both.
fn ends_nothing(signal: Signal) -> bool {
    [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU, libc::SIGCONT, libc::SIGCHLD]
        .contains(&signal.0)
}

fn unknown() -> Reason {
    format!("is not a signal; give a name such as TERM, SIGINT or RTMIN+3, or a number from 1 to {LAST}")
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_with_and_without_sig_in_any_case() {
        for text in ["TERM", "SIGTERM", "term", "SigTerm", "15"] {
            assert_eq!(parse_stop(text), Ok(Signal(libc::SIGTERM)));
        }
        assert_eq!(parse_stop("winch"), Ok(Signal(libc::SIGWINCH)));
    }

    #[test]
    fn kill_is_accepted() {
        assert_eq!(parse_stop("KILL"), Ok(Signal(libc::SIGKILL)));
    }

    #[test]
    fn numbers_run_from_1_to_64() {
        assert_eq!(parse_stop("1"), Ok(Signal(1)));
        assert_eq!(parse_stop("64"), Ok(Signal(64)));
        assert!(parse_stop("0").is_err());
        assert!(parse_stop("65").is_err());
    }

    #[test]
    fn realtime_signals_count_from_either_end() {
        assert_eq!(parse_stop("RTMIN"), Ok(Signal(libc::SIGRTMIN())));
        assert_eq!(parse_stop("sigrtmin+3"), Ok(Signal(libc::SIGRTMIN() + 3)));
        assert_eq!(parse_stop("RTMAX-1"), Ok(Signal(libc::SIGRTMAX() - 1)));
        assert_eq!(parse_stop("RTMAX"), Ok(Signal(libc::SIGRTMAX())));
    }

    #[test]
    fn what_ends_nothing_is_refused_by_name_and_number() {
        for name in ["STOP", "SIGTSTP", "ttin", "TTOU", "CONT", "CHLD", "19"] {
            assert!(parse_stop(name).expect_err(name).starts_with("ends no process"), "{name}");
        }
    }

    #[test]
    fn garbage_is_told_what_is_accepted() {
        let garbage = [
            "",
            " ",
            "SIG",
            "SIGSIGTERM",
            "TERMINATE",
            "-9",
            "+9",
            "9 ",
            "RTMIN-1",
            "RTMAX+1",
            "RTMIN+",
            "RTMIN+31",
            "RTMAX-99",
            "RTMIN+x",
            "RTMIN+-1",
            "1e1",
            "0x9",
            "ЅIGTERM",
        ];
        for text in garbage {
            assert!(parse_stop(text).expect_err(text).starts_with("is not a signal"), "{text}");
        }
    }
}
