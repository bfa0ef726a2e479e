//! A thread that answers questions one at a time, for work that would block the loop for too long.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

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

    /// Resets the wake-up. Call this before taking the answers, so an answer that arrives later wakes the loop again.
    pub fn clear(&self) {
        let _none_or_some = rustix::io::read(&*self.0, &mut [0u8; 8]);
    }

    fn set(&self) {
        // The write fails only if the counter is full, after 2^64 - 2 wake-ups that were not read.
        let _woken = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}

/// The thread. It starts with the first question. After this value is dropped, it ends when it has answered its current
/// questions.
#[derive(Debug)]
pub struct Helper<Q, A> {
    name: &'static str,
    stack: usize,
    most: usize,
    answer: fn(Q) -> A,
    wake: Wake,
    answers: Arc<Mutex<Vec<A>>>,
    sender: Option<SyncSender<Q>>,
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
        Helper { name, stack, most, answer, wake, answers: Arc::default(), sender: None }
    }

    /// The wake-up of its answers.
    #[must_use]
    pub fn wake(&self) -> &Wake {
        &self.wake
    }

    /// Queues a question. Returns false if the queue is full or the thread cannot be started; then no answer comes.
    pub fn ask(&mut self, question: Q) -> bool {
        if self.sender.is_none() {
            self.sender = self.start();
        }
        self.sender.as_ref().is_some_and(|sender| sender.try_send(question).is_ok())
    }

    /// The answers that have arrived since the last call.
    pub fn take(&mut self) -> Vec<A> {
        std::mem::take(&mut *self.answers.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn start(&self) -> Option<SyncSender<Q>> {
        let (sender, receiver) = sync_channel(self.most);
        let (answer, answers, wake) = (self.answer, Arc::clone(&self.answers), self.wake.clone());
        let thread = std::thread::Builder::new().name(self.name.to_owned()).stack_size(self.stack);
        thread.spawn(move || run(&receiver, answer, &answers, &wake)).ok().map(|_running| sender)
    }
}

fn run<Q, A>(questions: &Receiver<Q>, answer: fn(Q) -> A, answers: &Mutex<Vec<A>>, wake: &Wake) {
    while let Ok(question) = questions.recv() {
        let found = answer(question);
        answers.lock().unwrap_or_else(PoisonError::into_inner).push(found);
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
