//! What `/proc` contains about processes, and signals to them.

use std::fs;
use std::path::PathBuf;

use rustix::process::{Pid, Signal};

/// One line of `/proc/PID/stat`, as far as the tests need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Process id.
    pub pid: i32,
    /// The parent's id.
    pub ppid: i32,
    /// The process group.
    pub group: i32,
    /// `R`, `S`, `Z` and so on.
    pub state: char,
    /// Start time in clock ticks since boot: distinguishes a process from a later one with its id.
    pub started: u64,
}

/// A file of the process. Its name, which is anything but always UTF-8, may be in there.
fn text_of(pid: i32, file: &str) -> Option<String> {
    Some(String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/{file}")).ok()?).into_owned())
}

/// The process's line, or `None` where there is none (any more).
#[must_use]
pub fn stat(pid: i32) -> Option<Stat> {
    let text = text_of(pid, "stat")?;
    // The name is in parentheses and may contain anything, parentheses too.
    let rest = &text[text.rfind(')')? + 1..];
    let fields: Vec<&str> = rest.split_whitespace().collect();
    Some(Stat {
        pid,
        state: fields.first()?.chars().next()?,
        ppid: fields.get(1)?.parse().ok()?,
        group: fields.get(2)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
    })
}

/// Every process there is, zombies included.
#[must_use]
pub fn all() -> Vec<Stat> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries.flatten().filter_map(|entry| stat(entry.file_name().to_str()?.parse().ok()?)).collect()
}

/// The children of `pid`, zombies included.
#[must_use]
pub fn children(pid: i32) -> Vec<Stat> {
    all().into_iter().filter(|process| process.ppid == pid).collect()
}

/// Everything below `pid`, zombies included.
#[must_use]
pub fn descendants(pid: i32) -> Vec<Stat> {
    let all = all();
    let mut found = vec![pid];
    let mut index = 0;
    while let Some(parent) = found.get(index).copied() {
        found.extend(all.iter().filter(|process| process.ppid == parent).map(|process| process.pid));
        index += 1;
    }
    all.into_iter().filter(|process| found[1..].contains(&process.pid)).collect()
}

/// Whether the process runs: a zombie does not. As long as another thread runs, also after a kill, until it comes out of the kernel,
/// the process has its descriptors and locks.
#[must_use]
pub fn alive(pid: i32) -> bool {
    let has_threads =
        || fs::read_dir(format!("/proc/{pid}/task")).is_ok_and(|tasks| tasks.flatten().count() > 1);
    stat(pid).is_some_and(|process| !matches!(process.state, 'Z' | 'X') || has_threads())
}

/// What each thread of a process is at: its name and state, what it waits for in the kernel, and the call that it is in.
#[must_use]
pub fn threads(pid: i32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let tasks = tasks.filter_map(|task| task.file_name().to_str()?.parse::<i32>().ok());
    let line = |task: i32| {
        let file = |name: &str| text_of(pid, &format!("task/{task}/{name}")).unwrap_or_default();
        let stack = file("stack")
            .lines()
            .map(|line| line.trim_start_matches("[<0>] ").to_owned())
            .collect::<Vec<_>>();
        let state = stat(task).map_or('?', |stat| stat.state);
        format!(
            "{task} {} {state}: call {}; {}",
            file("comm").trim(),
            file("syscall").trim(),
            stack.join(" < ")
        )
    };
    tasks.map(line).collect()
}

/// A line of `/proc/PID/status` by its name, without the name.
#[must_use]
pub fn status(pid: i32, name: &str) -> Option<String> {
    let text = text_of(pid, "status")?;
    text.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim().to_owned()))
}

/// A signal set of `/proc/PID/status` (`SigBlk`, `SigIgn`, `SigCgt`); bit 0 is signal 1.
#[must_use]
pub fn signal_set(pid: i32, name: &str) -> Option<u64> {
    u64::from_str_radix(&status(pid, name)?, 16).ok()
}

/// The file that the process executes.
#[must_use]
pub fn executable(pid: i32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/exe")).ok()
}

/// The descriptors of a process, with what they are open on, in order.
#[must_use]
pub fn descriptors(pid: i32) -> Vec<(i32, PathBuf)> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return Vec::new();
    };
    let mut found: Vec<(i32, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| {
            Some((entry.file_name().to_str()?.parse().ok()?, fs::read_link(entry.path()).ok()?))
        })
        .collect();
    found.sort();
    found
}

/// The environment that the process was started with.
#[must_use]
pub fn environment(pid: i32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    bytes.split(|byte| *byte == 0).map(|part| String::from_utf8_lossy(part).into_owned()).collect()
}

/// Sends a signal. The process may be gone already: that is for the caller's conditions to find out.
pub fn signal(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Kills exactly the process that `found` described, never a later one with its id.
///
/// Its process group goes with it, unless that is the caller's own: processes that fork without end are born faster than
/// they can be found, and the kernel kills a group at once. The number of a group is not given away while it has members.
pub fn kill_exactly(found: Stat) {
    let Some(pid) = Pid::from_raw(found.pid) else {
        return;
    };
    let Ok(handle) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else {
        return;
    };
    // The handle is of whoever has the id now; only if that one started when ours did is it ours.
    if stat(found.pid).is_some_and(|now| now.started == found.started) {
        // Not by getpgrp(2): a group from outside of our PID namespace is 0 there, which is no `Pid`.
        let own = stat(rustix::process::getpid().as_raw_pid()).map(|own| own.group);
        if let Some(group) = Pid::from_raw(found.group).filter(|_| own.is_some_and(|own| own != found.group))
        {
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
        let _ = rustix::process::pidfd_send_signal(&handle, Signal::KILL);
    }
}

/// Whether this test runs as root.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// How many TCP sockets of this network listen on exactly this address.
#[must_use]
pub fn listening(address: std::net::SocketAddrV4) -> usize {
    const LISTEN: &str = "0A";
    // The address as four bytes in this machine's order, the port as a number; proc_net_tcp in the kernel's documentation.
    let ip = u32::from_ne_bytes(address.ip().octets());
    let wanted = format!("{ip:08X}:{:04X}", address.port());
    let table = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let fields = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    fields.filter(|field| field.get(1) == Some(&wanted.as_str()) && field.get(3) == Some(&LISTEN)).count()
}

/// Stops a process and waits until it is: a signal takes effect a moment later, and a server may accept until then.
pub fn freeze(pid: i32) {
    signal(pid, Signal::STOP);
    crate::wait::eventually(crate::wait::TIMEOUT, "it is stopped", || {
        std::fs::read_to_string(format!("/proc/{pid}/status"))
            .is_ok_and(|status| status.contains("State:\tT"))
    });
}
