//! The disposition of a signal in another process, from `/proc/PID/status`: proc_pid_status(5).

use rustix::process::Pid;

/// The disposition of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignalDisposition {
    /// The default action of signal(7); for most signals it ends the process.
    Default,
    /// The process ignores the signal.
    Ignored,
    /// The process has a handler for it.
    Handled,
}

/// The disposition of signal `number` in process `pid`; `None` if it cannot be read.
pub fn of(pid: Pid, number: i32) -> Option<SignalDisposition> {
    // The name in the first line is cut after 15 bytes, also inside a character, so the file need not be UTF-8.
    let status = std::fs::read(format!("/proc/{}/status", pid.as_raw_pid())).ok()?;
    parse(&String::from_utf8_lossy(&status), number)
}

fn parse(status: &str, number: i32) -> Option<SignalDisposition> {
    let bit = 1u64.checked_shl(u32::try_from(number).ok()?.checked_sub(1)?)?;
    let set = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        u64::from_str_radix(line.strip_prefix(':')?.trim(), 16).ok()
    };
    Some(if set("SigCgt")? & bit != 0 {
        SignalDisposition::Handled
    } else if set("SigIgn")? & bit != 0 {
        SignalDisposition::Ignored
    } else {
        SignalDisposition::Default
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str =
        "Name:\tSigCgt: x\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001000\nSigCgt:\t0000000180014802\n";

    #[test]
    fn the_sets_have_the_lowest_signal_in_their_lowest_bit() {
        assert_eq!(parse(STATUS, libc::SIGINT), Some(SignalDisposition::Handled));
        assert_eq!(parse(STATUS, libc::SIGUSR2), Some(SignalDisposition::Handled));
        assert_eq!(parse(STATUS, libc::SIGPIPE), Some(SignalDisposition::Ignored));
        assert_eq!(parse(STATUS, libc::SIGHUP), Some(SignalDisposition::Default));
    }

    #[test]
    fn a_name_that_is_not_utf_8_hides_nothing() {
        let name = std::ffi::CString::new("\u{e9}".repeat(9)).expect("no zero byte");
        let thread = std::thread::spawn(move || {
            rustix::thread::set_name(&name).expect("its own name");
            of(rustix::thread::gettid(), libc::SIGSEGV)
        });
        // The runtime has a handler for stack overflows.
        assert_eq!(thread.join().expect("it ends"), Some(SignalDisposition::Handled));
    }

    #[test]
    fn what_cannot_be_read_is_unknown() {
        assert_eq!(parse("", libc::SIGUSR2), None);
        assert_eq!(parse(STATUS, 0), None);
        assert_eq!(parse(STATUS, 65), None);
    }
}
