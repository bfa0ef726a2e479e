//! `/proc/PID/smaps_rollup`: proc_pid_smaps(5).
//!
//! For each read the kernel walks the page tables of the process and holds the lock of its memory. This takes
//! milliseconds for a gigabyte, and longer while another thread holds that lock.

use std::io;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::process::Pid;

/// The file has one line with the range and about twenty lines of at most 40 bytes.
const MAX_LENGTH: usize = 4096;

/// Whether the kernel has this file: it is a build option.
pub fn is_supported() -> bool {
    Path::new("/proc/self/smaps_rollup").exists()
}

/// The proportional set size in bytes: the size of each page divided by the number of processes that map it.
///
/// # Errors
/// ENOENT or ESRCH if there is no such process any more, EACCES if we may not read it.
pub fn pss(pid: Pid) -> io::Result<u64> {
    let path = format!("/proc/{}/smaps_rollup", pid.as_raw_pid());
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = [0u8; MAX_LENGTH];
    let length = rustix::io::read(&file, &mut text)?;
    parse(&text[..length]).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn parse(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_found_among_those_that_begin_alike() {
        let text = "5577-7ffd ---p 00000000 00:00 0    [rollup]\nRss:     1880 kB\nPss_Dirty:   7 kB\nPss:          225 kB\nPss_Anon:  88 kB\n";
        assert_eq!(parse(text.as_bytes()), Some(225 * 1024));
        assert_eq!(parse(b"Rss: 1 kB\nPss_Anon: 3 kB\n"), None);
        assert_eq!(parse(b"Pss: 99999999999999999 kB\n"), None);
    }

    #[test]
    fn this_process_has_a_pss_and_a_reaped_one_has_none() {
        assert!(is_supported());
        let own = pss(rustix::process::getpid()).expect("our own");
        assert!(own > 100_000, "{own}");
        let mut child = std::process::Command::new("true").spawn().expect("a process");
        let pid = Pid::from_child(&child);
        let _status = child.wait();
        let error = pss(pid).expect_err("it is gone").raw_os_error();
        assert!([Some(libc::ENOENT), Some(libc::ESRCH)].contains(&error), "{error:?}");
    }
}
