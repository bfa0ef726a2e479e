//! Reading another process's memory without waiting for it.
//!
//! The page may be of a file whose file system answers when it likes: FUSE, which any user can mount. A read of it can
//! wait for ever, and nothing ends it. So it is made by a thread that is given up when it takes too long.
//!
//! Each purpose has a [`Reader`] of its own, so that processes which exhaust one of them take nothing from the others.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long a read for a waiting call may take: it takes microseconds, and the thread that makes it has to get a processor
/// on a busy host.
const LIMIT: Duration = Duration::from_secs(1);

/// Threads of that purpose that are given up and still wait. Each belongs to another worker that does this.
const MAX_GIVEN_UP: usize = 64;

/// What is read for the loop, which answers the calls of workers.
pub(in crate::sys) static CALLS: Reader = Reader::new("reader", MAX_GIVEN_UP, LIMIT);

type Job = Box<dyn FnOnce() -> io::Result<Vec<u8>> + Send>;

/// Makes the reads of one purpose, one after the other.
#[derive(Debug)]
pub struct Reader {
    name: &'static str,
    most: usize,
    limit: Duration,
    /// The thread that reads, if there is one.
    link: Mutex<Option<Link>>,
    /// Threads that were given up and have not ended since.
    given_up: AtomicUsize,
}

/// The two ends of the thread.
#[derive(Debug)]
struct Link {
    tasks: SyncSender<Task>,
    results: Receiver<io::Result<Vec<u8>>>,
}

struct Task(Job);

impl std::fmt::Debug for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Task")
    }
}

impl Reader {
    /// A reader whose threads have this name. It gives a read up after `limit`, and makes none while `most` threads that
    /// it gave up still wait.
    #[must_use]
    pub const fn new(name: &'static str, most: usize, limit: Duration) -> Reader {
        Reader { name, most, limit, link: Mutex::new(None), given_up: AtomicUsize::new(0) }
    }

    /// Runs `job`, which only reads, and gives its result.
    ///
    /// # Errors
    /// ETIMEDOUT where it takes too long: it may run on, and its result is dropped. EAGAIN where no thread can be started,
    /// or too many still wait. Otherwise those of `job`.
    pub fn read(
        &'static self,
        job: impl FnOnce() -> io::Result<Vec<u8>> + Send + 'static,
    ) -> io::Result<Vec<u8>> {
        let mut link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        let Link { tasks, results } = match &mut *link {
            Some(running) => running,
            none => none.insert(self.start()?),
        };
        let sent = tasks.send(Task(Box::new(job))).is_ok();
        match results.recv_timeout(if sent { self.limit } else { Duration::ZERO }) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => {
                self.given_up.fetch_add(1, Ordering::SeqCst);
                // This ends the thread, as soon as its read is over.
                *link = None;
                Err(io::Error::from_raw_os_error(libc::ETIMEDOUT))
            }
            Err(RecvTimeoutError::Disconnected) => {
                *link = None;
                Err(io::Error::from_raw_os_error(libc::EAGAIN))
            }
        }
    }

    fn start(&'static self) -> io::Result<Link> {
        if self.given_up.load(Ordering::SeqCst) >= self.most {
            return Err(io::Error::from_raw_os_error(libc::EAGAIN));
        }
        let (tasks, jobs) = sync_channel::<Task>(1);
        let (answers, results) = channel();
        let thread = std::thread::Builder::new().name(self.name.to_owned()).stack_size(64 * 1024);
        thread.spawn(move || {
            run(&jobs, &answers);
            // Nobody asks it any more only after it was given up.
            self.given_up.fetch_sub(1, Ordering::SeqCst);
        })?;
        Ok(Link { tasks, results })
    }
}

/// Ends when nobody asks any more.
fn run(jobs: &Receiver<Task>, answers: &Sender<io::Result<Vec<u8>>>) {
    while let Ok(Task(job)) = jobs.recv() {
        if answers.send(job()).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    /// A read that ends when its sender is dropped.
    fn hang(reader: &'static Reader) -> (io::Result<Vec<u8>>, std::sync::mpsc::Sender<()>) {
        let (release, wait) = channel::<()>();
        let result = reader.read(move || {
            let _released_at_the_end = wait.recv();
            Ok(vec![0])
        });
        (result, release)
    }

    fn errno(result: io::Result<Vec<u8>>) -> Option<i32> {
        result.expect_err("no bytes").raw_os_error()
    }

    #[test]
    fn a_read_that_does_not_end_is_given_up_and_the_next_one_is_made() {
        static READER: Reader = Reader::new("test", 2, Duration::from_secs(1));
        assert_eq!(READER.read(|| Ok(vec![1])).expect("read"), [1]);
        let (result, release) = hang(&READER);
        assert_eq!(errno(result), Some(libc::ETIMEDOUT));
        assert_eq!(READER.read(|| Ok(vec![3])).expect("read"), [3], "not what came late");
        drop(release);
        assert_eq!(READER.read(|| Ok(vec![4])).expect("read"), [4]);
    }

    #[test]
    fn reads_that_hang_exhaust_the_reader_of_their_purpose_alone() {
        static HOSTILE: Reader = Reader::new("hostile", 2, Duration::from_millis(20));
        static HEALTHY: Reader = Reader::new("healthy", 2, Duration::from_secs(30));
        let hanging: Vec<_> = (0..2).map(|_| hang(&HOSTILE)).collect();
        assert_eq!(errno(HOSTILE.read(|| Ok(vec![1]))), Some(libc::EAGAIN), "no third thread");
        assert_eq!(HEALTHY.read(|| Ok(vec![2])).expect("read"), [2]);
        drop(hanging);
    }

    #[test]
    fn a_reader_whose_hanging_reads_have_ended_reads_again() {
        static READER: Reader = Reader::new("test", 1, Duration::from_secs(1));
        let (result, release) = hang(&READER);
        assert_eq!(errno(result), Some(libc::ETIMEDOUT));
        assert_eq!(errno(READER.read(|| Ok(vec![1]))), Some(libc::EAGAIN));
        drop(release);
        let until = Instant::now() + Duration::from_secs(30);
        while READER.read(|| Ok(vec![2])).is_err() {
            assert!(Instant::now() < until, "the thread ends when its read does");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
