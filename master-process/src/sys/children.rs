//! The children of a process: proc_pid_task_tid_children(5).

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

/// The supervisor's children, as far as they can be read.
pub fn ours() -> Vec<Pid> {
    of(rustix::process::getpid()).unwrap_or_default()
}
