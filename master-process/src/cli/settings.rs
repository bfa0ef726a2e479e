//! Every option resolved, and the rules between them.

use std::ffi::OsString;
use std::time::Duration;

use super::error::UsageError;
use super::resolver::Resolver;
use super::{
    batch, capabilities, choice, count, directory, duration, give_up, identity, limits, listen, octal, owner,
    ready, share_rules, signal, verbosity, workers,
};
use crate::config::{
    Config, Identity, Listen, LogFormat, Login, Orphans, ReadyMode, Share, Stdin, StopGroup,
};

const STOP_GROUPS: &[(&str, StopGroup)] = &[("leader", StopGroup::Leader), ("tree", StopGroup::Tree)];

const ORPHANS: &[(&str, Orphans)] = &[("kill", Orphans::Kill), ("keep", Orphans::Keep)];

const SHARE: &[(&str, Share)] =
    &[("auto", Share::Auto), ("slots", Share::Slots), ("shared", Share::Shared), ("off", Share::Off)];

const STDIN: &[(&str, Stdin)] = &[("null", Stdin::Null), ("inherit", Stdin::Inherit)];

const LOG_FORMAT: &[(&str, LogFormat)] = &[
    ("auto", LogFormat::Auto),
    ("pretty", LogFormat::Pretty),
    ("json", LogFormat::Json),
    ("journald", LogFormat::Journald),
];

/// The first descriptor that is handed over, by sd_listen_fds(3).
const FIRST_SOCKET: i32 = 3;

/// The whole configuration, or the first thing that is wrong with it in the order of its fields.
pub(super) fn config(command: Vec<OsString>, from: &Resolver<'_>) -> Result<Config, UsageError> {
    let env = from.env;
    let (throttle, throttle_max) = throttle(from)?;
    let listen = listen::distinct(from.many("listen", |text| listen::parse(text, env))?)?;
    let (ready, ready_timeout) = ready(from, &listen)?;
    let limits = limits::limits(from)?;
    let workers = from.one("workers", |text| workers::parse(text, || env.cpus()))?;
    let (identity, login) = workers_identity(from)?;
    Ok(Config {
        command,
        workers,
        throttle,
        throttle_max,
        give_up: from.one("give-up", give_up::parse)?,
        kill_timeout: from.one("kill-timeout", duration::parse)?,
        drain: from.one("drain", duration::parse)?,
        orphans: from.one("orphans", |text| choice::parse(text, ORPHANS))?,
        takeover: from.switch("takeover"),
        stop_signal: from.one("stop-signal", signal::parse_stop)?,
        stop_group: from.one("stop-group", |text| choice::parse(text, STOP_GROUPS))?,
        ready,
        ready_timeout,
        reload_batch: from.one("reload-batch", batch::parse)?,
        reload_attempts: from.one("reload-attempts", count::at_least_one)?,
        limits,
        monitor: from.one("monitor", |text| choice::parse(text, limits::MONITOR))?,
        account: from.one("account", |text| choice::parse(text, limits::ACCOUNT))?,
        memory_high_signal: limits::memory_high_signal(from, &limits)?,
        listen,
        share: from.one("share", |text| choice::parse(text, SHARE))?,
        share_rules: share_rules::rules(from)?,
        socket_mode: from.optional("socket-mode", octal::parse)?.map(|mode| mode.value),
        socket_owner: from.optional("socket-owner", |text| owner::parse(text, env))?.map(|owner| owner.value),
        identity,
        login,
        ambient: capabilities::ambient(from)?,
        no_new_privs: from.switch("no-new-privs"),
        chdir: from.optional("chdir", |text| directory::parse(text, env))?.map(|dir| dir.value),
        umask: from.optional("umask", octal::parse)?.map(|umask| umask.value),
        stdin: stdin(from, workers)?,
        log_format: from.one("log-format", |text| choice::parse(text, LOG_FORMAT))?,
        verbosity: verbosity::resolve(from)?,
    })
}

/// The throttle and its largest value, which is never smaller: what was asked for must fit, a default follows.
fn throttle(from: &Resolver<'_>) -> Result<(Duration, Duration), UsageError> {
    let throttle = from.resolve("throttle", duration::parse)?;
    let max = from.resolve("throttle-max", duration::parse)?;
    if max.is_explicit() && max.value < throttle.value {
        let reason = format!("is shorter than {}, {:?}; give at least that", throttle.source, throttle.text);
        return Err(max.misfit(&reason));
    }
    Ok((throttle.value, max.value.max(throttle.value)))
}

/// When a worker is ready and how long it has for that, which `alive` must be able to outlast.
fn ready(from: &Resolver<'_>, listen: &[Listen]) -> Result<(ReadyMode, Duration), UsageError> {
    let mode = from.resolve("ready", |text| ready::parse(text, from.env))?;
    let timeout = from.resolve("ready-timeout", duration::positive)?;
    match mode.value {
        ReadyMode::NotifyFd(fd) => match first_free(listen) {
            free if fd < free => {
                let last = free - 1;
                let reason = format!(
                    "collides with the sockets of --listen on descriptors {FIRST_SOCKET} to {last}; give {free} or higher"
                );
                Err(mode.misfit(&reason))
            }
            _ => Ok((mode.value, timeout.value)),
        },
        ReadyMode::Alive(time) if timeout.is_explicit() && timeout.value <= time => {
            let reason =
                format!("ends before {}, {:?}, can be reached; give more than that", mode.source, mode.text);
            Err(timeout.misfit(&reason))
        }
        ReadyMode::Alive(time) if !timeout.is_explicit() => Ok((mode.value, time + timeout.value)),
        ReadyMode::Alive(_)
        | ReadyMode::Auto
        | ReadyMode::Listen
        | ReadyMode::ListenOn(_)
        | ReadyMode::Notify
        | ReadyMode::None => Ok((mode.value, timeout.value)),
    }
}

/// A terminal has one foreground process group: one worker can read it, and Ctrl-C reaches one.
fn stdin(from: &Resolver<'_>, workers: u32) -> Result<Stdin, UsageError> {
    let stdin = from.resolve("stdin", |text| choice::parse(text, STDIN))?;
    if stdin.value == Stdin::Inherit && workers > 1 && from.env.stdin_is_terminal() {
        let reason =
            format!("lets one worker read the terminal, and --workers asks for {workers}; give --workers 1");
        return Err(stdin.misfit(&reason));
    }
    Ok(stdin.value)
}

/// The first descriptor behind those of the sockets.
fn first_free(listen: &[Listen]) -> i32 {
    i32::try_from(listen.len()).map_or(i32::MAX, |count| FIRST_SOCKET.saturating_add(count))
}

fn workers_identity(from: &Resolver<'_>) -> Result<(Option<Identity>, Option<Login>), UsageError> {
    let user = from.optional("user", |text| identity::user(text, from.env))?;
    let group = from.optional("group", |text| identity::group_id(text, from.env))?;
    let login = identity::login(user.as_ref());
    Ok((identity::workers(user, group, from.env)?, login))
}
