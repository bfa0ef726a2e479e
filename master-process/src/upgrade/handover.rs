//! What a program finds that was executed to take over: a variable names the descriptors of the state and of the program
//! before.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

use super::{Argument, State};
use crate::sys::handover::{self, Executable};

/// `PID:STATE:BACK:REASON`: the pid, so that it has a meaning for this process only; the descriptor of the state; that
/// of the program before, or nothing if there is no way back; and why a program could not take over.
pub const VARIABLE: &str = "MASTER_PROCESS_STATE";

/// The environment of this process with another value of [`VARIABLE`].
///
/// # Errors
/// None: no variable contains a zero byte.
pub fn environment(
    state: BorrowedFd<'_>,
    back: Option<BorrowedFd<'_>>,
    reason: &str,
) -> io::Result<Vec<CString>> {
    let back = back.map(|back| back.as_raw_fd().to_string()).unwrap_or_default();
    let pid = std::process::id();
    let reason = reason.replace('\0', " ");
    let value = format!("{VARIABLE}={pid}:{}:{back}:{reason}", state.as_raw_fd());
    let others = std::env::vars_os().filter(|(name, _)| name != VARIABLE);
    let pair = |(name, value): (OsString, OsString)| [name.as_bytes(), b"=", value.as_bytes()].concat();
    let all = others.map(pair).chain([value.into_bytes()]);
    all.map(|text| CString::new(text).map_err(io::Error::from)).collect()
}

/// What this process was executed with to take over.
#[derive(Debug)]
pub struct Handover {
    state: OwnedFd,
    back: Option<OwnedFd>,
    /// Why the program that was to take over could not: this is the old one again.
    pub reason: Option<String>,
}

impl Handover {
    /// `None`: this process takes over from nobody. It must be called before anything opens a descriptor.
    ///
    /// # Errors
    /// The variable is meant for this process and names no descriptors.
    pub fn from_environment() -> Result<Option<Handover>, String> {
        let Some(value) = std::env::var_os(VARIABLE) else { return Ok(None) };
        let Some(named) = Named::parse(&value, std::process::id()) else { return Ok(None) };
        let open = |number| handover::left_open(number).ok_or(format!("{VARIABLE}: {number} is not open"));
        let state = open(named.state)?;
        let back = named.back.map(open).transpose()?;
        Ok(Some(Handover { state, back, reason: named.reason }))
    }

    /// The state.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub fn read(&self) -> Result<State, String> {
        let bytes = handover::unseal(self.state.as_fd()).map_err(|error| format!("the state: {error}"))?;
        State::parse(&bytes)
    }

    /// The descriptors of the state and of the program before.
    #[must_use]
    pub fn own_descriptors(&self) -> Vec<RawFd> {
        self.back.iter().chain([&self.state]).map(AsRawFd::as_raw_fd).collect()
    }

    /// Executes the program before again, with the same state. It returns only if there is no way back: why.
    #[must_use]
    pub fn go_back(&self, arguments: &[Argument], reason: &str) -> String {
        let Some(back) = &self.back else { return reason.to_owned() };
        let words = arguments.iter().map(|argument| CString::new(argument.0.as_bytes()));
        let tried = words.collect::<Result<Vec<_>, _>>().map_err(io::Error::from).and_then(|arguments| {
            handover::pass_on(self.state.as_fd(), true)?;
            let environment = environment(self.state.as_fd(), None, reason)?;
            Ok(handover::execute(Executable::Fd(back.as_fd()), &arguments, &environment))
        });
        let error = tried.unwrap_or_else(|error| error);
        format!("{reason}; the program before cannot be executed: {error}")
    }
}

/// The value of the variable.
#[derive(Debug, PartialEq, Eq)]
struct Named {
    state: RawFd,
    back: Option<RawFd>,
    reason: Option<String>,
}

impl Named {
    /// `None`: it is for another process.
    fn parse(value: &OsStr, pid: u32) -> Option<Named> {
        let text = value.to_str()?;
        let mut parts = text.splitn(4, ':');
        let mut next = || parts.next();
        (next()? == pid.to_string()).then_some(())?;
        let state = next()?.parse().ok()?;
        let back = next()?.parse().ok();
        let reason = next().filter(|reason| !reason.is_empty()).map(str::to_owned);
        Some(Named { state, back, reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_has_a_meaning_for_one_process() {
        let parse = |text: &str| Named::parse(OsStr::new(text), 17);
        let named =
            |back, reason: Option<&str>| Some(Named { state: 9, back, reason: reason.map(str::to_owned) });
        assert_eq!(parse("17:9:11:"), named(Some(11), None));
        assert_eq!(parse("17:9::it has: a reason"), named(None, Some("it has: a reason")));
        for other in ["", "18:9:11:", "17", "17:x:11:", "17:9"] {
            assert_eq!(parse(other), None, "{other:?}");
        }
    }
}
