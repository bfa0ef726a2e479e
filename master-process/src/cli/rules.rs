//! From the values to [`Config`], and the rules between them.

use std::ffi::OsString;
use std::time::Duration;

use super::arguments::Arguments;
use super::host::Host;
use super::usage_error::UsageError;
use super::values::MAX_START_GATE;
use super::{addresses, environment, users};
use crate::config::{
    Capabilities, CgroupLimits, Config, Control, Limits, Listen, ReadyMode, ShareRules, Signal, Stdin,
};

/// The first descriptor that is passed on: sd_listen_fds(3).
const FIRST_SOCKET: i32 = 3;

/// The whole configuration, or the first error.
pub(super) fn config(arguments: &Arguments, host: &dyn Host) -> Result<Config, UsageError> {
    with_command(arguments.worker()?, arguments, host)
}

/// The same for this command.
pub(super) fn with_command(
    command: Vec<OsString>,
    arguments: &Arguments,
    host: &dyn Host,
) -> Result<Config, UsageError> {
    let (throttle, throttle_max) = throttle(arguments)?;
    let listen = addresses::distinct(arguments)?;
    let (ready, ready_timeout) = ready(arguments, &listen)?;
    let limits = limits(arguments);
    let workers = arguments.one("workers");
    let (identity, login) = users::workers(arguments, host)?;
    Ok(Config {
        command,
        workers,
        throttle,
        throttle_max,
        give_up: arguments.one("give-up"),
        kill_timeout: arguments.one("kill-timeout"),
        drain: arguments.one("drain"),
        on_upgrade: arguments.one("on-upgrade"),
        orphans: arguments.one("orphans"),
        takeover: arguments.switch("takeover"),
        stop_signal: arguments.one("stop-signal"),
        stop_group: arguments.one("stop-group"),
        ready,
        ready_timeout,
        reload_batch: arguments.one("reload-batch"),
        reload_attempts: arguments.one("reload-attempts"),
        start_gate: start_gate(arguments, host),
        preload: arguments.optional("preload"),
        preload_max: arguments.one("preload-max"),
        limits,
        cgroup_limits: cgroup_limits(arguments)?,
        cgroup: arguments.optional("cgroup"),
        monitor: arguments.one("monitor"),
        account: arguments.one("account"),
        memory_high_signal: memory_high_signal(arguments, &limits)?,
        listen,
        share: arguments.one("share"),
        share_rules: ShareRules { only: arguments.many("share-only"), except: arguments.many("no-share") },
        socket_mode: arguments.optional("socket-mode"),
        socket_owner: arguments.optional("socket-owner"),
        identity,
        login,
        ambient: arguments.many("ambient").into_iter().fold(Capabilities::NONE, Capabilities::union),
        no_new_privs: arguments.switch("no-new-privs"),
        chdir: arguments.optional("chdir"),
        umask: arguments.optional("umask"),
        name: arguments.optional("name"),
        control: arguments.optional("control").unwrap_or(Control::Default),
        control_group: arguments.optional("control-group"),
        metrics: arguments.optional("metrics").flatten(),
        stdin: stdin(arguments, workers, host)?,
        log_format: arguments.one("log-format"),
        verbosity: environment::verbosity(arguments, host)?,
    })
}

/// Twice the CPUs of the host, where nothing is given: a start waits for the disk and for other processes half of its
/// time. The CPUs that this process may use do not matter: all supervisors of the host share the places.
fn start_gate(arguments: &Arguments, host: &dyn Host) -> Option<u32> {
    let given = arguments.optional("start-gate");
    given.unwrap_or_else(|| Some(host.all_cpus().saturating_mul(2).clamp(1, MAX_START_GATE)))
}

/// The throttle and its maximum, which is never below it: an explicit maximum must not be, the default rises.
fn throttle(arguments: &Arguments) -> Result<(Duration, Duration), UsageError> {
    let (throttle, max): (Duration, Duration) = (arguments.one("throttle"), arguments.one("throttle-max"));
    if arguments.is_explicit("throttle-max") && max < throttle {
        let (source, text) = (arguments.source("throttle"), arguments.text("throttle"));
        let reason = format!("shorter than {source} ({text:?}); expected at least that");
        return Err(arguments.misfit("throttle-max", &reason));
    }
    Ok((throttle, max.max(throttle)))
}

/// The ready mode and its time-out, which must be longer than `alive:DUR`.
fn ready(arguments: &Arguments, listen: &[Listen]) -> Result<(ReadyMode, Duration), UsageError> {
    let (mode, timeout): (ReadyMode, Duration) = (arguments.one("ready"), arguments.one("ready-timeout"));
    let is_explicit = arguments.is_explicit("ready-timeout");
    match mode {
        ReadyMode::NotifyFd(fd) if fd < first_free(listen) => {
            let free = first_free(listen);
            let reason =
                format!("a descriptor below {free} is a socket of --listen; expected {free} or higher");
            Err(arguments.misfit("ready", &reason))
        }
        ReadyMode::Alive(time) if is_explicit && timeout <= time => {
            let (source, text) = (arguments.source("ready"), arguments.text("ready"));
            let reason = format!("not longer than {source} ({text:?}); expected more than that");
            Err(arguments.misfit("ready-timeout", &reason))
        }
        ReadyMode::Alive(time) if !is_explicit => Ok((mode, time + timeout)),
        ReadyMode::Alive(_)
        | ReadyMode::Auto
        | ReadyMode::Listen
        | ReadyMode::ListenOn(_)
        | ReadyMode::Notify
        | ReadyMode::NotifyFd(_)
        | ReadyMode::None => Ok((mode, timeout)),
    }
}

/// The first descriptor after those of the sockets.
fn first_free(listen: &[Listen]) -> i32 {
    i32::try_from(listen.len()).map_or(i32::MAX, |count| FIRST_SOCKET.saturating_add(count))
}

fn limits(arguments: &Arguments) -> Limits {
    Limits {
        max_cpu: arguments.one("max-cpu"),
        cpu_is_default: !arguments.is_explicit("max-cpu"),
        cpu_failures: arguments.one("cpu-failures"),
        max_memory: arguments.one("max-memory"),
        memory_is_default: !arguments.is_explicit("max-memory"),
        memory_failures: arguments.one("memory-failures"),
        interval: arguments.one("monitor-interval"),
        delay: arguments.one("monitor-delay"),
    }
}

/// The limits of the workers' cgroups: memory is taken back before the kernel kills for it, or never.
fn cgroup_limits(arguments: &Arguments) -> Result<CgroupLimits, UsageError> {
    let limits = CgroupLimits {
        memory_max: arguments.one("worker-memory-max"),
        memory_high: arguments.one("worker-memory-high"),
        cpu_max: arguments.one("worker-cpu-max"),
        pids_max: arguments.one("worker-pids-max"),
    };
    if let (Some(high), Some(max)) = (limits.memory_high, limits.memory_max)
        && high > max
    {
        let (source, text) = (arguments.source("worker-memory-max"), arguments.text("worker-memory-max"));
        let reason = format!("larger than {source} ({text:?}); expected at most that");
        return Err(arguments.misfit("worker-memory-high", &reason));
    }
    Ok(limits)
}

/// The signal that warns a worker of its memory limit, which must be on.
fn memory_high_signal(arguments: &Arguments, limits: &Limits) -> Result<Option<Signal>, UsageError> {
    let signal = arguments.optional("memory-high-signal");
    if signal.is_some() && limits.max_memory.is_none() {
        let reason = "no memory limit to warn of; expected a size for --max-memory";
        return Err(arguments.misfit("memory-high-signal", reason));
    }
    Ok(signal)
}

/// A terminal has one foreground process group: one worker can read it, and Ctrl-C reaches one.
fn stdin(arguments: &Arguments, workers: u32, host: &dyn Host) -> Result<Stdin, UsageError> {
    let stdin = arguments.one("stdin");
    if stdin == Stdin::Inherit && workers > 1 && host.stdin_is_terminal() {
        let reason = format!("one worker can read a terminal, not {workers}; expected null, or --workers 1");
        return Err(arguments.misfit("stdin", &reason));
    }
    Ok(stdin)
}
