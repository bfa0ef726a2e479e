//! Reads the memory of another process with a time limit.
//!
//! A page of that memory can belong to a file on a FUSE file system, which any user can mount. The file system decides
//! when it answers. A read can therefore wait forever, and nothing interrupts it. A helper thread makes the read, and
//! the [`Reader`] abandons the thread if the read takes too long.
//!
//! Each purpose has its own [`Reader`]. Processes that exhaust one reader do not affect the others.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The time limit of a read for a waiting call. The read takes microseconds, but on a busy host the thread also waits
/// for a CPU.
const LIMIT: Duration = Duration::from_secs(1);

/// The number of abandoned threads that can wait at the same time. Each one belongs to a different worker.
const MAX_ABANDONED: usize = 64;

/// The reader of the loop, which answers the calls of workers.
pub(in crate::sys) static CALLS: Reader = Reader::new("reader", MAX_ABANDONED, LIMIT);

type Job = Box<dyn FnOnce() -> io::Result<Vec<u8>> + Send>;

/// Makes the reads of one purpose, one at a time.
#[derive(Debug)]
pub struct Reader {
    name: &'static str,
    most: usize,
    limit: Duration,
    /// The running thread, if any.
    link: Mutex<Option<Link>>,
    /// The number of abandoned threads that have not ended yet.
    abandoned: AtomicUsize,
}

/// The channels to the thread and from it.
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
    /// A reader whose threads have this name. It abandons a read after `limit`, and makes no read while `most`
    /// abandoned threads still wait.
    #[must_use]
    pub const fn new(name: &'static str, most: usize, limit: Duration) -> Reader {
        Reader { name, most, limit, link: Mutex::new(None), abandoned: AtomicUsize::new(0) }
    }

    /// Runs `job`, which only reads, and returns its result.
    ///
    /// # Errors
    /// ETIMEDOUT if the read takes too long. It can continue, but its result is dropped. EAGAIN if no thread can be
    /// started, or if too many abandoned threads still wait. Otherwise the errors of `job`.
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
                self.abandoned.fetch_add(1, Ordering::SeqCst);
                // Dropping the channels ends the thread as soon as its read returns.
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
        if self.abandoned.load(Ordering::SeqCst) >= self.most {
            return Err(io::Error::from_raw_os_error(libc::EAGAIN));
        }
        let (tasks, jobs) = sync_channel::<Task>(1);
        let (answers, results) = channel();
        let thread = std::thread::Builder::new().name(self.name.to_owned()).stack_size(64 * 1024);
        thread.spawn(move || {
            run(&jobs, &answers);
            // The channel closes only after the thread was abandoned.
            self.abandoned.fetch_sub(1, Ordering::SeqCst);
        })?;
        Ok(Link { tasks, results })
    }
}

/// Runs jobs until one of the channels is closed.
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
