//! A thread that answers questions one at a time, for work that would block the loop for too long.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};

use super::thread;

/// Wakes the loop when an answer is available: an eventfd that several threads can share.
#[derive(Debug, Clone)]
pub struct Wake(Arc<OwnedFd>);

impl Wake {
    /// # Errors
    /// Those of eventfd(2).
    pub fn new() -> io::Result<Wake> {
        Ok(Wake(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)))
    }

    /// Readable from the first answer until [`clear`](Self::clear) is called.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Resets the wake-up, and returns whether it was set. Call this before taking the answers, so an answer that arrives
    /// later wakes the loop again.
    pub fn clear(&self) -> bool {
        rustix::io::read(&*self.0, &mut [0u8; 8]).is_ok()
    }

    /// Wakes the loop.
    pub fn set(&self) {
        // The write fails only if the counter is full, after 2^64 - 2 wake-ups that were not read.
        let _woken = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}

/// How long a thread without questions waits for the next one. An idle supervisor has no threads: each keeps some pages
/// of its stack.
const LINGER: Duration = Duration::from_secs(1);

/// The thread. It runs while there are questions, and a little longer. After this value is dropped, it ends when it has
/// answered its current questions.
#[derive(Debug)]
pub struct Helper<Q, A> {
    name: &'static str,
    stack: usize,
    most: usize,
    answer: fn(Q) -> A,
    wake: Wake,
    shared: Arc<Shared<Q, A>>,
}

#[derive(Debug)]
struct Shared<Q, A> {
    queue: Mutex<Queue<Q, A>>,
    /// A question was added, or no further one will be.
    changed: Condvar,
}

#[derive(Debug)]
struct Queue<Q, A> {
    questions: VecDeque<Q>,
    answers: Vec<A>,
    /// A thread answers, or waits for questions.
    runs: bool,
    /// Nobody wants further answers.
    is_closed: bool,
}

impl<Q, A> Shared<Q, A> {
    fn queue(&self) -> MutexGuard<'_, Queue<Q, A>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next question; `None` if the thread has to end.
    fn next(&self) -> Option<Q> {
        let mut queue = self.queue();
        let idle = |queue: &mut Queue<Q, A>| queue.questions.is_empty() && !queue.is_closed;
        if idle(&mut queue) {
            queue = match self.changed.wait_timeout_while(queue, LINGER, idle) {
                Ok((queue, _)) => queue,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        let question = queue.questions.pop_front();
        // Under the same lock, so that whoever adds a question later starts another thread.
        queue.runs = question.is_some();
        question
    }
}

impl<Q: Send + 'static, A: Send + 'static> Helper<Q, A> {
    /// A thread with this name and stack size in bytes. At most `most` questions can be queued.
    #[must_use]
    pub fn new(
        name: &'static str,
        stack: usize,
        most: usize,
        wake: Wake,
        answer: fn(Q) -> A,
    ) -> Helper<Q, A> {
        let queue = Queue { questions: VecDeque::new(), answers: Vec::new(), runs: false, is_closed: false };
        let shared = Arc::new(Shared { queue: Mutex::new(queue), changed: Condvar::new() });
        Helper { name, stack, most, answer, wake, shared }
    }

    /// The wake-up of its answers.
    #[must_use]
    pub fn wake(&self) -> &Wake {
        &self.wake
    }

    /// Queues a question. Returns false if the queue is full or the thread cannot be started; then no answer comes.
    pub fn ask(&mut self, question: Q) -> bool {
        let mut queue = self.shared.queue();
        if queue.questions.len() >= self.most || (!queue.runs && !self.start()) {
            return false;
        }
        queue.runs = true;
        queue.questions.push_back(question);
        self.shared.changed.notify_one();
        true
    }

    /// The answers that have arrived since the last call.
    pub fn take(&mut self) -> Vec<A> {
        std::mem::take(&mut self.shared.queue().answers)
    }

    fn start(&self) -> bool {
        let (answer, shared, wake) = (self.answer, Arc::clone(&self.shared), self.wake.clone());
        thread::spawn(self.name, self.stack, move || run(answer, &shared, &wake)).is_ok()
    }
}

impl<Q, A> Drop for Helper<Q, A> {
    fn drop(&mut self) {
        self.shared.queue().is_closed = true;
        self.shared.changed.notify_one();
    }
}

fn run<Q, A>(answer: fn(Q) -> A, shared: &Shared<Q, A>, wake: &Wake) {
    while let Some(question) = shared.next() {
        let found = answer(question);
        shared.queue().answers.push(found);
        wake.set();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    fn is_awake(wake: &Wake, seconds: i64) -> bool {
        let fd = wake.fd();
        let mut state = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        poll(&mut state, Some(&Timespec { tv_sec: seconds, tv_nsec: 0 })).is_ok_and(|count| count == 1)
    }

    #[test]
    fn each_question_has_its_answer_and_wakes_until_it_is_cleared() {
        let wake = Wake::new().expect("an eventfd");
        let mut helper = Helper::new("squares", 64 * 1024, 4, wake, |number: u32| number * number);
        assert!(!is_awake(helper.wake(), 0));
        assert!([2, 3].into_iter().all(|number| helper.ask(number)));
        let mut found = Vec::new();
        while found.len() < 2 {
            assert!(is_awake(helper.wake(), 30), "an answer comes");
            helper.wake().clear();
            found.extend(helper.take());
        }
        assert_eq!(found, [4, 9]);
        helper.wake().clear();
        assert!(!is_awake(helper.wake(), 0));
    }

    #[test]
    fn a_question_after_the_thread_has_ended_starts_another_one() {
        let mut helper =
            Helper::new("twice", 64 * 1024, 1, Wake::new().expect("an eventfd"), |number: u32| number);
        for number in 0..2 {
            assert!(helper.ask(number));
            assert!(is_awake(helper.wake(), 30), "an answer comes");
            helper.wake().clear();
            assert_eq!(helper.take(), [number]);
            let until = std::time::Instant::now() + Duration::from_secs(30);
            while helper.shared.queue().runs {
                assert!(std::time::Instant::now() < until, "the thread ends");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }

    #[test]
    fn questions_beyond_the_queue_limit_are_refused() {
        let wake = Wake::new().expect("an eventfd");
        let mut helper = Helper::new("waiting", 64 * 1024, 1, wake, |pipe: std::io::PipeReader| {
            let _until_it_is_closed = std::io::read_to_string(pipe);
        });
        let ends: Vec<_> = (0..4).map(|_| std::io::pipe().expect("a pipe")).collect();
        let (readers, writers): (Vec<_>, Vec<_>) = ends.into_iter().unzip();
        let accepted = readers.into_iter().filter_map(|reader| helper.ask(reader).then_some(())).count();
        assert!((1..=2).contains(&accepted), "one at work and one that waits: {accepted}");
        drop(writers);
    }
}
