//! One subject at work: started, observed through the records of its workers, ended with all that it started.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process, pidfd_open, pidfd_send_signal, waitid,
};
use rustix::time::{ClockId, clock_gettime};

use super::subject::Subject;

/// The time limit of each step of a subject. Nothing here takes a tenth of that on a busy machine; it is
/// there so that a subject that does not do it ends the run with a reason.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Room for tens of thousands of records, so that no worker ever waits for the reader.
const PIPE_BYTES: usize = 1 << 20;

/// One record of `worker.c`: nanoseconds and pid, eight bytes each.
const RECORD_BYTES: usize = 16;

/// Nanoseconds of the monotonic clock: the one that the workers read.
pub(crate) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// A worker's word that it runs.
struct Record {
    at_ns: u64,
    pid: Pid,
}

/// A subject that runs. Dropping it ends it, and its workers.
pub(crate) struct Running {
    child: Child,
    name: String,
    records: File,
    ends_its_workers: bool,
    /// The workers that have said that they run and were not killed here, the oldest first.
    alive: VecDeque<Pid>,
    /// Just before it was spawned.
    spawned_ns: u64,
    ended: bool,
}

impl Running {
    /// Starts a subject and waits for all of its workers. The second value is the time from just before the spawn to
    /// the last worker's first instruction.
    pub(crate) fn start(subject: &dyn Subject, workers: u32, worker: &Path) -> Result<(Self, u64)> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).context("making a pipe")?;
        fcntl_setpipe_size(&writer, PIPE_BYTES).context("making the pipe larger")?;
        let mut command = subject.command(workers, worker);
        command.stdin(Stdio::null()).stdout(writer).stderr(Stdio::null());
        let spawned_ns = now_ns();
        let child = command.spawn().with_context(|| format!("starting {}", subject.name()))?;
        // It holds our copy of the writing end, and the end of the file shows that no worker is left.
        drop(command);
        let mut running = Self {
            child,
            name: subject.name().to_owned(),
            records: File::from(reader),
            ends_its_workers: subject.ends_its_workers(),
            alive: VecDeque::new(),
            spawned_ns,
            ended: false,
        };
        let last = running.await_starts(workers as usize)?;
        let took = last.saturating_sub(running.spawned_ns);
        Ok((running, took))
    }

    /// Kills the oldest worker; the time from just before the signal to its replacement's first instruction.
    pub(crate) fn kill_one(&mut self) -> Result<u64> {
        let victim = self.alive.pop_front().context("no worker is alive")?;
        self.kill(&[victim])
    }

    /// Kills all workers at once; the time from just before the first signal to the last replacement's first
    /// instruction.
    pub(crate) fn kill_all(&mut self) -> Result<u64> {
        let victims = Vec::from(std::mem::take(&mut self.alive));
        self.kill(&victims)
    }

    fn kill(&mut self, victims: &[Pid]) -> Result<u64> {
        let handles: Vec<OwnedFd> = victims
            .iter()
            .map(|pid| pidfd_open(*pid, PidfdFlags::empty()).context("a worker is gone already"))
            .collect::<Result<_>>()?;
        let begun = now_ns();
        for handle in &handles {
            pidfd_send_signal(handle, Signal::KILL).context("killing a worker")?;
        }
        let last = self.await_starts(handles.len())?;
        Ok(last.saturating_sub(begun))
    }

    /// Proportional resident memory of the subject's own process, in KiB.
    pub(crate) fn pss_kib(&self) -> Result<u64> {
        let path = format!("/proc/{}/smaps_rollup", self.child.id());
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        text.lines()
            .find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix("kB")?.trim().parse().ok())
            .with_context(|| format!("no Pss in {path}"))
    }

    /// CPU time of the subject's own process, in nanoseconds: that of all threads, also of those that have ended.
    pub(crate) fn cpu_ns(&self) -> Result<u64> {
        let pid = libc::pid_t::try_from(self.child.id())?;
        let mut clock: libc::clockid_t = 0;
        // SAFETY: the function writes a number to `clock`.
        let failed = unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) };
        ensure!(failed == 0, "clock_getcpuclockid: {}", std::io::Error::from_raw_os_error(failed));
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the function writes a time to `time`.
        let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
        ensure!(result == 0, "clock_gettime: {}", std::io::Error::last_os_error());
        Ok(u64::try_from(time.tv_sec)? * 1_000_000_000 + u64::try_from(time.tv_nsec)?)
    }

    /// Stops the subject, waits, and checks that no process of it is left.
    pub(crate) fn end(mut self) -> Result<()> {
        self.end_in_place()
    }

    /// Waits for this many more first words, and returns the time of the last.
    fn await_starts(&mut self, count: usize) -> Result<u64> {
        let deadline = Instant::now() + TIMEOUT;
        let (mut seen, mut last) = (0, 0);
        while seen < count {
            let Some(records) =
                self.read(deadline).with_context(|| format!("{}: {seen} of {count}", self.name))?
            else {
                bail!("{} ended with {seen} of {count} workers started", self.name);
            };
            for record in records {
                seen += 1;
                last = last.max(record.at_ns);
                self.alive.push_back(record.pid);
            }
        }
        if seen > count {
            bail!("{}: {seen} workers started where {count} were due", self.name);
        }
        Ok(last)
    }

    /// The next records; `None` when no process is left that could write one.
    fn read(&mut self, deadline: Instant) -> Result<Option<Vec<Record>>> {
        if !wait_readable(&self.records, deadline)? {
            bail!("no worker started within {} s", TIMEOUT.as_secs());
        }
        let mut buffer = [0; RECORD_BYTES * 256];
        let length = self.records.read(&mut buffer).context("reading records")?;
        if length == 0 {
            return Ok(None);
        }
        // Each is one write, and the buffer holds a whole number of them.
        let (records, rest) = buffer[..length].as_chunks::<RECORD_BYTES>();
        if !rest.is_empty() {
            bail!("{} wrote something that is no record to its workers' output", self.name);
        }
        records.iter().map(parse).collect::<Option<_>>().map(Some).with_context(|| {
            format!("{} wrote something that is no record to its workers' output", self.name)
        })
    }

    fn end_in_place(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.ended, true) {
            return Ok(());
        }
        let pid = Pid::from_child(&self.child);
        // Not waited for yet, so the number is still the child's.
        kill_process(pid, Signal::TERM).context("asking a subject to end")?;
        let handle = pidfd_open(pid, PidfdFlags::empty()).context("opening a subject")?;
        let in_time = wait_readable(&handle, Instant::now() + TIMEOUT)?;
        if !in_time {
            self.child.kill().context("killing a subject")?;
        }
        self.child.wait().context("waiting for a subject")?;
        let left = self.sweep()?;
        if !in_time {
            bail!("{} did not end within {} s of SIGTERM", self.name, TIMEOUT.as_secs());
        }
        if self.ends_its_workers && left > 0 {
            bail!("{} left {left} workers behind", self.name);
        }
        Ok(())
    }

    /// Ends the workers that the subject has left, and waits until no process holds the pipe. The
    /// number of them is the result.
    fn sweep(&mut self) -> Result<usize> {
        let deadline = Instant::now() + TIMEOUT;
        let mut left = 0;
        loop {
            for pid in std::mem::take(&mut self.alive) {
                // This process is a subreaper: what is left is its child now, and the number that of no other process until
                // it is waited for. Any other number is none of its children.
                let Some(lives) = child_lives(pid) else { continue };
                // One that is dead, and was only not waited for, does not count as a worker that is left.
                left += usize::from(lives);
                kill_process(pid, Signal::KILL).context("killing a worker that was left")?;
                waitid(WaitId::Pid(pid), WaitIdOptions::EXITED)
                    .context("waiting for a worker that was left")?;
            }
            match self.read(deadline).with_context(|| format!("{}: a process holds its output", self.name))? {
                Some(records) => self.alive.extend(records.iter().map(|record| record.pid)),
                None => return Ok(left),
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // On the way out of an error, which says more than this one could.
        let _ = self.end_in_place();
    }
}

fn parse(bytes: &[u8; RECORD_BYTES]) -> Option<Record> {
    let (ns, pid) = bytes.split_first_chunk::<8>()?;
    let pid = i32::try_from(u64::from_ne_bytes(pid.try_into().ok()?)).ok()?;
    Some(Record { at_ns: u64::from_ne_bytes(*ns), pid: Pid::from_raw(pid)? })
}

/// Whether the descriptor became readable before the deadline.
fn wait_readable(fd: &impl AsFd, deadline: Instant) -> Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).context("a deadline out of range")?;
        match poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting"),
        }
    }
}

/// Whether a process that is a child of this one lives; `None` when it is no child of this one.
fn child_lives(pid: Pid) -> Option<bool> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in brackets and may hold anything; after it come the state and the parent.
    let mut fields = stat.rsplit(')').next()?.split_whitespace();
    let state = fields.next()?;
    let parent: u32 = fields.next()?.parse().ok()?;
    (parent == std::process::id()).then(|| state != "Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_time_and_pid() {
        let bytes = [7u64.to_ne_bytes(), 42u64.to_ne_bytes()].concat();
        let record = bytes.as_chunks().0.first().and_then(parse);
        assert_eq!(record.map(|r| (r.at_ns, r.pid.as_raw_pid())), Some((7, 42)));
    }

    #[test]
    fn text_is_no_record() {
        assert!(parse(b"hello from a log").is_none());
    }

    #[test]
    fn this_process_is_not_its_own_child() {
        assert_eq!(child_lives(rustix::process::getpid()), None);
    }
}
