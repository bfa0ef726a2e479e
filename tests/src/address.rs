//! Addresses that no other test uses.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU16, Ordering};

use tempfile::TempDir;

/// The lowest port given out: not privileged, below the range of outgoing connections, and not among those that people
/// use for what they develop: a server on every address of the machine would be in the way.
const FIRST_PORT: u16 = 6200;

/// A TCP address of this test alone. The loopback network has room for an address per process, so parallel tests cannot
/// meet, and the port is never one that the kernel has just lent to an outgoing connection.
#[must_use]
pub fn tcp() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(FIRST_PORT);
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    // Pids have at most 22 bits; 64 and up keeps clear of 127.0.0.1 and what people run there.
    let ip = Ipv4Addr::new(127, 64 | (high & 63), middle, low);
    SocketAddr::from((ip, NEXT.fetch_add(1, Ordering::Relaxed)))
}

/// A port for a program that binds every address, where tests are told apart by the port alone: far from those of
/// [`tcp`], which it would take away from others, and below the range of outgoing connections, and not one
#[must_use]
pub fn wildcard_port() -> u16 {
    const LOWEST: u32 = 20_000;
    const COUNT: u32 = 12_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let offset = std::process::id().wrapping_add(u32::from(NEXT.fetch_add(1, Ordering::Relaxed)));
    u16::try_from(LOWEST + offset % COUNT).expect("less than 32000")
}

/// A path for a Unix socket, alone in a folder that goes with the first value.
///
/// # Panics
/// When no folder can be made.
#[must_use]
pub fn unix() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("app.sock");
    (folder, path)
}
