//! The `master-process` binary: parses the command line, prepares the supervisor, runs it and returns the exit code.

use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;

use master_process::cli::{self, Command};
use master_process::client;
use master_process::config::Config;
use master_process::driver::{self, Control, Driver, Ending, Endpoint};
use master_process::exit_code as code;
use master_process::report;
use master_process::share::{Access, Broker, InheritedListeners, Takeover};
use master_process::sys::signalfd::{self, SignalFd};
use master_process::sys::spawn::{SpawnError, SpawnStep};
use master_process::sys::{allocator, fds};

fn main() -> ExitCode {
    signalfd::block();
    allocator::use_one_heap();
    if let Some(invocation) = client::invocation(std::env::args_os()) {
        // A command of the user ends by Ctrl-C as any other program.
        signalfd::unblock();
        return client::run(invocation);
    }
    // This comes before the first descriptor is opened: with a wrong count in `LISTEN_FDS`, it would treat that
    // descriptor as a socket.
    let inherited = InheritedListeners::from_service_manager(|name| std::env::var_os(name));
    match cli::parse(std::env::args_os()) {
        Ok(Command::Run(config)) => run(&config, inherited),
        Ok(Command::Help(text) | Command::Version(text)) => {
            // The write fails if standard output is closed. The reader then does not want the text.
            let _closed = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(error) => fail(code::USAGE, &error),
    }
}

fn run(config: &Config, inherited: std::io::Result<InheritedListeners>) -> ExitCode {
    report::start_logging(config.log_format, &config.verbosity);
    // In a place of its own: frames that hold it while it is made are gone by the time when it runs.
    let driver = match prepare(config, inherited).map(Box::new) {
        Ok(driver) => driver,
        Err(error) => return fail(code::FATAL, &format_args!("{error:#}")),
    };
    match driver.run() {
        Ending::Stopped => ExitCode::from(code::STOPPED),
        Ending::GaveUp => ExitCode::from(code::GAVE_UP),
        Ending::CannotStart(failure) => cannot_start(config, &failure),
    }
}

/// Does everything that can fail before the first worker starts. After that, no error ends the supervisor.
#[inline(never)]
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
    Driver::new(config, signals, cgroups, broker, inherited, (control, endpoint))
}

fn cannot_start(config: &Config, failure: &SpawnError) -> ExitCode {
    let command = config.command.first().map(|command| command.to_string_lossy()).unwrap_or_default();
    let (code, subject) = match (failure.step, failure.errno) {
        // The command was found, and its interpreter was not. A shell distinguishes the two cases in the same way.
        (SpawnStep::Exec, _) if failure.interpreter.is_some() => (code::NOT_EXECUTABLE, command),
        (SpawnStep::Exec, libc::ENOENT | libc::ENOTDIR) => (code::NOT_FOUND, command),
        (SpawnStep::Exec, _other) => (code::NOT_EXECUTABLE, command),
        (_before, _other) => (code::FATAL, command),
    };
    fail(code, &format_args!("{subject} cannot be started: {}", report::start_failure(failure, None)))
}

fn fail(code: u8, why: &dyn Display) -> ExitCode {
    // If standard error is closed, the message has no other destination.
    let _closed = writeln!(std::io::stderr(), "master-process: {why}");
    ExitCode::from(code)
}
