//! The upgrade in place: the new program is asked whether it can take over, then the supervisor comes to rest, and then
//! it executes the new program.
//!
//! All that can fail happens before the last step, and leaves everything as it was. At rest, no start and no helper thread
//! is at work that changes something; no action of the policy is carried out, and all that lasts longer is in the state.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Resource, getrlimit};
use tracing::{info, warn};

use super::Driver;
use super::context::{Context, Deferred, Token};
use crate::config::{Config, OnUpgrade};
use crate::control::What;
use crate::policy::{Event, Time};
use crate::report::{self, Span};
use crate::sys::handover::{self, Executable, Outgoing};
use crate::sys::spawn::{Launch, SpawnArgs, SpawnTemplate, Spawner};
use crate::sys::{fds, pidfd, self_usage};
use crate::upgrade::{
    self, Answer, Argument, CHECK, NewProgram, OwnProgram, PROGRAM_FD, SCHEMA, State, VERSION,
};

/// The time for the answer of the new program, which takes some milliseconds: it reads the state and the command line.
const ANSWERED_WITHIN: Duration = Duration::from_secs(5);

/// The time in which the supervisor comes to rest. A start takes a fraction of a millisecond, and a walk over the
/// processes of the workers some milliseconds.
const AT_REST_WITHIN: Duration = Duration::from_secs(2);

/// How often it is checked whether the supervisor has come to rest, or the start of the new program is over.
const CHECK_EVERY: Duration = Duration::from_millis(2);

/// The descriptors that the new program needs besides those that it is handed.
const MORE_DESCRIPTORS: usize = 64;

/// The upgrades of this supervisor.
pub(super) struct Upgrades {
    program: OwnProgram,
    wish: OnUpgrade,
    stage: Stage,
    /// Whether all workers are stopped so that the service manager starts the new program.
    exits: bool,
    /// The length of the last state in bytes. The next one, which is written while nothing is handled, gets as much room at
    /// once.
    length: usize,
}

enum Stage {
    Idle,
    /// The new program is asked.
    Asking(Box<Asking>),
    /// It has accepted, and the supervisor comes to rest.
    Resting {
        program: NewProgram,
        until: Time,
    },
}

/// A question to the new program.
struct Asking {
    program: NewProgram,
    child: Child,
    /// What the program has answered so far.
    reader: OwnedFd,
    text: Vec<u8>,
    until: Time,
}

enum Child {
    /// It does not run yet.
    Starting(Spawner, Launch),
    Running(Pid, OwnedFd),
}

impl Upgrades {
    pub(super) fn new(config: &Config, program: OwnProgram) -> Upgrades {
        Upgrades { program, wish: config.on_upgrade, stage: Stage::Idle, exits: false, length: 0 }
    }

    /// Whether the supervisor carries out nothing more, because the new program is about to take over.
    pub(super) fn is_resting(&self) -> bool {
        matches!(self.stage, Stage::Resting { .. })
    }

    /// Whether all workers were stopped so that the service manager starts the new program.
    pub(super) fn exits(&self) -> bool {
        self.exits
    }
}

impl Driver {
    /// Begins what was requested in this round: an upgrade, or a reload that finds the program changed.
    pub(super) fn begin_upgrade(&mut self) {
        let (upgrade, reload) = self.cx.take_upgrade_requests();
        if let Some(by) = upgrade {
            return self.ask(&by);
        }
        let Some(by) = reload else { return };
        match self.upgrades.wish {
            OnUpgrade::Ignore => {}
            OnUpgrade::Exec | OnUpgrade::Exit if !self.upgrades.program.has_changed() => {}
            OnUpgrade::Exec => self.ask(&by),
            OnUpgrade::Exit => {
                let program = self.upgrades.program.path().display();
                info!(
                    "{program} has changed: stopping, so that the service manager starts it (--on-upgrade exit)"
                );
                self.upgrades.exits = true;
                self.cx.request(Event::Stop, by);
            }
        }
    }

    /// Asks the program that is at our path now whether it can take over.
    fn ask(&mut self, by: &str) {
        match self.upgrades.stage {
            Stage::Idle => {}
            Stage::Asking(_) | Stage::Resting { .. } => {
                return info!("ignored the request for an upgrade ({by}): one is in progress");
            }
        }
        let path = self.upgrades.program.path().display().to_string();
        info!("upgrade to {path}: {by}");
        if let Err(why) = self.begin_asking() {
            self.upgrade_failed(&why);
        }
    }

    fn begin_asking(&mut self) -> Result<(), String> {
        let of = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
        let program = self.upgrades.program.open().map_err(of("open"))?;
        let (state, _named) = self.state().map_err(of("the state"))?;
        let state = handover::seal(&state).map_err(of("the state"))?;
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|error| format!("pipe: {error}"))?;
        crate::sys::sockets::set_nonblocking(reader.as_fd(), true).map_err(of("fcntl"))?;
        let template = question(&program, state, writer).map_err(of("the question"))?;
        let mut spawner = Spawner::new().map_err(of("mmap"))?;
        let cx = &mut self.cx;
        // It counts as one of our own processes, and not as one that a worker has left behind.
        let _time = cx.trees.begin_start();
        let started = spawner.start(&Arc::new(template), SpawnArgs::default());
        cx.trees.start_begun(started.as_ref().ok().map(Launch::pid));
        let launch = started.map_err(|failure| report::start_failure(&failure, None))?;
        cx.watch(reader.as_fd(), Token::Upgrade);
        let until = cx.now().after(ANSWERED_WITHIN);
        let child = Child::Starting(spawner, launch);
        self.upgrades.stage =
            Stage::Asking(Box::new(Asking { program, child, reader, text: Vec::new(), until }));
        self.check_upgrade();
        Ok(())
    }

    /// Checks the start of the new program, its time, or whether the supervisor has come to rest.
    pub(super) fn check_upgrade(&mut self) {
        match std::mem::replace(&mut self.upgrades.stage, Stage::Idle) {
            Stage::Idle => return,
            Stage::Asking(asking) => self.check_start(asking),
            Stage::Resting { program, until } => self.upgrades.stage = Stage::Resting { program, until },
        }
        if !matches!(self.upgrades.stage, Stage::Idle) {
            self.cx.schedule(CHECK_EVERY, Deferred::Upgrade);
        }
    }

    fn check_start(&mut self, mut asking: Box<Asking>) {
        let cx = &mut self.cx;
        if let Child::Starting(mut spawner, launch) = asking.child {
            let pid = launch.pid();
            asking.child = match launch.wait(Duration::ZERO) {
                Err(launch) => Child::Starting(spawner, launch),
                Ok(over) => match spawner.result(over) {
                    Ok(spawned) => Child::Running(spawned.pid, spawned.pidfd),
                    Err(failure) => {
                        cx.trees.start_failed(pid);
                        cx.poller.forget(Token::Upgrade.encode());
                        return self.upgrade_failed(&report::start_failure(&failure, None));
                    }
                },
            };
        }
        if cx.now() >= asking.until {
            asking.end(cx);
            return self.upgrade_failed(&format!("it has not answered within {}", Span(ANSWERED_WITHIN)));
        }
        self.upgrades.stage = Stage::Asking(asking);
    }

    /// Reads the answer of the new program.
    pub(super) fn read_answer(&mut self) {
        let Stage::Asking(asking) = &mut self.upgrades.stage else { return };
        let mut bytes = [0u8; 1024];
        match rustix::io::read(&asking.reader, &mut bytes) {
            // It is over when it is too long, too.
            Ok(count @ 1..) if asking.text.len() < bytes.len() => asking.text.extend(&bytes[..count]),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Ok(_) | Err(_) => return self.answered(),
        }
        self.cx.watch(asking.reader.as_fd(), Token::Upgrade);
    }

    fn answered(&mut self) {
        let Stage::Asking(asking) = std::mem::replace(&mut self.upgrades.stage, Stage::Idle) else { return };
        let answer = Answer::parse(&asking.text);
        let cx = &mut self.cx;
        let program = asking.end(cx);
        match answer {
            Answer::Refuses(why) => self.upgrade_failed(&why),
            Answer::Accepts(_version) => {
                cx.trees.hold(true);
                let until = cx.now().after(AT_REST_WITHIN);
                self.upgrades.stage = Stage::Resting { program, until };
                self.check_upgrade();
            }
        }
    }

    /// Comes to rest, and has the new program take over as soon as that is done.
    pub(super) fn rest(&mut self) {
        let cx = &mut self.cx;
        while self.starts.finish_oldest(cx) {}
        let is_at_rest = self.starts.is_idle() && cx.trees.is_idle();
        let Stage::Resting { until, .. } = &self.upgrades.stage else { return };
        if !is_at_rest && cx.now() < *until {
            return;
        }
        let Stage::Resting { program, .. } = std::mem::replace(&mut self.upgrades.stage, Stage::Idle) else {
            return;
        };
        let why = if is_at_rest {
            self.hand_over(&program)
        } else {
            format!("a start or a search is in progress for longer than {}", Span(AT_REST_WITHIN))
        };
        self.cx.trees.hold(false);
        self.upgrade_failed(&why);
    }

    /// Executes the new program. It returns only if that failed: why.
    fn hand_over(&mut self, program: &NewProgram) -> String {
        // What was decided about the sockets is carried out, and what happened is logged.
        self.calls.after_round(&mut self.cx);
        self.manager.upgrading(&mut self.cx);
        let (state, out) = match self.state() {
            Ok(state) => state,
            Err(error) => return format!("the state: {error}"),
        };
        match self.try_hand_over(program, &state, &out) {
            Ok(error) => {
                // The descriptors are open, so this cannot fail.
                let _done = out.set_passed_on(false);
                format!("execve: {error}")
            }
            Err(error) => {
                let _done = out.set_passed_on(false);
                error.to_string()
            }
        }
    }

    fn try_hand_over(&self, program: &NewProgram, state: &[u8], out: &Outgoing) -> io::Result<io::Error> {
        let open = self_usage::open_descriptors().and_then(|open| usize::try_from(open).ok());
        let most = getrlimit(Resource::Nofile).current.and_then(|most| usize::try_from(most).ok());
        if open.zip(most).is_some_and(|(open, most)| open + MORE_DESCRIPTORS > most) {
            return Err(io::Error::other("there is no room for more open files (RLIMIT_NOFILE)"));
        }
        let (state, back) = (handover::seal(state)?, OwnProgram::open_running()?);
        let arguments = std::env::args_os().map(|word| CString::new(word.as_bytes()));
        let arguments = arguments.collect::<Result<Vec<_>, _>>()?;
        let environment = upgrade::environment(state.as_fd(), Some(back.as_fd()), "")?;
        let path = program.path();
        let executable = path.as_deref().map_or(Executable::Fd(program.file()), Executable::Path);
        if path.is_none() {
            // A script is read by its interpreter from this descriptor.
            handover::pass_on(program.file(), true)?;
        }
        handover::pass_on(state.as_fd(), true)?;
        handover::pass_on(back.as_fd(), true)?;
        out.set_passed_on(true)?;
        Ok(handover::execute(executable, &arguments, &environment))
    }

    /// The state now, and the descriptors that it names.
    fn state(&mut self) -> io::Result<(Vec<u8>, Outgoing)> {
        let mut out = Outgoing::default();
        let paused_at = handover::monotonic();
        let driver = self.save(&mut out);
        let state = State {
            schema: SCHEMA,
            version: VERSION.to_owned(),
            paused_at,
            arguments: std::env::args_os().map(Argument).collect(),
            program: self.upgrades.program.path().to_owned(),
            descriptors: out.described()?,
            driver,
        };
        let mut bytes = Vec::with_capacity(self.upgrades.length + self.upgrades.length / 8);
        serde_json::to_writer(&mut bytes, &state)?;
        self.upgrades.length = bytes.len();
        Ok((bytes, out))
    }

    fn upgrade_failed(&mut self, why: &str) {
        let path = self.upgrades.program.path().display();
        warn!("upgrade to {path} failed: {why}; nothing has changed");
        self.cx.journal.record(What::UpgradeFailed { message: why.into() });
    }
}

impl Asking {
    /// Ends the new program, which has answered or has no more time. Returns its file.
    fn end(self, cx: &mut Context) -> NewProgram {
        cx.poller.forget(Token::Upgrade.encode());
        let (pid, killed) = match &self.child {
            Child::Starting(_, launch) => (launch.pid(), launch.kill()),
            // A script may have started others.
            Child::Running(pid, pidfd) => {
                let _none_or_before_linux_6_9 = pidfd::kill_led_group(pidfd.as_fd());
                (*pid, pidfd::signal(pidfd.as_fd(), libc::SIGKILL))
            }
        };
        // It has ended by itself if it was quick. Any child that has ended is reaped.
        let _gone = killed;
        cx.trees.start_failed(pid);
        self.program
    }
}

/// How the new program is started for the question: with the state, where its answer goes, and its own file.
fn question(program: &NewProgram, state: OwnedFd, writer: OwnedFd) -> io::Result<SpawnTemplate> {
    let lowest = PROGRAM_FD + 1;
    let null = rustix::fs::open(
        "/dev/null",
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    let inherited = [state, writer, program.file().try_clone_to_owned()?];
    let inherited = inherited.into_iter().map(|fd| fds::move_from(fd, lowest));
    let name = std::env::args_os().next().unwrap_or_default();
    let variables =
        std::env::vars_os().map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat());
    let file = format!("/proc/self/fd/{PROGRAM_FD}");
    Ok(SpawnTemplate {
        candidates: vec![CString::new(file)?],
        argv: vec![CString::new(name.as_bytes())?, CString::new(CHECK)?],
        environment: variables.map(CString::new).collect::<Result<_, _>>()?,
        directory: None,
        umask: None,
        identity: None,
        capabilities: None,
        nofile: None,
        file_size: None,
        stdin: Some(fds::move_from(null, lowest)?),
        inherited: inherited.collect::<io::Result<_>>()?,
        filter_needs_no_new_privs: false,
        no_new_privs: false,
        dies_with_us: true,
    })
}
