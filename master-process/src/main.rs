//! The `master-process` binary: parses the command line, prepares the supervisor, runs it and returns the exit code.

use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;

use master_process::cli::{self, Command};
use master_process::client;
use master_process::config::Config;
use master_process::driver::{self, Control, Driver, Ending, Endpoint, FirstFailure};
use master_process::exit_code as code;
use master_process::report;
use master_process::share::{Access, Broker, InheritedListeners, Takeover};
use master_process::sys::handover::{Incoming, WayBack};
use master_process::sys::signalfd::{self, SignalFd};
use master_process::sys::spawn::SpawnStep;
use master_process::sys::{allocator, fds, sd_notify};
use master_process::upgrade::{self, Handover};

fn main() -> ExitCode {
    signalfd::block();
    allocator::set_up();
    match begin() {
        Ok((config, driver)) => end(&config, driver),
        Err(code) => code,
    }
}

/// What runs, in places of its own: the frames that held it while it was made are gone by then, and so is their memory.
type Prepared = (Box<Config>, Box<Driver>);

/// Does what the command line and the environment ask for, up to the loop of the supervisor. `Err`: that was all.
#[inline(never)]
fn begin() -> Result<Prepared, ExitCode> {
    if upgrade::is_check(std::env::args_os()) {
        signalfd::unblock();
        return Err(upgrade::answer_check());
    }
    if let Some(invocation) = client::invocation(std::env::args_os()) {
        // A command of the user ends by Ctrl-C as any other program.
        signalfd::unblock();
        return Err(client::run(invocation));
    }
    match Handover::from_environment() {
        Ok(None) => {}
        Ok(Some(handover)) => return Ok(take_over(handover)),
        Err(why) => return Err(fail(code::FATAL, None, &why)),
    }
    // This comes before the first descriptor is opened: with a wrong count in `LISTEN_FDS`, it would treat that
    // descriptor as a socket.
    let inherited = InheritedListeners::from_service_manager(|name| std::env::var_os(name));
    match cli::parse(std::env::args_os()) {
        Ok(Command::Run(config)) => start(config, inherited),
        Ok(Command::Help(text) | Command::Version(text)) => {
            // The write fails if standard output is closed. The reader then does not want the text.
            let _closed = std::io::stdout().write_all(text.as_bytes());
            Err(ExitCode::SUCCESS)
        }
        Err(error) => Err(fail(code::USAGE, None, &error)),
    }
}

fn start(config: Box<Config>, inherited: std::io::Result<InheritedListeners>) -> Result<Prepared, ExitCode> {
    report::start_logging(config.log_format, &config.verbosity);
    match prepare(&config, inherited) {
        Ok(driver) => Ok((config, Box::new(driver))),
        Err(error) => {
            let errno =
                error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>()?.raw_os_error());
            Err(fail(code::FATAL, errno, &format_args!("{error:#}")))
        }
    }
}

/// Goes on from the state of the supervisor that has executed this program, or executes that one again.
fn take_over(handover: Handover) -> Prepared {
    let state = match handover.read() {
        Ok(state) => state,
        Err(why) => {
            let arguments = std::env::args_os().map(upgrade::Argument).collect();
            Back { handover, arguments }.go_back(&why)
        }
    };
    let arguments = state.arguments.clone();
    resume(Back { handover, arguments }, state)
}

/// The way back to the supervisor that has executed this program.
#[derive(Debug)]
struct Back {
    handover: Handover,
    arguments: Vec<upgrade::Argument>,
}

impl WayBack for Back {
    fn go_back(&self, why: &dyn Display) -> ! {
        let why = self.handover.go_back(&self.arguments, &why.to_string());
        let _code = fail(code::FATAL, None, &why);
        std::process::exit(code::FATAL.into())
    }
}

fn resume(back: Back, state: upgrade::State) -> Prepared {
    let config = match cli::parse(std::env::args_os()) {
        Ok(Command::Run(config)) => config,
        Ok(Command::Help(_) | Command::Version(_)) => back.go_back(&"the command line runs nothing"),
        Err(error) => back.go_back(&error),
    };
    let (reason, spared) = (back.handover.reason.clone(), back.handover.own_descriptors());
    let descriptors = Incoming::new(&state.descriptors, &spared, Box::new(back));
    report::start_logging(config.log_format, &config.verbosity);
    let signals = descriptors.need(SignalFd::new(driver::signals::numbers()), "signalfd");
    let driver = Driver::resume(&config, signals, state, reason.as_deref(), descriptors);
    (config, driver)
}

fn end(config: &Config, driver: Box<Driver>) -> ExitCode {
    match driver.run() {
        Ending::Changed => ExitCode::from(code::FATAL),
        Ending::Stopped => ExitCode::from(code::STOPPED),
        Ending::GaveUp => {
            sd_notify::failed(code::GAVE_UP, None, &"gave up: too many workers exited early");
            ExitCode::from(code::GAVE_UP)
        }
        Ending::CannotStart(failure) => cannot_start(config, &failure),
    }
}

/// Does everything that can fail before the first worker starts. After that, no error ends the supervisor.
fn prepare(config: &Config, inherited: std::io::Result<InheritedListeners>) -> anyhow::Result<Driver> {
    use anyhow::Context;
    let mut inherited = inherited.context("LISTEN_FDS")?;
    let signals = SignalFd::new(driver::signals::numbers()).context("signalfd")?;
    fds::close_on_exec().context("close_range")?;
    // This comes before anything that another supervisor of this name would notice.
    let control = Control::new(config)?;
    let endpoint = Endpoint::new(config)?;
    let access = Access { mode: config.socket_mode, owner: config.socket_owner };
    let takeover = Takeover::of(config);
    // This comes before any address is opened: processes that an earlier supervisor left behind can hold the address.
    let cgroups = driver::cgroups(config)?;
    inherited.open(&config.listen, access, takeover)?;
    let rules = config.share_rules.clone();
    let mut broker = Broker::new(config.share, rules, access, &mut inherited).context("eventfd")?;
    broker.set_takeover(takeover);
    broker.restore(&mut inherited, config.workers);
    if sd_notify::store_size(|name| std::env::var_os(name)) > 0 {
        broker.set_kept_by_manager();
    }
    Driver::new(config, signals, cgroups, broker, inherited, (control, endpoint))
}

fn cannot_start(config: &Config, FirstFailure { error: failure, is_preload }: &FirstFailure) -> ExitCode {
    let words = config.preload.as_ref().filter(|_| *is_preload).unwrap_or(&config.command);
    let command = words.first().map(|command| command.to_string_lossy()).unwrap_or_default();
    let (code, subject) = match (failure.step, failure.errno) {
        // The command was found, and its interpreter was not. A shell distinguishes the two cases in the same way.
        (SpawnStep::Exec, _) if failure.interpreter.is_some() => (code::NOT_EXECUTABLE, command),
        (SpawnStep::Exec, libc::ENOENT | libc::ENOTDIR) => (code::NOT_FOUND, command),
        (SpawnStep::Exec, _other) => (code::NOT_EXECUTABLE, command),
        (_before, _other) => (code::FATAL, command),
    };
    let errno = Some(failure.errno);
    fail(code, errno, &format_args!("{subject} cannot be started: {}", report::start_failure(failure, None)))
}

fn fail(code: u8, errno: Option<i32>, why: &dyn Display) -> ExitCode {
    sd_notify::failed(code, errno, why);
    // If standard error is closed, the message has no other destination.
    let _closed = writeln!(std::io::stderr(), "master-process: {why}");
    ExitCode::from(code)
}
