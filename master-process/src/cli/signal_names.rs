//! The parsers of signals, by name or number.

use super::usage_error::{Parsed, Reason};
use super::values::within;
use crate::config::Signal;

/// The names of signal(7), without SIG. The numbers depend on the architecture.
const NAMES: &[(&str, i32)] = &[
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("ILL", libc::SIGILL),
    ("TRAP", libc::SIGTRAP),
    ("ABRT", libc::SIGABRT),
    ("BUS", libc::SIGBUS),
    ("FPE", libc::SIGFPE),
    ("KILL", libc::SIGKILL),
    ("USR1", libc::SIGUSR1),
    ("SEGV", libc::SIGSEGV),
    ("USR2", libc::SIGUSR2),
    ("PIPE", libc::SIGPIPE),
    ("ALRM", libc::SIGALRM),
    ("TERM", libc::SIGTERM),
    ("STKFLT", libc::SIGSTKFLT),
    ("CHLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("STOP", libc::SIGSTOP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
    ("VTALRM", libc::SIGVTALRM),
    ("PROF", libc::SIGPROF),
    ("WINCH", libc::SIGWINCH),
    ("IO", libc::SIGIO),
    ("POLL", libc::SIGPOLL),
    ("PWR", libc::SIGPWR),
    ("SYS", libc::SIGSYS),
];

/// The highest signal number of the kernel.
const LAST: u32 = 64;

/// `--stop-signal SIG`: any signal except those of job control, which do not end a process.
pub(super) fn stop(text: &str) -> Parsed<Signal> {
    let signal = parse(text)?;
    if is_job_control(signal) {
        return Err("does not end a process; expected a signal that does, such as TERM, INT or QUIT".into());
    }
    Ok(signal)
}

/// `--memory-high-signal SIG`: a signal that a process can handle.
pub(super) fn handled(text: &str) -> Parsed<Signal> {
    let signal = parse(text)?;
    if [libc::SIGKILL, libc::SIGSTOP].contains(&signal.0) {
        return Err("cannot be handled; expected a signal that can, such as USR1".into());
    }
    Ok(signal)
}

/// `TERM`, `SIGTERM`, `15`, `RTMIN+3`, in any case.
fn parse(text: &str) -> Parsed<Signal> {
    if let Some(number) = within(text, &(1..=LAST)) {
        return i32::try_from(number).map(Signal).map_err(|_| unknown());
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let named = NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
    named.or_else(|| realtime(name)).map(Signal).ok_or_else(unknown)
}

/// `RTMIN`, `RTMIN+n`, `RTMAX`, `RTMAX-n`, within the range of the C library.
fn realtime(name: &str) -> Option<i32> {
    let (first, last) = (libc::SIGRTMIN(), libc::SIGRTMAX());
    let number = if let Some(offset) = name.strip_prefix("RTMIN") {
        first.checked_add(steps(offset, '+')?)?
    } else {
        last.checked_sub(steps(name.strip_prefix("RTMAX")?, '-')?)?
    };
    (first..=last).contains(&number).then_some(number)
}

/// The offset of a real-time signal: nothing, or the sign and a number.
fn steps(offset: &str, sign: char) -> Option<i32> {
    if offset.is_empty() {
        return Some(0);
    }
    let number = within(offset.strip_prefix(sign)?, &(0..=LAST))?;
    i32::try_from(number).ok()
}

/// Whether the signal is one of job control: it stops or continues a process, or reports that.
fn is_job_control(signal: Signal) -> bool {
    [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU, libc::SIGCONT, libc::SIGCHLD]
        .contains(&signal.0)
}

fn unknown() -> Reason {
    format!("expected a name such as TERM, SIGINT or RTMIN+3, or a number from 1 to {LAST}").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_an_optional_sig_and_any_case() {
        for text in ["TERM", "SIGTERM", "term", "SigTerm", "15"] {
            assert_eq!(stop(text), Ok(Signal(libc::SIGTERM)));
        }
        assert_eq!(stop("winch"), Ok(Signal(libc::SIGWINCH)));
    }

    #[test]
    fn kill_is_accepted() {
        assert_eq!(stop("KILL"), Ok(Signal(libc::SIGKILL)));
    }

    #[test]
    fn numbers_run_from_1_to_64() {
        assert_eq!(stop("1"), Ok(Signal(1)));
        assert_eq!(stop("64"), Ok(Signal(64)));
        assert!(stop("0").is_err());
        assert!(stop("65").is_err());
    }

    #[test]
    fn realtime_signals_count_from_either_end() {
        assert_eq!(stop("RTMIN"), Ok(Signal(libc::SIGRTMIN())));
        assert_eq!(stop("sigrtmin+3"), Ok(Signal(libc::SIGRTMIN() + 3)));
        assert_eq!(stop("RTMAX-1"), Ok(Signal(libc::SIGRTMAX() - 1)));
        assert_eq!(stop("RTMAX"), Ok(Signal(libc::SIGRTMAX())));
    }

    #[test]
    fn a_stop_signal_is_not_one_of_job_control() {
        for name in ["STOP", "SIGTSTP", "ttin", "TTOU", "CONT", "CHLD", "19"] {
            assert!(stop(name).expect_err(name).starts_with("does not end a process"), "{name}");
        }
    }

    #[test]
    fn another_text_is_no_signal() {
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
            assert!(stop(text).expect_err(text).starts_with("expected a name such as TERM"), "{text}");
        }
    }
}
