//! A network of its own for each test: programs may bind fixed ports, and find them as a fresh machine would have them.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Where a program is, also those for administrators, which are not in everybody's `PATH`.
pub(crate) fn find(program: &str) -> Option<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let found = folders.map(|folder| folder.join(program)).find(|file| file.is_file())?;
    found.to_str().map(str::to_owned)
}

/// The path of a program that [`prepare`] has found.
pub(crate) fn path_of(program: &str) -> String {
    find(program).unwrap_or_else(|| panic!("{program} was there a moment ago"))
}

/// Returns what is missing for a test: a program or file that it needs, or the right to have a network of its own.
pub(crate) fn missing(needs: &[&str]) -> Option<String> {
    // In a thread that is good for nothing else: this one may have to go on where it is.
    if let Err(error) = std::thread::spawn(unshare).join().expect("it does not panic") {
        return Some(format!("a network of its own takes root: {error}"));
    }
    let absent =
        |need: &&&str| if need.starts_with('/') { !Path::new(need).exists() } else { find(need).is_none() };
    needs.iter().find(absent).map(|need| format!("{need} is not installed"))
}

/// Moves this thread, and everything that it starts from now on, into a new network with nothing in it but loopback.
pub(crate) fn enter() {
    unshare().expect("it was tried");
    ip("link set lo up");
}

fn unshare() -> rustix::io::Result<()> {
    // SAFETY: the network is the thread's alone; no table of descriptors and no memory is unshared.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
}

/// Runs ip(8) in the network of this thread.
pub(crate) fn ip(words: &str) {
    let status = Command::new(path_of("ip")).args(words.split(' ')).status().expect("ip can be run");
    assert!(status.success(), "ip {words}");
}

/// Leaves the test, saying why, where something that it needs is missing.
macro_rules! needs {
    ($name:expr $(, $need:expr)*) => {
        if let Some(reason) = $crate::network::missing(&["ip" $(, $need)*]) {
            master_process_tests::skip!($name, reason);
        }
    };
}
pub(crate) use needs;
