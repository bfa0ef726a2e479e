//! A flood of connections beside what it must not delay.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::{Supervisor, TIMEOUT, eventually, process};

/// The connections that are open at a time.
const OPEN: usize = 1000;

/// The replacements that are measured.
const TIMES: usize = 9;

/// How long the replacement of a killed worker takes.
fn replacement(supervisor: &Supervisor) -> Duration {
    let victim = *supervisor.await_workers(1).first().expect("one");
    let since = Instant::now();
    process::signal(victim, Signal::KILL);
    eventually(TIMEOUT, "it is replaced", || supervisor.workers().iter().any(|pid| *pid != victim));
    since.elapsed()
}

/// The median of some replacements.
fn median(supervisor: &Supervisor) -> Duration {
    let mut times: Vec<Duration> = (0..TIMES).map(|_| replacement(supervisor)).collect();
    times.sort_unstable();
    times[times.len() / 2]
}

/// Ends the flood, also when a test fails in it.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Kills workers while nothing else happens, and again while connections are opened without a pause.
///
/// # Panics
/// If the replacements take much longer then.
pub fn does_not_delay_replacements<S>(supervisor: &Supervisor, connect: impl Fn() -> Option<S> + Sync) {
    let quiet = median(supervisor);
    let stop = AtomicBool::new(false);
    let flooded = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut open = VecDeque::new();
            while !stop.load(Ordering::Relaxed) {
                open.extend(connect());
                if open.len() > OPEN {
                    open.pop_front();
                }
            }
        });
        let _ends = Ends(&stop);
        median(supervisor)
    });
    println!("a replacement takes {quiet:?}, and {flooded:?} during the flood");
    // The flood takes a CPU of its own: on a machine with few, everything takes longer.
    assert!(flooded < quiet * 4 + Duration::from_millis(50), "{quiet:?}, {flooded:?}");
}
