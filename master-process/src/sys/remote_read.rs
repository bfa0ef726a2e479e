//! Reading another process's memory without waiting for it.
//!
//! The page may be of a file whose file system answers when it likes: FUSE, which any user can mount. A read of it can
//! wait for ever, and nothing ends it. So it is made by a thread that is given up when it takes too long.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long a read may take: it takes microseconds, and the thread that makes it has to get a processor on a busy host.
const LIMIT: Duration = Duration::from_secs(1);

/// Threads that are given up and may wait still. Each belongs to another worker that does this.
const MAX_GIVEN_UP: usize = 64;

type Job = Box<dyn FnOnce() -> io::Result<Vec<u8>> + Send>;

/// The thread that reads, if there is one.
static READER: Mutex<Reader> = Mutex::new(Reader { link: None, given_up: 0 });

#[derive(Debug)]
struct Reader {
    link: Option<Link>,
    given_up: usize,
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

/// Runs `job`, which only reads, and gives its result.
///
/// # Errors
/// ETIMEDOUT where it takes longer than a second: it may run on, with nobody to hear of it. EAGAIN where no thread can be
/// started, or too many wait still. Otherwise those of `job`.
pub(in crate::sys) fn read(
    job: impl FnOnce() -> io::Result<Vec<u8>> + Send + 'static,
) -> io::Result<Vec<u8>> {
    let mut reader = READER.lock().unwrap_or_else(PoisonError::into_inner);
    if reader.link.is_none() {
        if reader.given_up >= MAX_GIVEN_UP {
            return Err(io::Error::from_raw_os_error(libc::EAGAIN));
        }
        reader.link = Some(start()?);
    }
    let Some(Link { tasks, results }) = &reader.link else { return Err(io::ErrorKind::Other.into()) };
    let sent = tasks.send(Task(Box::new(job))).is_ok();
    match results.recv_timeout(if sent { LIMIT } else { Duration::ZERO }) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => {
            reader.link = None;
            reader.given_up += 1;
            Err(io::Error::from_raw_os_error(libc::ETIMEDOUT))
        }
        Err(RecvTimeoutError::Disconnected) => {
            reader.link = None;
            Err(io::Error::from_raw_os_error(libc::EAGAIN))
        }
    }
}

fn start() -> io::Result<Link> {
    let (tasks, jobs) = sync_channel::<Task>(1);
    let (answers, results) = channel();
    let thread = std::thread::Builder::new().name("reader".to_owned()).stack_size(64 * 1024);
    thread.spawn(move || run(&jobs, &answers))?;
    Ok(Link { tasks, results })
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

    #[test]
    fn a_read_that_does_not_end_is_given_up_and_the_next_one_is_made() {
        assert_eq!(read(|| Ok(vec![1])).expect("read"), [1]);
        let (release, wait) = std::sync::mpsc::channel::<()>();
        let error = read(move || {
            let _released_at_the_end = wait.recv();
            Ok(vec![2])
        });
        assert_eq!(error.expect_err("given up").raw_os_error(), Some(libc::ETIMEDOUT));
        assert_eq!(read(|| Ok(vec![3])).expect("read"), [3], "not what came late");
        drop(release);
        assert_eq!(read(|| Ok(vec![4])).expect("read"), [4]);
    }
}
