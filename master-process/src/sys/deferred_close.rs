//! Closes descriptors that workers sent, in a separate thread.
//!
//! The last close of a descriptor can block: for the peer of a socket with `SO_LINGER`, or for a slow file system.

use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};

static THREAD: OnceLock<Option<Sender<OwnedFd>>> = OnceLock::new();

/// Closes `fd` without blocking the caller. The first call starts the thread. If it cannot be started, the call closes
/// the descriptor itself.
pub fn close_async(fd: OwnedFd) {
    let thread = THREAD.get_or_init(|| {
        let (sender, receiver) = channel::<OwnedFd>();
        let builder = std::thread::Builder::new().name("close".to_owned()).stack_size(64 * 1024);
        builder.spawn(move || receiver.into_iter().for_each(drop)).ok().map(|_running| sender)
    });
    match thread {
        Some(sender) => drop(sender.send(fd)),
        None => drop(fd),
    }
}
