//! Closing what strangers gave us. The last close of a socket that lingers, or of a file whose file system is
//! slow, waits; a thread of its own may.

use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};

static CLOSER: OnceLock<Option<Sender<OwnedFd>>> = OnceLock::new();

/// Closes `fd` where waiting for it holds nobody up. The thread begins with the first call; where there is none
/// to be had, the descriptor is closed here.
pub fn close_async(fd: OwnedFd) {
    let closer = CLOSER.get_or_init(|| {
        let (sender, receiver) = channel::<OwnedFd>();
        let thread = std::thread::Builder::new().name("closer".to_owned()).stack_size(64 * 1024);
        thread.spawn(move || receiver.into_iter().for_each(drop)).ok().map(|_running| sender)
    });
    match closer {
        Some(sender) => drop(sender.send(fd)),
        None => drop(fd),
    }
}
