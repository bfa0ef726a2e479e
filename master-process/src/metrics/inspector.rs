//! The inspection of a worker that is about to exceed a limit: its proportional set size, or its busiest thread. Such
//! a look takes too long for the loop.
//!
//! One helper thread at a time makes a look. A look that takes too long is abandoned: a worker can hold the lock of
//! its memory for ever.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use super::procfs;
use super::threads::{self, Threads};
use crate::policy::{Busiest, Event, NoPss, Pss, WorkerId};
use crate::sys::smaps;

/// The time limit of a look. A hundred processes with many gigabytes each take seconds. A worker that waits for its
/// look only exceeds its limit for that much longer.
pub const TIME_OUT: Duration = Duration::from_secs(20);

/// The number of looks that can wait. If there are more, the next sample asks again.
const MAX_WAITING: usize = 256;

/// The number of abandoned threads that may still run. Each of them belongs to another worker whose memory cannot be
/// read.
const MAX_GIVEN_UP: usize = 8;

/// The number of processes of the largest worker whose PSS is added up.
const MAX_PROCESSES: usize = 1024;

/// The number of looks at threads that are kept for comparison. Only workers that use at least one CPU have one, and
/// there are few more of those than CPUs.
const MAX_PREVIOUS: usize = 256;

/// What a look is to find out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Question {
    /// The proportional set size of all its processes.
    Pss,
    /// The busiest of its threads since the previous look.
    Threads,
}

/// The processes of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Members {
    /// The worker's own process first.
    pub(super) known: Vec<Pid>,
    /// The descendants are unknown and have to be searched for.
    pub(super) searches: bool,
}

#[derive(Debug)]
enum Found {
    Pss(Pss),
    Threads(Option<Threads>),
}

#[derive(Debug)]
struct UnderWay {
    number: u64,
    worker: WorkerId,
    question: Question,
    answer: Receiver<Found>,
    thread: JoinHandle<()>,
}

/// Queues the looks and collects their results.
#[derive(Debug)]
pub struct Inspector {
    wake: OwnedFd,
    waiting: VecDeque<(WorkerId, Question)>,
    under_way: Option<UnderWay>,
    /// The number of looks so far.
    count: u64,
    given_up: Vec<JoinHandle<()>>,
    /// The last look at each worker's threads, oldest first.
    previous: VecDeque<(WorkerId, Threads)>,
}

impl Inspector {
    /// # Errors
    /// Those of eventfd(2).
    pub fn new() -> io::Result<Inspector> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Inspector {
            wake,
            waiting: VecDeque::new(),
            under_way: None,
            count: 0,
            given_up: Vec::new(),
            previous: VecDeque::new(),
        })
    }

    /// Readable when a result has arrived.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// The looks that have no result yet. A supervisor that takes over makes them again.
    pub fn unanswered(&self) -> impl Iterator<Item = (WorkerId, Question)> {
        let under_way = self.under_way.as_ref().map(|look| (look.worker, look.question));
        under_way.into_iter().chain(self.waiting.iter().copied())
    }

    /// Queues a look, which [`Self::start`] begins. If the queue is full, returns the result at once.
    #[must_use = "an answer that nobody hears is waited for for ever"]
    pub fn ask(&mut self, worker: WorkerId, question: Question) -> Option<Event> {
        if self.waiting.len() >= MAX_WAITING {
            return Some(nothing(worker, question, Pss::Deferred));
        }
        self.waiting.push_back((worker, question));
        None
    }

    /// The worker to look at next; `None` if there is none, or if a look is in progress.
    pub fn next(&self) -> Option<WorkerId> {
        self.waiting.front().map(|(worker, _)| *worker).filter(|_| self.under_way.is_none())
    }

    /// Begins the next look. `members` are the worker's processes; `None` if the worker has ended.
    ///
    /// # Errors
    /// The result, if the worker has ended or no thread is available.
    pub fn start(&mut self, members: Option<Members>) -> Option<Result<u64, Event>> {
        let (worker, question) = self.waiting.pop_front()?;
        self.given_up.retain(|thread| !thread.is_finished());
        let failed = |why| nothing(worker, question, Pss::Unknown(why));
        let Some(members) = members else { return Some(Err(failed(NoPss::Failed))) };
        if self.given_up.len() >= MAX_GIVEN_UP {
            return Some(Err(failed(NoPss::TimedOut)));
        }
        let number = self.begin(worker, question, move || match question {
            Question::Pss => Found::Pss(add_up(members, Instant::now() + TIME_OUT)),
            Question::Threads => Found::Threads(threads::look(&members.all())),
        });
        Some(number.map_err(|_no_thread| failed(NoPss::Failed)))
    }

    fn begin(
        &mut self,
        worker: WorkerId,
        question: Question,
        look: impl FnOnce() -> Found + Send + 'static,
    ) -> io::Result<u64> {
        let wake = self.wake.try_clone()?;
        let (to, answer) = channel();
        let thread = std::thread::Builder::new().name("inspector".to_owned()).stack_size(128 * 1024);
        let thread = thread.spawn(move || {
            // An abandoned look has no receiver.
            let _wanted = to.send(look());
            let _woken = rustix::io::write(&wake, &1u64.to_ne_bytes());
        })?;
        self.count += 1;
        self.under_way = Some(UnderWay { number: self.count, worker, question, answer, thread });
        Ok(self.count)
    }

    /// Takes the result that has arrived.
    pub fn take(&mut self) -> Option<Event> {
        let _none_or_some = rustix::io::read(&self.wake, &mut [0u8; 8]);
        let found = self.under_way.as_ref()?.answer.try_recv().ok()?;
        let UnderWay { worker, .. } = self.under_way.take()?;
        Some(match found {
            Found::Pss(pss) => Event::Pss(worker, pss),
            Found::Threads(now) => Event::Threads(worker, now.and_then(|now| self.compare(worker, now))),
        })
    }

    /// Compares a look at a worker's threads with the previous one, and keeps it for the next one.
    fn compare(&mut self, worker: WorkerId, now: Threads) -> Option<Busiest> {
        let before =
            self.previous.iter().position(|(of, _)| *of == worker).and_then(|at| self.previous.remove(at));
        let busiest = before.and_then(|(_, before)| threads::busiest(&before, &now));
        if self.previous.len() >= MAX_PREVIOUS {
            self.previous.pop_front();
        }
        self.previous.push_back((worker, now));
        busiest
    }

    /// Abandons the look of this number if it is still in progress.
    pub fn give_up(&mut self, number: u64) -> Option<Event> {
        if let Some(answer) = self.take() {
            return Some(answer);
        }
        let UnderWay { worker, question, thread, .. } =
            self.under_way.take_if(|under_way| under_way.number == number)?;
        self.given_up.push(thread);
        Some(nothing(worker, question, Pss::Unknown(NoPss::TimedOut)))
    }

    /// Forgets a worker that has ended.
    pub fn forget(&mut self, worker: WorkerId) {
        self.previous.retain(|(of, _)| *of != worker);
    }
}

fn nothing(worker: WorkerId, question: Question, pss: Pss) -> Event {
    match question {
        Question::Pss => Event::Pss(worker, pss),
        Question::Threads => Event::Threads(worker, None),
    }
}

impl Members {
    fn all(mut self) -> Vec<Pid> {
        if self.searches
            && let Some(root) = self.known.first()
        {
            let found = procfs::descendants(*root);
            self.known.extend(found);
        }
        self.known
    }
}

/// The sum of the PSS of all processes. A process that has ended counts as 0.
fn add_up(members: Members, until: Instant) -> Pss {
    if !smaps::is_supported() {
        return Pss::Unknown(NoPss::Unsupported);
    }
    let members = members.all();
    if members.len() > MAX_PROCESSES {
        return Pss::Unknown(NoPss::TooManyProcesses);
    }
    let mut sum = 0u64;
    for pid in members {
        if Instant::now() >= until {
            return Pss::Unknown(NoPss::TimedOut);
        }
        match smaps::pss(pid) {
            Ok(pss) => sum = sum.saturating_add(pss),
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOENT | libc::ESRCH) => {}
                Some(libc::EACCES | libc::EPERM) => return Pss::Unknown(NoPss::Denied),
                _other => return Pss::Unknown(NoPss::Failed),
            },
        }
    }
    Pss::Bytes(sum)
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::process::getpid;

    use super::*;

    fn worker(serial: u64) -> WorkerId {
        WorkerId { slot: 0, serial }
    }

    fn only(pid: Pid) -> Members {
        Members { known: vec![pid], searches: false }
    }

    /// Waits for the result. Abandoned looks wake the inspector when they end.
    fn answer(inspector: &mut Inspector) -> Event {
        loop {
            let fd = inspector.fd();
            let mut ready = [PollFd::new(&fd, PollFlags::IN)];
            let ended = poll(&mut ready, Some(&Timespec { tv_sec: 30, tv_nsec: 0 })).expect("poll");
            assert_eq!(ended, 1, "no answer");
            if let Some(answer) = inspector.take() {
                return answer;
            }
        }
    }

    fn asked(inspector: &mut Inspector, worker: WorkerId, question: Question, members: Members) -> Event {
        assert_eq!(inspector.ask(worker, question), None);
        assert_eq!(inspector.next(), Some(worker));
        inspector.start(Some(members)).expect("it was asked").expect("it begins");
        assert_eq!(inspector.next(), None, "one at a time");
        answer(inspector)
    }

    #[test]
    fn the_pss_of_a_tree_is_that_of_all_its_processes() {
        let mut inspector = Inspector::new().expect("eventfd");
        let own = asked(&mut inspector, worker(1), Question::Pss, only(getpid()));
        let Event::Pss(of, Pss::Bytes(own)) = own else { panic!("{own:?}") };
        assert!(of == worker(1) && own > 100_000, "{own}");
        // A process in its own group, whose child is unknown.
        let mut child = std::process::Command::new("sh");
        child.args(["-c", "sleep 60 & wait"]).stdin(std::process::Stdio::null());
        let mut child = std::os::unix::process::CommandExt::process_group(&mut child, 0).spawn().expect("sh");
        let pid = Pid::from_child(&child);
        let until = Instant::now() + Duration::from_secs(30);
        while procfs::descendants(pid).is_empty() {
            assert!(Instant::now() < until, "no child");
        }
        let alone = asked(&mut inspector, worker(2), Question::Pss, only(pid));
        let tree = Members { known: vec![pid], searches: true };
        let both = asked(&mut inspector, worker(2), Question::Pss, tree);
        let _gone = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        let _status = child.wait();
        let (Event::Pss(_, Pss::Bytes(alone)), Event::Pss(_, Pss::Bytes(both))) = (alone, both) else {
            panic!("{alone:?} {both:?}")
        };
        assert!(alone > 0 && both > alone, "{alone} {both}");
        // It has ended by now, and counts as 0.
        let gone = asked(&mut inspector, worker(2), Question::Pss, only(pid));
        assert_eq!(gone, Event::Pss(worker(2), Pss::Bytes(0)));
    }

    #[test]
    fn threads_are_compared_with_the_look_before() {
        let mut inspector = Inspector::new().expect("eventfd");
        let look = |inspector: &mut Inspector, serial| {
            let answer = asked(inspector, worker(serial), Question::Threads, only(getpid()));
            let Event::Threads(of, busiest) = answer else { panic!("{answer:?}") };
            assert_eq!(of, worker(serial));
            busiest
        };
        assert_eq!(look(&mut inspector, 1), None, "there was none before");
        assert_eq!(look(&mut inspector, 2), None, "of this worker");
        let busiest = look(&mut inspector, 1).expect("there was one");
        assert!(busiest.span_ns > 0, "{busiest:?}");
        inspector.forget(worker(1));
        assert_eq!(look(&mut inspector, 1), None, "it is forgotten");
    }

    #[test]
    fn a_look_that_takes_too_long_is_given_up_and_the_next_one_is_made() {
        let mut inspector = Inspector::new().expect("eventfd");
        let (release, wait) = channel::<()>();
        let hang = move || {
            let _released_at_the_end = wait.recv();
            Found::Pss(Pss::Bytes(1))
        };
        let number = inspector.begin(worker(1), Question::Pss, hang).expect("a thread");
        assert_eq!(inspector.ask(worker(2), Question::Pss), None);
        assert_eq!(inspector.next(), None, "it waits");
        assert_eq!(inspector.give_up(number + 1), None, "another one");
        let late = Event::Pss(worker(1), Pss::Unknown(NoPss::TimedOut));
        assert_eq!(inspector.give_up(number), Some(late));
        assert_eq!(inspector.next(), Some(worker(2)));
        inspector.start(Some(only(getpid()))).expect("it was asked").expect("it begins");
        assert!(matches!(answer(&mut inspector), Event::Pss(of, Pss::Bytes(_)) if of == worker(2)));
        drop(release);
        assert_eq!(inspector.take(), None, "what comes late is nobody's");
        assert_eq!(inspector.give_up(number), None);
    }

    #[test]
    fn threads_that_hang_are_few() {
        let mut inspector = Inspector::new().expect("eventfd");
        let mut releases = Vec::new();
        for _ in 0..MAX_GIVEN_UP {
            let (release, wait) = channel::<()>();
            releases.push(release);
            let hang = move || {
                let _released_at_the_end = wait.recv();
                Found::Threads(None)
            };
            let number = inspector.begin(worker(1), Question::Threads, hang).expect("a thread");
            assert_eq!(inspector.give_up(number), Some(Event::Threads(worker(1), None)));
        }
        let refused = Event::Pss(worker(2), Pss::Unknown(NoPss::TimedOut));
        assert_eq!(inspector.ask(worker(2), Question::Pss), None);
        assert_eq!(inspector.start(Some(only(getpid()))), Some(Err(refused)));
        drop(releases);
        let until = Instant::now() + Duration::from_secs(30);
        while inspector.given_up.iter().any(|thread| !thread.is_finished()) {
            assert!(Instant::now() < until, "they do not end");
        }
        assert!(matches!(
            asked(&mut inspector, worker(2), Question::Pss, only(getpid())),
            Event::Pss(_, Pss::Bytes(_))
        ));
    }

    #[test]
    fn a_question_that_finds_no_room_is_answered_at_once() {
        let mut inspector = Inspector::new().expect("eventfd");
        for serial in 0..u64::try_from(MAX_WAITING).expect("few") {
            assert_eq!(inspector.ask(worker(serial), Question::Pss), None);
        }
        let no_room = Event::Pss(worker(9999), Pss::Deferred);
        assert_eq!(inspector.ask(worker(9999), Question::Pss), Some(no_room));
        let gone = Event::Pss(worker(0), Pss::Unknown(NoPss::Failed));
        assert_eq!(inspector.start(None), Some(Err(gone)), "a worker that has ended meanwhile");
    }
}
