//! Waiting for conditions.

use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long a condition that must come true may take: long, because the machine may be busy with all the other tests.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// Between two looks: short against everything that is measured, long enough to leave the CPU to those measured. A slow
/// machine takes longer for both.
const LOOK_EVERY: Duration = Duration::from_millis(4);

/// What `deadline` is on this machine: `MASTER_PROCESS_SLOW` times as long, as in an emulated one, where programs take
/// 10 to 50 times their time.
///
/// Only what must come in the end is given more time: a condition that must not come, or the time that something takes
/// at least, is the same everywhere.
///
/// # Panics
/// When the variable is neither unset, empty, nor a whole number from 1 on.
#[must_use]
pub fn scaled(deadline: Duration) -> Duration {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    let factor = FACTOR.get_or_init(|| match std::env::var("MASTER_PROCESS_SLOW") {
        Ok(given) if !given.is_empty() => given
            .parse()
            .ok()
            .filter(|factor| *factor >= 1)
            .unwrap_or_else(|| panic!("MASTER_PROCESS_SLOW={given}: not a whole number from 1 on")),
        Ok(_) | Err(_) => 1,
    });
    deadline * *factor
}

/// Waits until `look` finds something, and gives it.
///
/// # Panics
/// When `deadline` passes first, as [`scaled`] has it, saying `what` did not happen.
pub fn await_some<T>(deadline: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = scaled(deadline);
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < deadline, "not within {deadline:?}: {what}");
        sleep(scaled(LOOK_EVERY));
    }
}

/// Waits until `cond` holds.
///
/// # Panics
/// When `deadline` passes first, as [`scaled`] has it, saying `what` did not happen.
pub fn eventually(deadline: Duration, what: &str, mut cond: impl FnMut() -> bool) {
    await_some(deadline, what, || cond().then_some(()));
}

/// Lets time pass so that what follows meets another stage of something in progress: for tests that try every moment. It
/// waits for nothing, so no test may rely on what has happened meanwhile.
pub fn offset(time: Duration) {
    sleep(time);
}

/// Looks again and again for `time`, and fails at the first look at which `cond` does not hold.
///
/// # Panics
/// When `cond` does not hold, saying that `what` was not so, and since when.
pub fn always(time: Duration, what: &str, mut cond: impl FnMut() -> bool) {
    let start = Instant::now();
    while start.elapsed() < time {
        assert!(cond(), "not so after {:?}: {what}", start.elapsed());
        sleep(scaled(LOOK_EVERY));
    }
}
