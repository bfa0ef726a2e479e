//! The thread that loads the programs.

use std::os::fd::BorrowedFd;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use super::{Ebpf, LoadError, Thresholds};
use crate::config::Scope;
use crate::sys::allocator::{self, THREAD_STACK};
use crate::sys::helper::Wake;

/// What is to be measured, for [`Ebpf::load`].
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Which processes count.
    pub scope: Scope,
    /// The number of workers.
    pub workers: u32,
    /// The time between two samples.
    pub interval: Duration,
    /// The limits.
    pub thresholds: Thresholds,
}

impl Wanted {
    /// Loads the programs.
    ///
    /// # Errors
    /// Those of [`Ebpf::load`].
    pub fn load(self) -> Result<Ebpf, LoadError> {
        Ebpf::load(self.scope, self.workers, self.interval, self.thresholds)
    }
}

/// A thread that loads the programs.
#[derive(Debug)]
pub struct Loader {
    thread: Option<JoinHandle<Result<Ebpf, LoadError>>>,
    /// Set by the thread when it is about to end.
    wake: Wake,
}

impl Loader {
    /// Starts the thread; `None` if there can be none.
    pub fn start(wanted: Wanted) -> Option<Loader> {
        let wake = Wake::new().ok()?;
        let finished = wake.clone();
        let thread = Builder::new().name("ebpf".to_owned()).stack_size(THREAD_STACK).spawn(move || {
            let loaded = wanted.load();
            allocator::release_thread_stack();
            finished.set();
            loaded
        });
        Some(Loader { thread: Some(thread.ok()?), wake })
    }

    /// Readable when [`Self::take`] has an answer.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.wake.fd()
    }

    /// The programs, or why they cannot be loaded; `None` while the thread is at it. Afterwards the thread is gone, with the
    /// memory that it kept for further use.
    pub fn take(&mut self) -> Option<Result<Ebpf, LoadError>> {
        if !self.wake.clear() {
            return None;
        }
        let panicked = |_| LoadError::new("the eBPF programs", "the thread that loads them panicked");
        Some(self.thread.take()?.join().unwrap_or_else(|reason| Err(panicked(reason))))
    }
}
