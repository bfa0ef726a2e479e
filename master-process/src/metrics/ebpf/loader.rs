//! The thread that loads the programs.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::{Ebpf, LoadError, Thresholds};
use crate::config::Scope;
use crate::sys::helper::{Helper, Wake};

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

/// Loads the programs in a thread.
#[derive(Debug)]
pub struct Loader(Helper<Wanted, Result<Ebpf, LoadError>>);

/// The parser of the kernel's types is what needs the most.
const STACK: usize = 256 * 1024;

impl Loader {
    /// Starts the thread; `None` if there can be none.
    pub fn start(wanted: Wanted) -> Option<Loader> {
        let mut helper = Helper::new("ebpf", STACK, 1, Wake::new().ok()?, Wanted::load);
        helper.ask(wanted).then_some(Loader(helper))
    }

    /// Readable when [`Self::take`] has an answer.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.wake().fd()
    }

    /// The programs, or why they cannot be loaded; `None` while the thread is at it.
    pub fn take(&mut self) -> Option<Result<Ebpf, LoadError>> {
        self.0.wake().clear();
        self.0.take().pop()
    }
}
