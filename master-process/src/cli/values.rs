//! The parsers of numbers, durations, sizes, words, signals and directories.
//!
//! A number is digits. `str::parse` would also accept `+5`, `1e3` and `inf`, which are mistakes.

use std::ffi::OsString;
use std::io;
use std::ops::RangeInclusive;
use std::path::{Component, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;

use super::host::Host;
use super::usage_error::{Parsed, Reason};
use crate::config::{Batch, Control, GiveUp, MAX_WORKERS, Signal};
use crate::control;
use crate::sys::signal_names;

/// The largest count of early deaths or attempts: larger than any of use, and a list with an entry for each stays below
/// a few megabytes.
const MAX_COUNT: u32 = 100_000;

/// 100 years of 365.25 days. Any longer is a mistake, and `now + duration` stays far from every overflow.
const MAX_DURATION: Duration = Duration::from_secs(3_155_760_000);

/// Enough for 100 years in milliseconds. humantime 2.4 panics when parts add up to 2^64 seconds exactly in the
/// carry of the nanoseconds, which takes 16 digits or more.
const MAX_DURATION_DIGITS: usize = 14;

/// `/proc` counts CPU time in ticks of 10 ms, and a shorter interval keeps the supervisor busy. A bare `2`, which is
/// milliseconds, is a mistake for seconds.
const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// One percent of a CPU, in nanoseconds of each second.
const PERCENT_NS: f64 = 10_000_000.0;

/// 10,000 CPUs. Any more is a mistake.
const MAX_PERCENT: f64 = 1_000_000.0;

/// The start of the smallest programs takes a few hundred KiB. A bare `512`, which is bytes, is a mistake for MiB.
const MIN_CGROUP_MEMORY: u64 = 1 << 20;

/// The kernel's shortest quota in its default period: 1 % of a CPU, in nanoseconds of each second.
const MIN_CGROUP_CPU: u64 = 10_000_000;

/// The kernel's largest number of processes: `PID_MAX_LIMIT`.
const MAX_PIDS: u32 = 4_194_304;

/// Twice the CPUs of the largest hosts. A start that finds no place has tried all of them.
pub(super) const MAX_START_GATE: u32 = 4096;

/// The highest signal number of the kernel.
const MAX_SIGNAL: u32 = 64;

/// The kernel's limit for the path of a Unix socket, without its zero: unix(7).
const MAX_SOCKET_PATH: usize = 107;

/// The nine permission bits. A socket has no use for setuid and the like.
const PERMISSIONS: u32 = 0o777;

/// Whether the text is a bare, unsigned number.
pub(super) fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// A number of digits within the range.
pub(super) fn within(text: &str, range: &RangeInclusive<u32>) -> Option<u32> {
    let number = if is_digits(text) { text.parse().ok() } else { None };
    number.filter(|number| range.contains(number))
}

/// 1 to [`MAX_COUNT`].
pub(super) fn count(text: &str) -> Parsed<u32> {
    within(text, &(1..=MAX_COUNT)).ok_or_else(|| format!("expected a number from 1 to {MAX_COUNT}").into())
}

/// `--workers N|max|auto`. `cpus` is called only if the result depends on it.
pub(super) fn workers(text: &str, cpus: impl Fn() -> u32) -> Parsed<u32> {
    if text.eq_ignore_ascii_case("max") {
        return Ok(cpus().clamp(1, MAX_WORKERS));
    }
    if text.eq_ignore_ascii_case("auto") {
        return Ok(cpus().saturating_sub(1).clamp(1, MAX_WORKERS));
    }
    within(text, &(1..=MAX_WORKERS)).ok_or_else(|| format!("expected 1 to {MAX_WORKERS}, max or auto").into())
}

/// `--reload-batch N|N%|all`.
pub(super) fn batch(text: &str) -> Parsed<Batch> {
    let batch = match text.strip_suffix('%') {
        Some(percent) => within(percent, &(1..=100)).map(Batch::Percent),
        None if text == "all" => Some(Batch::All),
        None => within(text, &(1..=MAX_WORKERS)).map(Batch::Slots),
    };
    batch.ok_or_else(|| format!("expected 1 to {MAX_WORKERS} slots, 1% to 100%, or all").into())
}

/// `--start-gate N|off`. `None` is `off`.
pub(super) fn start_gate(text: &str) -> Parsed<Option<u32>> {
    if text.eq_ignore_ascii_case("off") {
        return Ok(None);
    }
    let places = within(text, &(1..=MAX_START_GATE)).map(Some);
    places.ok_or_else(|| format!("expected 1 to {MAX_START_GATE}, or off").into())
}

/// One of the words of `choices`.
pub(super) fn choice<T: Copy>(text: &str, choices: &[(&str, T)]) -> Parsed<T> {
    match choices.iter().find(|(word, _)| *word == text) {
        Some((_, value)) => Ok(*value),
        None => Err(format!("expected {}", alternatives(choices)).into()),
    }
}

/// The words in a sentence: `a, b or c`.
fn alternatives<T>(choices: &[(&str, T)]) -> String {
    let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
    match words.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        Some(_) | None => words.concat(),
    }
}

/// A duration, zero included. A bare number is milliseconds.
pub(super) fn duration(text: &str) -> Parsed<Duration> {
    let known = match is_digits(text) {
        true => text.parse().ok().map(Duration::from_millis),
        false => with_units(text)?,
    };
    known.filter(|duration| *duration <= MAX_DURATION).ok_or("too long; expected at most 100 years".into())
}

/// A duration, zero excluded.
pub(super) fn positive_duration(text: &str) -> Parsed<Duration> {
    match duration(text)? {
        Duration::ZERO => Err("expected a duration longer than zero, such as 60s".into()),
        duration => Ok(duration),
    }
}

/// `--monitor-interval DUR`.
pub(super) fn interval(text: &str) -> Parsed<Duration> {
    let interval = positive_duration(text)?;
    if interval < MIN_INTERVAL {
        return Err("too short; expected 10ms or more, such as 2s".into());
    }
    Ok(interval)
}

/// `None`: a duration that is too long to be read.
fn with_units(text: &str) -> Parsed<Option<Duration>> {
    if text.bytes().filter(u8::is_ascii_digit).count() > MAX_DURATION_DIGITS {
        return Err("too many digits; expected a larger unit, such as 5s or 2min".into());
    }
    match humantime::parse_duration(text) {
        Ok(duration) => Ok(Some(duration)),
        Err(humantime::DurationError::NumberOverflow) => Ok(None),
        Err(_) => Err("expected a duration such as 300ms, 5s or 2min; a bare number is milliseconds".into()),
    }
}

/// `--give-up N/DUR|off`. `None` is `off`.
pub(super) fn give_up(text: &str) -> Parsed<Option<GiveUp>> {
    if text == "off" {
        return Ok(None);
    }
    let form = || -> Reason {
        format!("expected N/DUR with N from 1 to {MAX_COUNT}, such as 5/1min, or off").into()
    };
    let (deaths, within_time) = text.split_once('/').ok_or_else(form)?;
    let deaths = within(deaths, &(1..=MAX_COUNT)).ok_or_else(form)?;
    let within = positive_duration(within_time)
        .map_err(|reason| Reason::from(format!("duration {within_time:?}: {reason}")))?;
    Ok(Some(GiveUp { deaths, within }))
}

/// `--preload CMD`: the words of a command line, as a shell splits and unquotes them.
pub(super) fn command_line(text: &str) -> Parsed<Vec<OsString>> {
    // A line break is a mistake more often than an argument, and makes messages of several lines.
    if text.contains(char::is_control) {
        return Err("a control character; expected a command line".into());
    }
    match shlex::split(text) {
        Some(words) if words.first().is_some_and(|command| !command.is_empty()) => {
            Ok(words.into_iter().map(OsString::from).collect())
        }
        Some(_) => Err("no command; expected a command line".into()),
        None => Err("a quote that is not closed; expected a command line".into()),
    }
}

/// A size in bytes, zero and `off` excluded.
pub(super) fn limit(text: &str) -> Parsed<u64> {
    match size(text) {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err("expected a size such as 256MiB".into()),
        Err(reason) => Err(reason.replace(", or off", "").into()),
    }
}

/// A size of memory in bytes, zero excluded. `None` is `off`.
pub(super) fn size(text: &str) -> Parsed<Option<u64>> {
    if text.eq_ignore_ascii_case("off") {
        return Ok(None);
    }
    if is_digits(text) && text.bytes().any(|digit| digit != b'0') {
        return Err("no unit; expected a size such as 1200MiB or 1.2GB, or off".into());
    }
    // `M` alone is 1024 times 1024, as for systemd and container engines.
    let is_short = text.ends_with(|last: char| "kmgtKMGT".contains(last));
    let whole = if is_short { format!("{text}iB") } else { text.to_owned() };
    match whole.parse::<ByteSize>().map(|size| size.as_u64()) {
        Ok(0) => Err("expected a size larger than zero, such as 1200MiB, or off".into()),
        Ok(u64::MAX) => Err("too large; expected a size such as 1200MiB, or off".into()),
        Ok(bytes) => Ok(Some(bytes)),
        Err(_) => Err("expected a number with a unit, such as 1200MiB or 1.2GB, or off".into()),
    }
}

/// `--max-cpu PERCENT|off`, as CPU nanoseconds in a second. `None` is `off`.
pub(super) fn percent(text: &str) -> Parsed<Option<u64>> {
    if text.eq_ignore_ascii_case("off") {
        return Ok(None);
    }
    let number = text.strip_suffix('%').unwrap_or(text);
    let is_plain = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let percent = number.parse::<f64>().ok();
    match percent.filter(|percent| is_plain && (0.01..=MAX_PERCENT).contains(percent)) {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within 10^5 and 10^13")]
        Some(percent) => Ok(Some((percent * PERCENT_NS).round() as u64)),
        None => Err("expected percent of one CPU, such as 95 or 250, or off".into()),
    }
}

/// Whether the text says that there is no limit: in our words, or in those of systemd.
fn is_unlimited(text: &str) -> bool {
    text.eq_ignore_ascii_case("off") || text == "infinity"
}

/// `--worker-memory-max SIZE|off`. `None` is `off`. A bare number is bytes, as for systemd.
pub(super) fn cgroup_memory(text: &str) -> Parsed<Option<u64>> {
    if is_unlimited(text) {
        return Ok(None);
    }
    let bytes = if is_digits(text) { text.parse().ok() } else { size(text)? };
    match bytes {
        Some(bytes) if bytes >= MIN_CGROUP_MEMORY => Ok(Some(bytes)),
        Some(_) => Err("too small for a program; expected 1MiB or more, such as 512M, or off".into()),
        None => Err("too large; expected a size such as 512M, or off".into()),
    }
}

/// `--worker-cpu-max PERCENT|off`, as CPU nanoseconds in a second. `None` is `off`.
pub(super) fn cgroup_cpu(text: &str) -> Parsed<Option<u64>> {
    if is_unlimited(text) {
        return Ok(None);
    }
    match percent(text)? {
        Some(ns) if ns < MIN_CGROUP_CPU => Err("too little; expected 1% or more of one CPU, or off".into()),
        parsed => Ok(parsed),
    }
}

/// `--worker-pids-max N|off`. `None` is `off`.
pub(super) fn cgroup_pids(text: &str) -> Parsed<Option<u32>> {
    if is_unlimited(text) {
        return Ok(None);
    }
    let most = within(text, &(1..=MAX_PIDS)).map(Some);
    most.ok_or_else(|| format!("expected a number from 1 to {MAX_PIDS}, or off").into())
}

/// `--cgroup PATH`.
pub(super) fn cgroup_path(text: &str) -> Parsed<PathBuf> {
    let path: PathBuf = PathBuf::from(text).components().collect();
    let is_plain = path.is_absolute() && !path.components().any(|part| part == Component::ParentDir);
    if is_plain && !text.contains(char::is_control) {
        return Ok(path);
    }
    Err("expected the absolute path of a cgroup, such as /sys/fs/cgroup/app".into())
}

/// Permission bits in octal, as for chmod(1) and umask(1): `664`, `0664`, `0o664`.
pub(super) fn mode(text: &str) -> Parsed<u32> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    let mode = if is_digits(digits) { u32::from_str_radix(digits, 8).ok() } else { None };
    mode.filter(|mode| *mode <= PERMISSIONS).ok_or("expected octal digits up to 777, such as 664".into())
}

/// `--stop-signal SIG`: any signal except those of job control, which do not end a process.
pub(super) fn stop_signal(text: &str) -> Parsed<Signal> {
    let signal = signal(text)?;
    if is_job_control(signal) {
        return Err("does not end a process; expected a signal that does, such as TERM, INT or QUIT".into());
    }
    Ok(signal)
}

/// `--memory-high-signal SIG`: a signal that a process can handle.
pub(super) fn handled_signal(text: &str) -> Parsed<Signal> {
    let signal = signal(text)?;
    if [libc::SIGKILL, libc::SIGSTOP].contains(&signal.0) {
        return Err("cannot be handled; expected a signal that can, such as USR1".into());
    }
    Ok(signal)
}

/// `TERM`, `SIGTERM`, `15`, `RTMIN+3`, in any case.
fn signal(text: &str) -> Parsed<Signal> {
    if let Some(number) = within(text, &(1..=MAX_SIGNAL)) {
        return i32::try_from(number).map(Signal).map_err(|_| unknown_signal());
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    signal_names::number(name).or_else(|| realtime(name)).map(Signal).ok_or_else(unknown_signal)
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

/// The offset of a real-time signal: nothing, or the prefix and a number.
fn steps(offset: &str, prefix: char) -> Option<i32> {
    if offset.is_empty() {
        return Some(0);
    }
    let number = within(offset.strip_prefix(prefix)?, &(0..=MAX_SIGNAL))?;
    i32::try_from(number).ok()
}

/// Whether the signal is one of job control: it stops or continues a process, or reports that.
fn is_job_control(signal: Signal) -> bool {
    [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU, libc::SIGCONT, libc::SIGCHLD]
        .contains(&signal.0)
}

fn unknown_signal() -> Reason {
    format!("expected a name such as TERM, SIGINT or RTMIN+3, or a number from 1 to {MAX_SIGNAL}").into()
}

/// `--name NAME`: a part of a file name.
pub(super) fn instance_name(text: &str) -> Parsed<String> {
    match control::is_name(text) {
        true => Ok(text.to_owned()),
        false => {
            Err(format!("expected 1 to {} of a-z, A-Z, 0-9, '.', '_' and '-'", control::MAX_NAME).into())
        }
    }
}

/// `--control PATH|off`.
pub(super) fn control(text: &str, host: &dyn Host) -> Parsed<Control> {
    if text == "off" {
        return Ok(Control::Off);
    }
    if text.contains(char::is_control) || text.ends_with('/') || PathBuf::from(text).file_name().is_none() {
        return Err("expected the path of a socket, or off".into());
    }
    let path = absolute(text, || host.current_dir())?;
    // The lock file beside it has a longer name, and no such limit.
    if path.as_os_str().len() > MAX_SOCKET_PATH {
        return Err(format!("longer than the {MAX_SOCKET_PATH} bytes of a socket's path").into());
    }
    Ok(Control::At(path))
}

/// `--chdir DIR`: the absolute path of a directory. Its symlinks stay in it, and are followed at every start.
pub(super) fn directory(text: &str, host: &dyn Host) -> Parsed<PathBuf> {
    if text.is_empty() {
        return Err("not a directory; expected the path of one".into());
    }
    let path = absolute(text, || host.logical_dir())?;
    match host.is_dir(&path) {
        Ok(true) => Ok(path),
        Ok(false) => Err("not a directory; expected the path of one".into()),
        Err(error) => Err(format!("{error}; expected the path of a directory").into()),
    }
}

/// The path from the root on. `.` and doubled slashes are removed, `..` and symlinks stay.
pub(super) fn absolute(path: &str, base: impl Fn() -> io::Result<PathBuf>) -> Parsed<PathBuf> {
    if path.starts_with('/') {
        return Ok(PathBuf::from(path).components().collect());
    }
    let base = base().map_err(|error| {
        Reason::from(format!("relative to an unknown current directory ({error}); expected an absolute path"))
    })?;
    Ok(base.join(path).components().collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fmt::Debug;
    use std::path::Path;

    use super::super::host::testing::TestHost;
    use super::*;

    /// Each of `values` is refused, with an error that contains `part`.
    fn refuses<T: Debug>(parse: impl Fn(&str) -> Parsed<T>, part: &str, values: &[&str]) {
        for value in values {
            let reason = parse(value).expect_err(value);
            assert!(reason.contains(part), "{value:?}: {reason}");
        }
    }

    #[test]
    fn numbers_are_digits_within_inclusive_bounds() {
        assert_eq!((within("1", &(1..=3)), within("3", &(1..=3))), (Some(1), Some(3)));
        assert_eq!((within("0", &(1..=3)), within("4", &(1..=3))), (None, None));
        for garbage in ["", " ", "+5", "-5", "5 ", "1e1", "0x5", "5.0", "٣", "99999999999999999999"] {
            assert_eq!(within(garbage, &(0..=u32::MAX)), None, "{garbage:?}");
        }
        assert_eq!(count("3"), Ok(3));
        assert_eq!(count("0").expect_err("too small"), "expected a number from 1 to 100000");
    }

    #[test]
    fn a_number_of_workers() {
        let on_8_cpus = |text: &str| workers(text, || 8);
        assert_eq!((on_8_cpus("1"), on_8_cpus("100000")), (Ok(1), Ok(100_000)));
        for max in ["max", "MAX", "Max"] {
            assert_eq!(on_8_cpus(max), Ok(8));
        }
        for auto in ["auto", "AUTO", "aUto"] {
            assert_eq!(on_8_cpus(auto), Ok(7));
        }
        assert_eq!(workers("auto", || 1), Ok(1), "one worker on one CPU");
        let garbage = ["0", "-1", "100001", "1e9", "1000000000", "", " ", "1.5", "maximum", "+1"];
        refuses(on_8_cpus, "expected 1 to 100000, max or auto", &garbage);
    }

    #[test]
    fn a_batch_is_slots_percent_or_all() {
        assert_eq!(batch("1"), Ok(Batch::Slots(1)));
        assert_eq!(batch("25%"), Ok(Batch::Percent(25)));
        assert_eq!(batch("100%"), Ok(Batch::Percent(100)));
        assert_eq!(batch("all"), Ok(Batch::All));
        let garbage = ["", "0", "0%", "101%", "%", "50 %", "50%%", "-1", "1.5%", "ALL", "half", "100001"];
        refuses(batch, "expected 1 to 100000 slots, 1% to 100%, or all", &garbage);
    }

    #[test]
    fn a_gate_has_places_or_is_off() {
        assert_eq!((start_gate("1"), start_gate("4096")), (Ok(Some(1)), Ok(Some(4096))));
        assert_eq!((start_gate("off"), start_gate("OFF")), (Ok(None), Ok(None)));
        let garbage = ["", "0", "-1", "4097", "1.5", "auto", "on", "8 ", "2x", "99999999999999999999"];
        refuses(start_gate, "expected 1 to 4096, or off", &garbage);
    }

    #[test]
    fn a_word_is_one_of_the_choices() {
        let parse = |text: &str| choice(text, &[("auto", 0), ("shared", 1), ("off", 2)]);
        assert_eq!(parse("shared"), Ok(1));
        let garbage = ["", "Auto", "auto ", "shared,off", "1"];
        refuses(parse, "expected auto, shared or off", &garbage);
    }

    #[test]
    fn a_duration_has_units_or_is_milliseconds() {
        assert_eq!(duration("300ms"), Ok(Duration::from_millis(300)));
        assert_eq!(duration("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("2min"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("1min 30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("5"), Ok(Duration::from_millis(5)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        assert_eq!(duration("5000"), Ok(Duration::from_secs(5)));
        let garbage =
            ["", " ", "1e3", "-5", "-5s", "5 parsecs", "s", "5 s s", "5s,", "0x5s", "1.s", "+5", "5;", "∞"];
        refuses(duration, "expected a duration such as 300ms", &garbage);
    }

    #[test]
    fn a_hundred_years_are_the_longest_duration() {
        assert_eq!(duration("100years"), Ok(MAX_DURATION));
        assert_eq!(duration("3155760000000"), Ok(MAX_DURATION));
        let long = ["101years", "3155760000001", "100years 1ns", "99999999999999", "99999999999999years"];
        refuses(duration, "expected at most 100 years", &long);
        assert!(duration("99999999999999999999999").is_err());
    }

    #[test]
    fn what_makes_humantime_panic_is_refused() {
        assert!(duration("18446744073709551615s 1000000000ns").is_err());
        assert!(duration("18446744073709551615s999ms1ms").is_err());
    }

    #[test]
    fn the_memory_of_a_cgroup_is_a_size_as_systemd_takes_it() {
        assert_eq!(cgroup_memory("512M"), Ok(Some(512 << 20)));
        assert_eq!(cgroup_memory("1.5G"), Ok(Some(3 << 29)));
        assert_eq!(cgroup_memory("64MiB"), Ok(Some(64 << 20)));
        assert_eq!(cgroup_memory("67108864"), Ok(Some(64 << 20)));
        assert_eq!((cgroup_memory("off"), cgroup_memory("infinity")), (Ok(None), Ok(None)));
        refuses(cgroup_memory, "expected 1MiB or more", &["0", "512", "1048575", "100K"]);
        refuses(cgroup_memory, "expected a size", &["99999999999999999999999"]);
        refuses(
            cgroup_memory,
            "expected a number with a unit",
            &["", "10%", "-1M", "much", "1 parsec", "max"],
        );
    }

    #[test]
    fn the_cpu_time_of_a_cgroup_is_percent_of_one_cpu() {
        assert_eq!(
            (cgroup_cpu("150%"), cgroup_cpu("150")),
            (Ok(Some(1_500_000_000)), Ok(Some(1_500_000_000)))
        );
        assert_eq!((cgroup_cpu("1%"), cgroup_cpu("infinity")), (Ok(Some(10_000_000)), Ok(None)));
        refuses(cgroup_cpu, "expected 1% or more", &["0.5%", "0.99"]);
        refuses(cgroup_cpu, "expected percent of one CPU", &["", "0", "-5", "half", "1.5.5", "20 %"]);
    }

    #[test]
    fn the_processes_of_a_cgroup_are_a_number() {
        assert_eq!((cgroup_pids("1"), cgroup_pids("4194304")), (Ok(Some(1)), Ok(Some(4_194_304))));
        assert_eq!((cgroup_pids("off"), cgroup_pids("infinity")), (Ok(None), Ok(None)));
        refuses(
            cgroup_pids,
            "expected a number from 1",
            &["", "0", "-1", "4194305", "10%", "1.5", "many", "max"],
        );
    }

    #[test]
    fn the_path_of_a_cgroup_is_absolute() {
        assert_eq!(cgroup_path("/sys/fs/cgroup//app/"), Ok(PathBuf::from("/sys/fs/cgroup/app")));
        refuses(
            cgroup_path,
            "expected the absolute path",
            &["", "app", "./app", "/sys/fs/cgroup/../etc", "/a\nb"],
        );
    }

    #[test]
    fn a_positive_duration_is_not_zero() {
        assert_eq!(duration("0min 0ms"), Ok(Duration::ZERO));
        refuses(positive_duration, "longer than zero", &["0", "0s", "0min 0ms"]);
        assert_eq!(positive_duration("1"), Ok(Duration::from_millis(1)));
        refuses(positive_duration, "expected a duration such as", &["garbage"]);
    }

    #[test]
    fn the_supervisor_gives_up_after_deaths_within_a_time() {
        let within = Duration::from_secs(60);
        assert_eq!(give_up("5/1min"), Ok(Some(GiveUp { deaths: 5, within })));
        assert_eq!(give_up("1/60000"), Ok(Some(GiveUp { deaths: 1, within })));
        assert_eq!(give_up("off"), Ok(None));
        let garbage = ["", "5", "/", "0/1min", "-1/1min", "/1min", "1e3/1min", "OFF", "4294967296/1s"];
        refuses(give_up, "such as 5/1min, or off", &garbage);
        let times = ["5/", "5/0", "5/soon", "5/1s/1s", "5/-1s", "5/1000years"];
        refuses(give_up, "duration \"", &times);
    }

    #[test]
    fn a_size_has_a_unit() {
        for (text, bytes) in [
            ("1200MiB", 1200 << 20),
            ("1.2GB", 1_200_000_000),
            ("300M", 300 << 20),
            ("2g", 2 << 30),
            ("512 KiB", 512 << 10),
            ("100000B", 100_000),
        ] {
            assert_eq!(size(text), Ok(Some(bytes)), "{text}");
        }
        assert_eq!(size("off"), Ok(None));
        refuses(size, "no unit; expected", &["100", "99999999999999999999999"]);
        let garbage =
            ["", " ", "1e3", "-5", "-5MiB", "MiB", "5 parsecs", "0x5MiB", "+5MiB", "1.5", "1.5.5MB", "∞"];
        refuses(size, "expected a number with a unit, such as 1200MiB", &garbage);
        refuses(size, "larger than zero", &["0", "0MiB", "0.0GB"]);
        refuses(size, "too large", &["99999999999999999999999MiB", "99999999999999EiB"]);
    }

    #[test]
    fn percent_of_one_cpu() {
        assert_eq!(percent("95"), Ok(Some(950_000_000)));
        assert_eq!(percent("95%"), Ok(Some(950_000_000)));
        assert_eq!(percent("12.5"), Ok(Some(125_000_000)));
        assert_eq!(percent("800"), Ok(Some(8_000_000_000)));
        assert_eq!(percent("off"), Ok(None));
        let garbage =
            ["", "%", "0", "0.001", "-5", "+5", "1e3", "inf", "NaN", "95 %", "95%%", ".", "1000001", "all"];
        refuses(percent, "expected percent", &garbage);
    }

    #[test]
    fn permission_bits_are_octal_with_any_prefix() {
        for text in ["664", "0664", "0o664"] {
            assert_eq!(mode(text), Ok(0o664));
        }
        assert_eq!((mode("0"), mode("777")), (Ok(0), Ok(0o777)));
        let garbage =
            ["", "0o", "0x1b4", "8", "668", "1777", "-7", "+7", " 664", "rw-rw-r--", "u+rw", "99999999999"];
        refuses(mode, "octal digits up to 777", &garbage);
    }

    #[test]
    fn names_have_an_optional_sig_and_any_case() {
        for text in ["TERM", "SIGTERM", "term", "SigTerm", "15"] {
            assert_eq!(stop_signal(text), Ok(Signal(libc::SIGTERM)));
        }
        assert_eq!(stop_signal("winch"), Ok(Signal(libc::SIGWINCH)));
    }

    #[test]
    fn every_signal_has_a_name() {
        let named: BTreeSet<i32> = signal_names::all().map(|(_, number)| number).collect();
        assert!(named.into_iter().eq(1..=libc::SIGSYS));
        assert!(signal_names::all().all(|(name, number)| signal(name) == Ok(Signal(number))));
        assert_eq!((signal("POLL"), signal("io")), (Ok(Signal(libc::SIGIO)), Ok(Signal(libc::SIGIO))));
    }

    #[test]
    fn kill_is_accepted() {
        assert_eq!(stop_signal("KILL"), Ok(Signal(libc::SIGKILL)));
    }

    #[test]
    fn numbers_run_from_1_to_64() {
        assert_eq!(stop_signal("1"), Ok(Signal(1)));
        assert_eq!(stop_signal("64"), Ok(Signal(64)));
        assert!(stop_signal("0").is_err());
        assert!(stop_signal("65").is_err());
    }

    #[test]
    fn realtime_signals_count_from_either_end() {
        assert_eq!(stop_signal("RTMIN"), Ok(Signal(libc::SIGRTMIN())));
        assert_eq!(stop_signal("sigrtmin+3"), Ok(Signal(libc::SIGRTMIN() + 3)));
        assert_eq!(stop_signal("RTMAX-1"), Ok(Signal(libc::SIGRTMAX() - 1)));
        assert_eq!(stop_signal("RTMAX"), Ok(Signal(libc::SIGRTMAX())));
    }

    #[test]
    fn a_stop_signal_is_not_one_of_job_control() {
        for name in ["STOP", "SIGTSTP", "ttin", "TTOU", "CONT", "CHLD", "19"] {
            assert!(stop_signal(name).expect_err(name).starts_with("does not end a process"), "{name}");
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
        refuses(stop_signal, "expected a name such as TERM", &garbage);
    }

    #[test]
    fn a_directory_is_absolute_and_exists() {
        let host = TestHost::default();
        let parse = |text: &str| directory(text, &host);
        for (text, path) in
            [("/srv/app", "/srv/app"), ("app", "/srv/app"), ("./app//", "/srv/app"), (".", "/srv")]
        {
            assert_eq!(parse(text).as_deref(), Ok(Path::new(path)), "{text}");
        }
        refuses(parse, "not a directory", &["", "/srv/file"]);
        refuses(parse, "expected the path of a directory", &["/nope", "nope", " ", "/srv/app\0"]);
    }

    #[test]
    fn a_relative_directory_keeps_the_symlinks_of_the_current_one() {
        let host = TestHost { vars: vec![("PWD".to_owned(), "/current".into())], ..TestHost::default() };
        assert_eq!(directory("app", &host).as_deref(), Ok(Path::new("/current/app")));
    }

    #[test]
    fn a_relative_path_needs_a_current_directory() {
        let host = TestHost { removed_dir: true, ..TestHost::default() };
        let parse = |path: &str| absolute(path, || host.current_dir());
        refuses(parse, "expected an absolute path", &["app"]);
        assert!(parse("/srv/app").is_ok());
    }
}
