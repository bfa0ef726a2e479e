//! Starts one worker and answers its `bind` and `listen` as a supervisor does, and ends it: `doctor` reports the result.

use std::ffi::OsString;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Pid;

use super::launch::{Launcher, why_no_filter};
use super::{ChosenPoller, LOOP, calls, choose_poller};
use crate::config::{CgroupLimits, Config, Orphans, ReadyMode, Share, ShareRules, Stdin};
use crate::policy::{Time, WorkerId};
use crate::report;
use crate::share::{Access, Broker, Decision, InheritedListeners};
use crate::sys::cgroup::{self, Cgroup, Controller, Supervisors, Unusable};
use crate::sys::notify;
use crate::sys::peer::{self, Peer};
use crate::sys::pidfd::{self, Exit};
use crate::sys::poller::Poller;
use crate::sys::proc_stat::StatFile;
use crate::sys::seccomp::{self, Call, Notification};
use crate::sys::smaps;
use crate::sys::spawn::{SpawnStep, Spawned};

/// The one worker of a trial.
const WORKER: WorkerId = WorkerId { slot: 0, serial: 1 };

/// The time for the whole trial, which takes some ten milliseconds on an idle host.
const LIMIT: Duration = Duration::from_secs(10);

/// How long the worker lives if nobody ends it.
const WORKER_LIVES: Duration = Duration::from_secs(30);

/// The number of ports that are tried: another program can take a free port before the worker does.
const ATTEMPTS: u32 = 3;

/// The poller, which was tried by a wait.
#[derive(Debug)]
pub struct PollerTrial {
    /// Whether it is io_uring.
    pub is_io_uring: bool,
    /// Why it is not, unless the user chose epoll.
    pub refused: Option<io::Error>,
}

/// The result of a trial.
#[derive(Debug)]
pub struct Trial {
    /// The notify socket.
    pub notify: NotifyTrial,
    /// Whether the cgroup of the worker can be made; `None`: no cgroup is delegated.
    pub cgroup: Option<Result<CgroupTrial, String>>,
    /// Limits of workers.
    pub limits: LimitsTrial,
    /// Whether clone3(2) started the worker.
    pub by_clone3: bool,
    /// Whether the worker had `NO_NEW_PRIVS` for its filter.
    pub needs_no_new_privs: bool,
    /// Why the kernel refused the filter of the worker.
    pub filter_refused: Option<String>,
    /// Duplicating a socket of this process, and then of the worker.
    pub copies: Result<(), String>,
    /// What became of the worker's `bind` and `listen`.
    pub binding: Binding,
    /// The proportional set size of the worker, which a supervisor reads before it replaces one.
    pub pss: Result<u64, String>,
    /// The line of `/proc` about the worker.
    pub stat: Result<(), String>,
    /// Whether a pidfd names a process group.
    pub pidfd_names_groups: bool,
}

/// The notify socket of a trial.
#[derive(Debug)]
pub struct NotifyTrial {
    /// Its address.
    pub address: String,
    /// Whether it is in a directory that other users cannot enter.
    pub is_private: bool,
    /// The directories that cannot be used, and why.
    pub failed: Vec<String>,
}

/// The cgroup of a trial's worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CgroupTrial {
    /// Whether the worker was in it.
    pub entered: bool,
    /// Whether the kernel kills all its processes at once.
    pub kills: bool,
}

/// The limits that a trial's worker could have.
#[derive(Debug)]
pub struct LimitsTrial {
    /// The controllers that are there.
    pub usable: Vec<Controller>,
    /// Why those that were asked for cannot be set.
    pub refused: Option<Unusable>,
    /// Whether the user has named the cgroup.
    pub is_named: bool,
    /// The cgroups above that do not give the missing controller to those below them, the uppermost first.
    pub closed: Vec<PathBuf>,
}

/// What became of the worker's `bind` and `listen`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Binding {
    /// The supervisor answered both, and holds the socket.
    Shared,
    /// The supervisor saw `listen`, and `--share off` asks for no more.
    Seen,
    /// The worker has no filter, so the supervisor sees neither.
    Unseen,
    /// It failed, and why.
    Failed(String),
}

/// Tries the poller that a supervisor would take.
///
/// # Errors
/// A supervisor would not start.
pub fn try_poller() -> anyhow::Result<PollerTrial> {
    let ChosenPoller { mut poller, refused } = choose_poller(std::env::var(LOOP).ok().as_deref())?;
    let (reader, writer) = rustix::pipe::pipe().context("pipe")?;
    poller.watch(reader.as_fd(), 0).context("watching")?;
    rustix::io::write(&writer, b"x").context("write")?;
    let mut ready = Vec::new();
    poller.wait(Some(Duration::from_secs(1)), &mut ready).context("waiting")?;
    anyhow::ensure!(ready == [0], "a descriptor that is readable was not reported");
    Ok(PollerTrial { is_io_uring: matches!(poller, Poller::Uring(_)), refused })
}

/// The worker of a trial: it listens on this port until it is killed. An exit code is the errno of what failed.
#[must_use]
pub fn worker(port: u16) -> u8 {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
        Ok(_listens) => std::thread::sleep(WORKER_LIVES),
        Err(error) => {
            let errno = error.raw_os_error().and_then(|errno| u8::try_from(errno).ok());
            return errno.unwrap_or(u8::MAX);
        }
    }
    0
}

/// Makes a trial with this configuration. `command` is the command line of the trial's worker; the port follows.
///
/// # Errors
/// A supervisor could not start a worker.
pub fn try_worker(config: &Config, command: &[OsString]) -> anyhow::Result<Trial> {
    for _ in 1..ATTEMPTS {
        let trial = try_port(config, command)?;
        if !matches!(&trial.binding, Binding::Failed(why) if *why == errno_text(libc::EADDRINUSE)) {
            return Ok(trial);
        }
    }
    try_port(config, command)
}

fn try_port(config: &Config, command: &[OsString]) -> anyhow::Result<Trial> {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    // Without loopback the worker reports the error.
    let port = free.map_or(1, |address| address.port());
    let command = command.iter().cloned().chain([port.to_string().into()]).collect();
    let config = Config {
        command,
        ready: ReadyMode::Auto,
        listen: Vec::new(),
        share_rules: ShareRules::default(),
        orphans: Orphans::Kill,
        stdin: Stdin::Null,
        chdir: None,
        ..config.clone()
    };
    let _nothing_stays = notify::BaseGuard::new();
    let opened = calls::open_notify(config.identity.as_ref()).context("the notify socket")?;
    let notify = NotifyTrial {
        address: String::from_utf8_lossy(&opened.socket.address()).into_owned(),
        is_private: opened.is_private,
        failed: opened.failed.iter().map(|(base, error)| format!("{}: {error}", base.display())).collect(),
    };
    let access = Access { mode: None, owner: None };
    let (rules, mut inherited) = (config.share_rules.clone(), InheritedListeners::default());
    let mut broker = Broker::new(config.share, rules, access, &mut inherited).context("eventfd")?;
    broker.set_notify_address(&opened.socket.address());
    let mut launcher = Launcher::new(&config, inherited, &opened.socket)?;
    // What earlier supervisors left in the cgroup stays: a trial ends nothing. Limits take more than a cgroup does.
    let refused = match config.cgroup_limits.controllers().is_empty() {
        true => None,
        false => Supervisors::make(config.cgroup.as_deref(), config.cgroup_limits).err(),
    };
    let cgroups = Supervisors::make(config.cgroup.as_deref(), CgroupLimits::default());
    let made = match &cgroups {
        Ok((cgroups, _leftovers)) => {
            Some(cgroups.create(WORKER.slot, WORKER.serial, None).map_err(|error| error.to_string()))
        }
        Err(Unusable::Undelegated(_)) => None,
        Err(error) => Some(Err(error.to_string())),
    };
    let usable = cgroups.as_ref().map_or_else(|_| Vec::new(), |(cgroups, _)| cgroups.controllers());
    let closed = match &refused {
        Some(Unusable::NoController(controller, dir)) => cgroup::closed_above(dir, *controller),
        _ => Vec::new(),
    };
    let limits = LimitsTrial { usable, refused, is_named: config.cgroup.is_some(), closed };
    let cgroup = made.as_ref().and_then(|made| made.as_ref().ok());
    let (spawned, filter_refused) = start(&mut launcher, &mut broker, cgroup)?;
    let Spawned { pid, pidfd, listener, in_cgroup, by_clone3 } = spawned;
    let child = Child { pid, pidfd };
    broker.launched(WORKER, pid);
    let entered = cgroup.is_some_and(|cgroup| in_cgroup || cgroup.enter(pid).is_ok());
    let mut answers = Answers { broker, since: Instant::now(), copied: None };
    let binding = match &listener {
        Some(listener) => answers.until_it_listens(&child, listener, config.share),
        None => Binding::Unseen,
    };
    let own_copy = peer::try_to_copy().map_err(|error| error.to_string());
    let copies = own_copy.and_then(|()| answers.copied.unwrap_or(Ok(())));
    let stat = StatFile::open(pid).and_then(|file| file.read()).map(drop).map_err(|error| error.to_string());
    let pss = smaps::pss(pid).map_err(|error| error.to_string());
    let pidfd_names_groups = child.end();
    let cgroup = made.map(|made| {
        let kills = |cgroup: Cgroup| CgroupTrial { entered, kills: cgroup.kill().is_ok() };
        made.map(kills)
    });
    Ok(Trial {
        notify,
        cgroup,
        limits,
        by_clone3,
        needs_no_new_privs: !seccomp::may_filter_with_privileges(),
        filter_refused,
        copies,
        binding,
        pss,
        stat,
        pidfd_names_groups,
    })
}

/// Starts the worker; without a filter if the kernel refuses that, as a supervisor does.
fn start(
    launcher: &mut Launcher,
    broker: &mut Broker,
    cgroup: Option<&Cgroup>,
) -> anyhow::Result<(Spawned, Option<String>)> {
    let mut refused = None;
    loop {
        launcher.set_filter(broker.calls());
        broker.enter(WORKER, 0);
        let into = cgroup.and_then(|cgroup| cgroup.fd().try_clone_to_owned().ok());
        let started = launcher.start(WORKER, 0, into, false).and_then(|(launch, _no_pipe)| {
            launch.wait(LIMIT).map_err(|launch| {
                let _gone = launch.kill();
                crate::sys::spawn::SpawnError::no_answer(launch.step(), LIMIT)
            })
        });
        match started.and_then(|over| launcher.result(over)) {
            Ok(spawned) => return Ok((spawned, refused)),
            Err(failure) if failure.step == SpawnStep::Seccomp && refused.is_none() => {
                broker.leave(Time::new(Duration::ZERO), WORKER.serial, true);
                refused = Some(why_no_filter(&failure));
                launcher.disable_filter(&failure);
            }
            Err(failure) => anyhow::bail!("{}", report::start_failure(&failure, None)),
        }
    }
}

/// The worker, which is killed at the latest when this is dropped.
struct Child {
    pid: Pid,
    pidfd: OwnedFd,
}

impl Child {
    /// Kills the worker. Returns whether its pidfd named its process group.
    fn end(self) -> bool {
        pidfd::kill_led_group(self.pidfd.as_fd()).is_ok()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _gone = pidfd::kill_group(self.pidfd.as_fd(), self.pid);
        let _gone = pidfd::signal(self.pidfd.as_fd(), libc::SIGKILL);
        let _death = pidfd::wait(self.pidfd.as_fd());
    }
}

/// The side of the supervisor.
struct Answers {
    broker: Broker,
    since: Instant,
    /// Duplicating the worker's socket at its first `bind`.
    copied: Option<Result<(), String>>,
}

impl Answers {
    fn now(&self) -> Time {
        Time::new(self.since.elapsed())
    }

    fn until_it_listens(&mut self, child: &Child, listener: &OwnedFd, share: Share) -> Binding {
        seccomp::answer_on_callers_cpu(listener.as_fd());
        loop {
            let left = LIMIT.saturating_sub(self.since.elapsed());
            if left.is_zero() {
                return Binding::Failed(format!("the worker did not listen within {} s", LIMIT.as_secs()));
            }
            let Ok([called, ended, scanned]) =
                readable([listener.as_fd(), child.pidfd.as_fd(), self.broker.scans()], left)
            else {
                return Binding::Failed("poll failed".to_owned());
            };
            let mut listens = false;
            if called && let Ok(call) = seccomp::receive(listener.as_fd()) {
                listens |= self.answer(listener.as_fd(), &call);
            } else if ended {
                return Binding::Failed(why_ended(child));
            }
            if scanned {
                for (_, call) in self.broker.take_scans(self.now()) {
                    listens |= self.answer(listener.as_fd(), &call);
                }
            }
            self.broker.reconcile(self.now());
            if listens {
                return self.outcome(share);
            }
        }
    }

    /// Answers a call. Returns whether the worker listens now.
    fn answer(&mut self, listener: BorrowedFd<'_>, call: &Notification) -> bool {
        if let Call::Bind { fd, .. } = call.call {
            let copy = || {
                Peer::open(call.thread)
                    .and_then(|peer| peer.copy(fd))
                    .map(drop)
                    .map_err(|error| error.to_string())
            };
            self.copied.get_or_insert_with(copy);
        }
        loop {
            let reply = match self.broker.reply(self.now(), listener, call, WORKER) {
                Decision::Reply(reply) => reply,
                Decision::Wait(wait) if self.since.elapsed() < LIMIT => {
                    std::thread::sleep(wait);
                    continue;
                }
                Decision::Wait(_) | Decision::AwaitScan => return false,
            };
            let answered = seccomp::answer(listener, call, reply.answer).is_ok();
            return answered && reply.listens.is_some();
        }
    }

    fn outcome(&mut self, share: Share) -> Binding {
        if share == Share::Off {
            return Binding::Seen;
        }
        if !self.broker.listeners_of_worker(WORKER.serial).is_empty() {
            return Binding::Shared;
        }
        let reports = self.broker.take_reports();
        let why = reports.first().map(ToString::to_string);
        Binding::Failed(why.unwrap_or_else(|| "the supervisor does not hold the socket".to_owned()))
    }
}

/// Which of the descriptors are readable or hung up. Waits until one is.
fn readable<const N: usize>(fds: [BorrowedFd<'_>; N], limit: Duration) -> io::Result<[bool; N]> {
    let mut polled = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    let limit = Timespec { tv_sec: limit.as_secs().cast_signed(), tv_nsec: limit.subsec_nanos().into() };
    match poll(&mut polled, Some(&limit)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(polled.map(|fd| fd.revents().contains(PollFlags::IN))),
        Err(error) => Err(error.into()),
    }
}

fn why_ended(child: &Child) -> String {
    match pidfd::try_wait(child.pidfd.as_fd()).ok().flatten() {
        Some(Exit::Code(errno)) => errno_text(errno),
        Some(Exit::Signal { number, .. }) => format!("the worker was killed by signal {number}"),
        None => "the worker ended".to_owned(),
    }
}

/// What the worker reports by its exit code.
fn errno_text(errno: i32) -> String {
    format!("bind: {}", io::Error::from_raw_os_error(errno))
}
