//! The children of a process: proc_pid_task_tid_children(5).

use std::fs::File;
use std::io::Read;

use rustix::process::Pid;

/// The children of all threads of a process. `None`: they cannot be read.
pub fn of(pid: Pid) -> Option<Vec<Pid>> {
    let (mut found, mut room) = (Vec::new(), usize::MAX);
    add(pid, &mut room, &mut found).then_some(found)
}

/// Adds the children of all threads of a process to `found`. Each thread and each child takes one from `room`; when there is
/// none left, the rest is missing. Returns false if they cannot be read.
pub fn add(pid: Pid, room: &mut usize, found: &mut Vec<Pid>) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{}/task", pid.as_raw_pid())) else { return false };
    for thread in threads {
        let Some(left) = room.checked_sub(1) else { return true };
        *room = left;
        let Ok(thread) = thread else { return false };
        let thread = thread.path();
        let text = match std::fs::read_to_string(thread.join("children")) {
            Ok(text) => text,
            // The thread has ended, and its children belong to another thread.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => continue,
            Err(_) if matches!(thread.try_exists(), Ok(false)) => continue,
            Err(_) => return false,
        };
        let children = text.split_whitespace().filter_map(|number| Pid::from_raw(number.parse().ok()?));
        let before = found.len();
        found.extend(children.take(*room));
        *room -= found.len() - before;
    }
    true
}

/// The children of this process's first thread, if they are few. Orphans that the process adopts become children of that thread,
/// as long as it lives: the kernel's `find_new_reaper`.
///
/// The list has each child that was there before the call and that nobody has waited for meanwhile: the kernel appends new ones, and
/// goes on from the last one that it has listed.
pub fn of_first_thread() -> Option<Vec<Pid>> {
    let pid = rustix::process::getpid().as_raw_pid();
    let mut file = File::open(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    let mut text = [0; MOST_BYTES];
    let mut length = 0;
    loop {
        // A full buffer may lack some of them.
        match file.read(text.get_mut(length..).filter(|room| !room.is_empty())?).ok()? {
            0 => break,
            count => length += count,
        }
    }
    let numbers = text.get(..length)?.split(|byte| *byte == b' ').filter(|number| !number.is_empty());
    numbers.map(|number| Pid::from_raw(std::str::from_utf8(number).ok()?.parse().ok()?)).collect()
}

/// The room for the children of a thread: about a thousand of them, which the kernel lists in a tenth of a millisecond.
const MOST_BYTES: usize = 8192;

/// The supervisor's children, as far as they can be read.
pub fn ours() -> Vec<Pid> {
    of(rustix::process::getpid()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_has_the_children_that_it_started() {
        let start = || std::process::Command::new("sleep").arg("60").spawn().expect("a process");
        let mut child = std::thread::spawn(start).join().expect("it does not panic");
        let pid = Pid::from_child(&child);
        // The thread that has started it is gone, so it is another one's, which may be the first one.
        let (of_first, of_all) = (of_first_thread().expect("they are few"), ours());
        child.kill().and_then(|()| child.wait()).expect("it is ours");
        assert!(of_all.contains(&pid), "{of_all:?}");
        assert!(of_first.iter().all(|pid| of_all.contains(pid)), "{of_first:?} of {of_all:?}");
        // The first thread lives, so the kernel has given it the child.
        assert!(of_first.contains(&pid), "{of_first:?}");
    }
}
