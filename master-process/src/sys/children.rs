//! The children of a process: proc_pid_task_tid_children(5).

use rustix::process::Pid;

/// The children of all threads of a process. `None`: they cannot be read.
pub fn of(pid: Pid) -> Option<Vec<Pid>> {
    let mut found = Vec::new();
    for thread in std::fs::read_dir(format!("/proc/{}/task", pid.as_raw_pid())).ok()? {
        let thread = thread.ok()?.path();
        let text = match std::fs::read_to_string(thread.join("children")) {
            Ok(text) => text,
            // The thread has ended, and its children belong to another thread.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => continue,
            Err(_) if matches!(thread.try_exists(), Ok(false)) => continue,
            Err(_) => return None,
        };
        found.extend(text.split_whitespace().filter_map(|number| Pid::from_raw(number.parse().ok()?)));
    }
    Some(found)
}

/// The supervisor's children, as far as they can be read.
pub fn ours() -> Vec<Pid> {
    of(rustix::process::getpid()).unwrap_or_default()
}
