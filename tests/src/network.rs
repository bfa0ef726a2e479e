//! A network of a test's own: no port of another test, no route to anywhere.

use std::process::Command;

use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::fixtures;

/// Brings the loopback interface up: SIOCSIFFLAGS with IFF_UP, then the command that follows. `ip` need not be there.
const LOOPBACK_UP: &str = "
import fcntl, socket, struct
fcntl.ioctl(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), 0x8914, struct.pack('16sH14x', b'lo', 1))";

/// Moves the calling thread into a new network namespace with nothing but a loopback interface. Whatever it starts from
/// then on, threads and processes, is in there too.
///
/// # Errors
/// When this user may not make one: the reason.
///
/// # Panics
/// When the loopback interface cannot be brought up in it.
pub fn enter_own() -> Result<(), String> {
    // SAFETY: only the network namespace is left. The descriptor table, which is what makes the call dangerous, stays shared.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
        .map_err(|error| format!("no network namespace: {error}"))?;
    let up = Command::new(fixtures::python()).args(["-S", "-E", "-c", LOOPBACK_UP]).status();
    assert!(up.expect("python runs").success(), "the loopback interface of a new network can be brought up");
    Ok(())
}
