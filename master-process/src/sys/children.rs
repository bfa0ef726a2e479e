//! Who a process's children are: proc_pid_task_tid_children(5).

use rustix::process::Pid;

/// The children of all threads of a process; `None` where they cannot be known.
pub fn of(pid: Pid) -> Option<Vec<Pid>> {
    let mut found = Vec::new();
    for thread in std::fs::read_dir(format!("/proc/{}/task", pid.as_raw_pid())).ok()? {
        let text = std::fs::read_to_string(thread.ok()?.path().join("children")).ok()?;
        found.extend(text.split_whitespace().filter_map(|number| Pid::from_raw(number.parse().ok()?)));
    }
    Some(found)
}

/// Ours, as far as they can be known.
pub fn ours() -> Vec<Pid> {
    of(rustix::process::getpid()).unwrap_or_default()
}
