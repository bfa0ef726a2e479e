//! The thread that loads the programs.

use std::os::fd::BorrowedFd;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use super::{Ebpf, LoadError, Thresholds};
use crate::config::Scope;
use crate::sys::helper::Wake;
use crate::sys::thread;

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
    loaded: Receiver<Result<Ebpf, LoadError>>,
    /// Set by the thread when it is about to end.
    wake: Wake,
}

/// The parser of the kernel's types is what needs the most.
const STACK: usize = 256 * 1024;

/// Wakes the loop at the end of the thread, also if it panics.
struct Finished(Wake);

impl Drop for Finished {
    fn drop(&mut self) {
        self.0.set();
    }
}

impl Loader {
    /// Starts the thread; `None` if there can be none.
    pub fn start(wanted: Wanted) -> Option<Loader> {
        let wake = Wake::new().ok()?;
        let finished = Finished(wake.clone());
        let (sender, loaded) = sync_channel(1);
        let work = move || {
            let _finished = finished;
            // Nobody receives it if the supervisor ends meanwhile.
            let _unwanted = sender.send(wanted.load());
        };
        thread::spawn("ebpf", STACK, work).ok()?;
        Some(Loader { loaded, wake })
    }

    /// Readable when [`Self::take`] has an answer.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.wake.fd()
    }

    /// The programs, or why they cannot be loaded; `None` while the thread is at it.
    pub fn take(&mut self) -> Option<Result<Ebpf, LoadError>> {
        if !self.wake.clear() {
            return None;
        }
        let panicked = |_| LoadError::new("the eBPF programs", "the thread that loads them panicked");
        Some(self.loaded.try_recv().unwrap_or_else(|reason| Err(panicked(reason))))
    }
}
