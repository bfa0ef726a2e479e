//! Whether systemd gives this service enough time to stop: `TimeoutStopSec=` of its unit.
//!
//! A service with `Type=notify` asks for more time when it stops, so only others are checked.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use tracing::{debug, warn};

use super::context::{Context, Deferred, Token};
use crate::config::Config;
use crate::report::Span;
use crate::sys::manager_bus::{Answer, Query, Unit};

/// How long the answer is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// The check, until it is over.
#[derive(Debug)]
pub(super) struct StopTimeout {
    kill_timeout: Duration,
    drain: Duration,
    /// Whether the check was begun, by this supervisor or the one that it has taken over from.
    begun: bool,
    asked: Option<Box<(Query, Unit)>>,
}

impl StopTimeout {
    /// `begun`: another supervisor has begun the check.
    pub(super) fn new(config: &Config, begun: bool) -> StopTimeout {
        StopTimeout { kill_timeout: config.kill_timeout, drain: config.drain, begun, asked: None }
    }

    /// Asks systemd, if it has started this process and is not notified.
    pub(super) fn begin(&mut self, cx: &mut Context) {
        let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        if std::mem::replace(&mut self.begun, true) || var("NOTIFY_SOCKET").is_some() {
            return;
        }
        let Some(unit) = Unit::own(var) else { return };
        match Query::stop_timeout(&unit, var("XDG_RUNTIME_DIR").map(PathBuf::from)) {
            Ok(query) => {
                cx.watch(query.as_fd(), Token::StopTimeout);
                cx.schedule(PATIENCE, Deferred::StopTimeout);
                self.asked = Some(Box::new((query, unit)));
            }
            Err(error) => debug!("cannot ask systemd for TimeoutStopSec= of {}: {error}", unit.name),
        }
    }

    /// Reads the answer.
    pub(super) fn read(&mut self, cx: &mut Context) {
        let Some(asked) = &mut self.asked else { return };
        let (query, unit) = asked.as_mut();
        match query.read() {
            Answer::Pending => return cx.watch(query.as_fd(), Token::StopTimeout),
            Answer::Value(usec) => {
                let timeout = Duration::from_micros(usec);
                if timeout < self.kill_timeout.saturating_add(self.drain) {
                    warn!(
                        "TimeoutStopSec={} of {} is shorter than --kill-timeout ({}) and --drain ({}): systemd kills the \
                         workers before they have stopped; raise it, or use Type=notify",
                        Span(timeout),
                        unit.name,
                        Span(self.kill_timeout),
                        Span(self.drain),
                    );
                }
            }
            Answer::None => debug!("systemd does not tell TimeoutStopSec= of {}", unit.name),
        }
        self.asked = None;
    }

    /// The answer has not come.
    pub(super) fn give_up(&mut self, cx: &mut Context) {
        if self.asked.take().is_some() {
            cx.poller.forget(Token::StopTimeout.encode());
        }
    }
}
