//! Reads the environments of adopted processes. A process can make such a read take arbitrarily long, so environments
//! are read as rarely as possible.

use std::collections::HashSet;
use std::io;
use std::time::{Duration, Instant};

use rustix::process::Pid;

use crate::sys::peer::{Environment, Peer};
use crate::sys::remote_read::Reader;

/// The time that one walk may spend on environments in total, because other workers wait for its answer. A later walk
/// reads the remaining environments.
const WALK_TAKES: Duration = Duration::from_millis(500);

/// An environment that takes longer is not read again. A read takes microseconds, unless the process delays it.
const SLOW: Duration = Duration::from_millis(250);

/// The reader of environments, of which at most 32 reads may hang. Another reader serves the calls of workers.
static READER: Reader = Reader::new("environments", 32, WALK_TAKES);

/// Processes, each identified by its pid and its start time.
pub(super) type Processes = HashSet<(Pid, u64)>;

/// Reads the environments for one walk.
#[derive(Debug)]
pub(super) struct Environments {
    read: fn(Pid) -> io::Result<Environment>,
    left: Duration,
    unreadable: Processes,
}

impl Environments {
    /// The reader for a walk. `unreadable` contains the processes whose environments earlier walks could not read in
    /// time.
    pub(super) fn new(unreadable: Processes) -> Environments {
        let read = |pid| Peer::open(pid)?.environment_by(&READER);
        Environments { read, left: WALK_TAKES, unreadable }
    }

    /// The environment of a process. `None`: it cannot be read, or not in this walk.
    pub(super) fn of(&mut self, pid: Pid, started: u64) -> Option<Environment> {
        if self.left.is_zero() || self.unreadable.contains(&(pid, started)) {
            return None;
        }
        let since = Instant::now();
        let environment = (self.read)(pid);
        let took = since.elapsed();
        self.left = self.left.saturating_sub(took);
        if took >= SLOW {
            self.unreadable.insert((pid, started));
        }
        environment.ok()
    }

    /// The processes whose environments are not read again, as far as they still exist.
    pub(super) fn into_unreadable(mut self, is_there: impl Fn(Pid) -> bool) -> Processes {
        self.unreadable.retain(|(pid, _)| is_there(*pid));
        self.unreadable
    }
}

#[cfg(test)]
impl Environments {
    /// With a read function of the test.
    pub(super) fn read_by(
        read: fn(Pid) -> io::Result<Environment>,
        left: Duration,
        unreadable: Processes,
    ) -> Environments {
        Environments { read, left, unreadable }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::sync::mpsc::{Receiver, Sender, channel};

    const LONG: Duration = Duration::from_secs(60);

    fn pid(number: i32) -> Pid {
        Pid::from_raw(number).expect("not 0")
    }

    /// A read that does not end before its reader abandons it. `ends` keeps the other end of its channel.
    fn hang(reader: &'static Reader, ends: &Mutex<Vec<Sender<()>>>) -> io::Result<Environment> {
        let (end, wait): (_, Receiver<()>) = channel();
        ends.lock().expect("no test panics with it").push(end);
        let bytes = reader.read(move || {
            let _until_the_test_ends = wait.recv();
            Ok(Vec::new())
        })?;
        Ok(Environment::new(&bytes))
    }

    #[test]
    fn an_environment_that_times_out_is_read_once() {
        static HANGING: Reader = Reader::new("test", 8, Duration::from_millis(300));
        static ENDS: Mutex<Vec<Sender<()>>> = Mutex::new(Vec::new());
        let reads = || ENDS.lock().expect("no test panics with it").len();
        let walk = |unreadable| Environments::read_by(|_| hang(&HANGING, &ENDS), LONG, unreadable);
        let mut first = walk(Processes::new());
        assert!(first.of(pid(5), 100).is_none());
        assert!(first.of(pid(5), 100).is_none());
        assert_eq!(reads(), 1, "not again in this walk");
        let mut second = walk(first.into_unreadable(|_| true));
        assert!(second.of(pid(5), 100).is_none());
        assert_eq!(reads(), 1, "nor in a later one");
        assert!(second.of(pid(5), 101).is_none());
        assert_eq!(reads(), 2, "another process of that number");
        assert_eq!(
            second.into_unreadable(|_| false),
            Processes::new(),
            "they are forgotten when they are gone"
        );
    }

    #[test]
    fn a_walk_spends_a_limited_time_on_environments() {
        static HANGING: Reader = Reader::new("test", 8, Duration::from_millis(20));
        static ENDS: Mutex<Vec<Sender<()>>> = Mutex::new(Vec::new());
        let left = Duration::from_millis(50);
        let mut walk = Environments::read_by(|_| hang(&HANGING, &ENDS), left, Processes::new());
        for number in 1..100 {
            assert!(walk.of(pid(number), 1).is_none());
        }
        let reads = ENDS.lock().expect("no test panics with it").len();
        assert!((1..=3).contains(&reads), "{reads} of 20 ms in 50 ms");
    }

    #[test]
    fn a_readable_environment_is_read_at_each_request() {
        let read = |_| Ok(Environment::new(b"WORKER_INDEX=3\0"));
        let mut walk = Environments::read_by(read, LONG, Processes::new());
        for _ in 0..2 {
            let environment = walk.of(pid(5), 100).expect("it comes");
            assert_eq!(environment.number("WORKER_INDEX"), Some(3));
        }
        assert_eq!(walk.into_unreadable(|_| true), Processes::new());
    }
}
