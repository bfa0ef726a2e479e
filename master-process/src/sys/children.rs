//! Who a process's children are: proc_pid_task_tid_children(5).

use rustix::process::Pid;

/// The children of all threads of a process; `None` where they cannot be known.
pub fn of(pid: Pid) -> Option<Vec<Pid>> {
    let mut found = Vec::new();
    for thread in std::fs::read_dir(format!("/proc/{}/task", pid.as_raw_pid())).ok()? {
        let thread = thread.ok()?.path();
        let text = match std::fs::read_to_string(thread.join("children")) {
            Ok(text) => text,
            // A thread that has ended meanwhile has none: they are another thread's.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => continue,
            Err(_) if matches!(thread.try_exists(), Ok(false)) => continue,
            Err(_) => return None,
        };
        found.extend(text.split_whitespace().filter_map(|number| Pid::from_raw(number.parse().ok()?)));
    }
    Some(found)
}

/// Ours, as far as they can be known.
pub fn ours() -> Vec<Pid> {
    of(rustix::process::getpid()).unwrap_or_default()
}
