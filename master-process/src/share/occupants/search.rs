//! The search for the holders of an address, and the end of those that were left behind.

use std::collections::HashSet;
use std::fmt::Write;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, getpid, pidfd_open};

use super::verdict::{Evidence, Marks, Other, Verdict, verdict};
use super::{Outcome, Takeover, Wanted};
use crate::share::address::{Key, Protocol};
use crate::sys::peer::Peer;
use crate::sys::proc_stat::{self, Stat};
use crate::sys::remote_read::Reader;
use crate::sys::{children, holders, inet_diag, pidfd, signal_names};

/// The number of ancestors to follow. The owner of a process with more is unknown.
const MAX_DEPTH: usize = 4096;

/// The number of processes to end at a time; each takes a descriptor.
const MAX_TARGETS: usize = 256;

/// The number of searches after the stop signal. A process that forks while it is killed leaves children, which the
/// next search finds.
const ROUNDS: usize = 8;

/// The wait after SIGKILL, which takes effect within microseconds, unless a process hangs in the kernel.
const KILL_TAKES: Duration = Duration::from_millis(500);

/// Reads the environments of holders. They may be processes of a hostile user, so a separate reader keeps them from
/// delaying workers' calls.
static ENVIRONMENTS: Reader = Reader::new("holders", 16, Duration::from_secs(1));

/// The number of holders that a line names.
const MAX_NAMED: usize = 3;

/// A process that holds the address.
#[derive(Debug)]
struct Occupant {
    pid: Pid,
    started: u64,
    name: String,
    verdict: Verdict,
    /// Whether we may signal it: it runs as our user, or we are root.
    is_in_reach: bool,
}

/// All holders of the address.
#[derive(Debug, Default)]
struct Found {
    occupants: Vec<Occupant>,
    /// Whether their descriptors prove that they hold it.
    certain: bool,
    /// The user of a socket whose holder cannot be found.
    uid: Option<u32>,
}

/// A process that was left behind, and the result of ending it.
#[derive(Debug)]
struct Ended {
    pid: Pid,
    started: u64,
    name: String,
    supervisor: Pid,
    signal: i32,
    error: Option<io::Error>,
}

pub(super) fn run(wanted: &Wanted, takeover: Option<Takeover>) -> Outcome {
    let mut found = find(wanted);
    let mut ended = Vec::new();
    if let Some(takeover) = takeover {
        ended = end(wanted, &found, takeover);
        if !ended.is_empty() {
            found = find(wanted);
        }
    }
    let is_reported = |occupant: &Occupant| ended.iter().any(|ended| ended.pid == occupant.pid);
    found.occupants.retain(|occupant| occupant.verdict != Verdict::Ours && !is_reported(occupant));
    Outcome {
        holders: describe(&found, takeover.is_some()),
        ended: ended.iter().map(|ended| describe_end(ended, &wanted.key)).collect(),
    }
}

fn find(wanted: &Wanted) -> Found {
    let (inodes, uid) = sockets(wanted);
    let mut pids = if inodes.is_empty() { Vec::new() } else { holders::of_host(&inodes) };
    let certain = !pids.is_empty();
    if pids.is_empty() {
        pids.extend(wanted.answerer.and_then(|answerer| answerer.listener));
    }
    let occupants: Vec<Occupant> = pids.into_iter().filter_map(occupant).collect();
    Found { uid: uid.filter(|_| occupants.is_empty()), occupants, certain }
}

/// The inode numbers of the sockets that hold it, and the user of one of them.
fn sockets(wanted: &Wanted) -> (Vec<u64>, Option<u32>) {
    match &wanted.key {
        Key::Inet { protocol, address, .. } => {
            let datagram = *protocol == Protocol::Udp;
            let mut bound = inet_diag::bound(datagram, address.port()).unwrap_or_default();
            bound.retain(|bound| {
                let inet_diag::Bound { address, v6only, interface, .. } = *bound;
                Key::Inet { protocol: *protocol, address, v6only, interface }.overlaps(&wanted.key)
            });
            (bound.iter().map(|bound| bound.inode).collect(), bound.first().map(|bound| bound.uid))
        }
        Key::Unix { .. } => {
            let file = wanted.answerer.map(|answerer| answerer.file);
            let inodes = file.and_then(|(device, file)| inet_diag::listeners_at_file(device, file).ok());
            (inodes.unwrap_or_default(), None)
        }
        Key::Abstract(_) => (Vec::new(), None),
    }
}

/// Gathers the evidence about a process; `None`: it has ended.
fn occupant(pid: Pid) -> Option<Occupant> {
    let stat = stat(pid)?;
    let peer = Peer::open(pid).ok()?;
    let marks = peer.environment_by(&ENVIRONMENTS).ok().and_then(|environment| Marks::read(&environment));
    let evidence = Evidence {
        pid,
        started: stat.started,
        marks,
        shares_pids: peer.shares_pids().unwrap_or(false),
        ancestors: ancestors(stat),
        recorded: marks.and_then(|marks| other(marks.supervisor)),
    };
    let is_root = rustix::process::geteuid().is_root();
    let is_in_reach = is_root || peer.real_uid().is_ok_and(|uid| uid == rustix::process::geteuid().as_raw());
    let name = proc_stat::name(pid).unwrap_or_else(|| "?".to_owned());
    // The evidence belongs to this process only if it still exists.
    let is_same = self::stat(pid).is_some_and(|now| now.started == stat.started);
    let verdict = verdict(getpid(), &evidence);
    is_same.then_some(Occupant { pid, started: stat.started, name, verdict, is_in_reach })
}

/// The ancestors of a process, from its parent to the first process; `None`: they changed meanwhile, or are too many.
fn ancestors(of: Stat) -> Option<Vec<Other>> {
    let (mut found, mut child) = (Vec::new(), of);
    while let Some(parent) = child.parent {
        let stat = stat(parent)?;
        if stat.started > child.started || found.len() >= MAX_DEPTH {
            return None;
        }
        let is_supervisor = Peer::open(parent).ok()?.is_supervisor();
        found.push(Other { pid: parent, started: stat.started, is_supervisor });
        child = stat;
    }
    Some(found)
}

fn other(pid: Pid) -> Option<Other> {
    let stat = stat(pid)?;
    let is_supervisor = Peer::open(pid).is_ok_and(|peer| peer.is_supervisor());
    Some(Other { pid, started: stat.started, is_supervisor })
}

fn stat(pid: Pid) -> Option<Stat> {
    proc_stat::of(pid).ok().filter(|stat| !stat.is_zombie)
}

/// The holders that an earlier supervisor has left, and their descendants that have the same marks or also hold the
/// address: pid, start time, name and supervisor.
fn targets(found: &Found) -> Vec<(Pid, u64, String, Pid)> {
    let mut targets = Vec::new();
    let mut seen = HashSet::new();
    for occupant in found.occupants.iter().filter(|_| found.certain) {
        let Verdict::Left(marks) = occupant.verdict else { continue };
        if !occupant.is_in_reach || !seen.insert(occupant.pid) {
            continue;
        }
        targets.push((occupant.pid, occupant.started, occupant.name.clone(), marks.supervisor));
        let mut parents = vec![occupant.pid];
        while let Some(parent) =
            parents.pop().filter(|_| targets.len() < MAX_TARGETS && seen.len() < MAX_DEPTH)
        {
            for child in children::of(parent).unwrap_or_default() {
                if !seen.insert(child) {
                    continue;
                }
                parents.push(child);
                let Some(below) = self::occupant(child).filter(|below| below.is_in_reach) else { continue };
                let holds = found.occupants.iter().any(|holder| holder.pid == child);
                let is_left = match below.verdict {
                    Verdict::Left(its) => its == marks || holds,
                    Verdict::Unrelated => holds,
                    Verdict::Ours | Verdict::OfLiving(_) => false,
                };
                if is_left {
                    targets.push((below.pid, below.started, below.name, marks.supervisor));
                }
            }
        }
    }
    targets.truncate(MAX_TARGETS);
    targets
}

/// Ends the processes that were left behind, with the stop signal, and SIGKILL for those that remain.
fn end(wanted: &Wanted, found: &Found, takeover: Takeover) -> Vec<Ended> {
    let mut ended = Vec::new();
    let signalled = signal(&targets(found), takeover.signal, &mut ended);
    await_end(&signalled, takeover.kill_after);
    for _ in 0..ROUNDS {
        let left = targets(&find(wanted));
        let killed = signal(&left, libc::SIGKILL, &mut ended);
        if killed.is_empty() {
            break;
        }
        await_end(&killed, KILL_TAKES);
    }
    ended
}

/// Sends a signal to processes whose pids were not reused. A stopped process also gets SIGCONT: it must run to handle
/// the signal.
fn signal(targets: &[(Pid, u64, String, Pid)], number: i32, ended: &mut Vec<Ended>) -> Vec<OwnedFd> {
    let mut handles = Vec::new();
    for (pid, started, name, supervisor) in targets {
        let Ok(handle) = pidfd_open(*pid, PidfdFlags::empty()) else { continue };
        if stat(*pid).is_none_or(|stat| stat.started != *started) {
            continue;
        }
        let sent = pidfd::signal(handle.as_fd(), number);
        if number != libc::SIGKILL && sent.is_ok() {
            let _gone = pidfd::signal(handle.as_fd(), libc::SIGCONT);
        }
        let error = match sent {
            Ok(()) => None,
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => continue,
            Err(error) => Some(error),
        };
        if error.is_none() {
            handles.push(handle);
        }
        let (pid, started, supervisor) = (*pid, *started, *supervisor);
        ended.retain(|ended| (ended.pid, ended.started) != (pid, started));
        ended.push(Ended { pid, started, name: name.clone(), supervisor, signal: number, error });
    }
    handles
}

/// Waits until all of them have ended, or the time is over.
fn await_end(handles: &[OwnedFd], limit: Duration) {
    let until = Instant::now() + limit;
    for handle in handles {
        let left = until.saturating_duration_since(Instant::now());
        let mut watched = [PollFd::new(handle, PollFlags::IN)];
        let limit = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 0, tv_nsec: 0 });
        // An interrupted wait would be shorter; all signals are blocked.
        let _gone_or_not = poll(&mut watched, Some(&limit));
    }
}

/// Describes the holders of the address, and how to end them.
fn describe(found: &Found, takes_over: bool) -> Option<String> {
    let mut text = String::new();
    for (count, occupant) in found.occupants.iter().take(MAX_NAMED).enumerate() {
        let separator = if count == 0 { "" } else { "; and by " };
        let since = started_at(occupant.started);
        let since = since.map_or_else(String::new, |since| {
            format!(", running since {}", humantime::format_rfc3339_seconds(since))
        });
        let _never_fails =
            write!(text, "{separator}{} (pid {}){since}", occupant.name, occupant.pid.as_raw_pid());
        let _never_fails = match occupant.verdict {
            Verdict::Left(marks) => {
                write!(text, ", left by an earlier master-process (pid {})", marks.supervisor.as_raw_pid())
            }
            Verdict::OfLiving(supervisor) => {
                write!(text, ", which belongs to a running master-process (pid {})", supervisor.as_raw_pid())
            }
            Verdict::Ours | Verdict::Unrelated => Ok(()),
        };
    }
    if let Some(more) = found.occupants.len().checked_sub(MAX_NAMED).filter(|more| *more > 0) {
        let _never_fails = write!(text, "; and {more} more");
    }
    if text.is_empty() {
        let uid = found.uid?;
        return Some(format!("a process of user {uid} that cannot be looked into"));
    }
    let is_left = |occupant: &Occupant| matches!(occupant.verdict, Verdict::Left(_));
    if found.occupants.iter().any(|occupant| is_left(occupant) && occupant.is_in_reach) && found.certain {
        if !takes_over {
            text.push_str(": --takeover ends it");
        }
    } else if takes_over {
        text.push_str(": left alone");
    }
    Some(text)
}

fn describe_end(ended: &Ended, key: &Key) -> String {
    let process = format!(
        "{} (pid {}), left by an earlier master-process (pid {})",
        ended.name,
        ended.pid.as_raw_pid(),
        ended.supervisor.as_raw_pid()
    );
    if let Some(error) = &ended.error {
        return format!("cannot end {process}, which holds {key}: pidfd_send_signal: {error}");
    }
    let is_there = stat(ended.pid).is_some_and(|stat| stat.started == ended.started);
    let signal = signal_names::name(ended.signal);
    if is_there {
        format!("cannot end {process}, which holds {key}: it is still there after {signal}")
    } else {
        format!("ended {process}, which held {key}, with {signal}")
    }
}

/// The time that is `ticks` clock ticks after boot.
fn started_at(ticks: u64) -> Option<SystemTime> {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let up = Duration::new(u64::try_from(now.tv_sec).ok()?, u32::try_from(now.tv_nsec).ok()?);
    let started =
        Duration::from_millis(ticks.checked_mul(1000)? / rustix::param::clock_ticks_per_second().max(1));
    SystemTime::now().checked_sub(up.checked_sub(started)?)
}
