//! `stop`, `scale`, `restart`, `pause`, `resume` and `upgrade`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use clap::{Arg, ArgMatches, Command};

use super::connection::{Failure, Received};
use super::exit::codes;
use super::order::Order;
use super::{arguments, show, status};
use crate::control::{Event, Line, Request, Snapshot};

/// The least time between two looks at the state while `scale --wait` waits.
const LOOK: Duration = Duration::from_millis(100);

pub(super) fn plain_arguments(command: Command) -> Command {
    arguments::of_one(command)
}

pub(super) fn stop_arguments(command: Command) -> Command {
    arguments::waiting(arguments::of_one(command))
}

pub(super) fn upgrade_arguments(command: Command) -> Command {
    arguments::waiting(arguments::of_one(command))
}

pub(super) fn scale_arguments(command: Command) -> Command {
    let parser = |text: &str| arguments::number(text, 1u32, "a number of workers, from 1 on");
    let workers = Arg::new("N").required(true).value_parser(parser).help("Number of workers");
    arguments::waiting(arguments::of_one(command)).arg(workers)
}

pub(super) fn restart_arguments(command: Command) -> Command {
    arguments::waiting(arguments::of_one(command)).arg(arguments::slot())
}

pub(super) fn pause(matches: &ArgMatches) -> Result<u8, Failure> {
    set_limits(matches, true)
}

pub(super) fn resume(matches: &ArgMatches) -> Result<u8, Failure> {
    set_limits(matches, false)
}

fn set_limits(matches: &ArgMatches, paused: bool) -> Result<u8, Failure> {
    let order = Order::give(matches, |_| Request::Pause(paused))?;
    let word = if paused { "paused" } else { "in force" };
    order.say(&format!("the resource limits of {} are {word}", order.name()));
    Ok(codes::OK)
}

pub(super) fn upgrade(matches: &ArgMatches) -> Result<u8, Failure> {
    let mut order = Order::give(matches, |follow| Request::Upgrade { follow })?;
    order.say(&format!("upgrading {}", order.name()));
    if !order.wait {
        return Ok(codes::OK);
    }
    loop {
        match order.connection.receive(order.until)? {
            Received::Line(Line::Event(event), text) => {
                if order.json {
                    show::print(&format!("{text}\n"));
                }
                if let Some((code, text)) = upgraded(&event) {
                    return Ok(order.end(code, &text));
                }
            }
            Received::Line(Line::Reply(_), _) => {}
            Received::Nothing => return Ok(order.timed_out()),
            Received::End => return Err(Order::lost()),
        }
    }
}

/// How an upgrade ended, if this event tells.
fn upgraded(event: &Event) -> Option<(u8, String)> {
    let plain = |text: &Option<String>| show::plain(text.as_deref().unwrap_or("?"));
    match event.event.as_str() {
        "supervisor.upgraded" => {
            let (from, to) = (plain(&event.previous_version), plain(&event.version));
            let pause = event.pause_seconds.unwrap_or_default() * 1000.0;
            Some((codes::OK, format!("upgraded from {from} to {to}, with a pause of {pause:.0} ms")))
        }
        "supervisor.upgrade_failed" => {
            Some((codes::GIVEN_UP, format!("not upgraded: {}", plain(&event.message))))
        }
        _other => None,
    }
}

pub(super) fn stop(matches: &ArgMatches) -> Result<u8, Failure> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut order = Order::give(matches, |follow| Request::Stop { follow })?;
    if !order.wait {
        order.say(&format!("stopping {}", order.name()));
        return Ok(codes::OK);
    }
    // Before its end, so that no other process can have its pid.
    let process = order.connection.process();
    loop {
        match order.connection.receive(order.until)? {
            Received::Line(Line::Event(_), text) => order.pass_on(&text),
            Received::Line(..) => {}
            Received::Nothing => return Ok(order.timed_out()),
            Received::End => break,
        }
    }
    if let Some(process) = process {
        let left = order.until.map(|until| until.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        let mut ended = [PollFd::new(&process, PollFlags::IN)];
        if poll(&mut ended, left.as_ref()).is_ok_and(|count| count == 0) {
            return Ok(order.timed_out());
        }
    }
    Ok(order.end(codes::OK, &format!("{} stopped after {}", order.name(), order.took())))
}

pub(super) fn restart(matches: &ArgMatches) -> Result<u8, Failure> {
    let slot = matches.get_one::<u32>("SLOT").copied().unwrap_or_default();
    let mut order = Order::give(matches, |follow| Request::Restart { slot, follow })?;
    let old = order.accepted.pid.map_or("it has no worker".to_owned(), |pid| format!("replacing pid {pid}"));
    order.say(&format!("restarting slot {slot} of {}: {old}", order.name()));
    if !order.wait {
        return Ok(codes::OK);
    }
    let mut restart = Restart::new(slot, order.accepted.pid, order.accepted.attempts.unwrap_or(1));
    loop {
        match order.connection.receive(order.until)? {
            Received::Line(Line::Event(event), text) => {
                order.pass_on(&text);
                if let Some((code, text)) = restart.take(&event) {
                    let took = order.took();
                    let text = match code {
                        codes::GIVEN_UP => format!("given up after {took}: {text}"),
                        _decided => format!("{text} after {took}"),
                    };
                    return Ok(order.end(code, &with_reason(&order, code, text, slot)));
                }
            }
            Received::Line(Line::Reply(_), _) => {}
            Received::Nothing => return Ok(order.timed_out()),
            Received::End => return Err(Order::lost()),
        }
    }
}

/// The text, and where to look further if it is a failure of the program.
fn with_reason(order: &Order, code: u8, text: String, slot: u32) -> String {
    if code == codes::GIVEN_UP && text.contains("failed") {
        format!("{text}; see: {}", order.next(&format!("why {slot}")))
    } else {
        text
    }
}

/// How far the restart of a slot is.
struct Restart {
    slot: u32,
    old: Option<i32>,
    new: Option<i32>,
    attempts: u32,
    failed: u32,
    is_ready: bool,
    old_ended: bool,
}

impl Restart {
    fn new(slot: u32, old: Option<i32>, attempts: u32) -> Restart {
        Restart { slot, old, new: None, attempts, failed: 0, is_ready: false, old_ended: old.is_none() }
    }

    /// Takes an event in. Returns the exit code and what happened, once that is decided.
    fn take(&mut self, event: &Event) -> Option<(u8, String)> {
        let slot = self.slot;
        let here = event.slot == Some(slot);
        match event.event.as_str() {
            "reload.begun" => return Some((codes::SUPERSEDED, "superseded by a reload".to_owned())),
            "scaled" if event.to.is_some_and(|to| to <= slot) => {
                return Some((codes::SUPERSEDED, "the slot was removed".to_owned()));
            }
            "supervisor.stopping" => return Some((codes::GIVEN_UP, "the supervisor is stopping".to_owned())),
            // A reload replaces the slot anyway.
            "reload.slot_done" | "restart.complete" if here => self.is_ready = true,
            "restart.given_up" | "reload.given_up" => {
                let error = event.error.as_ref().filter(|error| here || error.slot != Some(slot))?;
                // Before the command of a reload is complete, no slot is replaced.
                let failed = error.slot?;
                let why = show::plain(&error.message);
                return Some((
                    codes::GIVEN_UP,
                    format!("slot {failed} failed {} times: {why}", error.attempts),
                ));
            }
            "worker.started" if here => self.new = event.pid,
            "worker.ready" if here && self.old.is_none() => (self.new, self.is_ready) = (event.pid, true),
            "worker.ended" if here && event.pid == self.old => self.old_ended = true,
            "worker.ended" | "worker.start_failed" if here && self.old.is_none() => {
                self.failed += 1;
                if self.failed >= self.attempts {
                    let why = failure(event);
                    return Some((
                        codes::GIVEN_UP,
                        format!("slot {slot} failed {} times: {why}", self.failed),
                    ));
                }
            }
            _other => {}
        }
        let new = self.new.map(|pid| format!("pid {pid}")).unwrap_or_default();
        (self.is_ready && self.old_ended).then(|| (codes::OK, format!("slot {slot} runs {new}")))
    }
}

/// Why a worker could not be started, or has ended.
fn failure(event: &Event) -> String {
    let why = event.end.as_ref().map(status::ended).or_else(|| event.message.clone());
    show::plain(&why.unwrap_or_default())
}

pub(super) fn scale(matches: &ArgMatches) -> Result<u8, Failure> {
    let workers = matches.get_one::<u32>("N").copied().unwrap_or(1);
    let mut order = Order::give(matches, |follow| Request::Scale { workers, follow })?;
    let from = order.accepted.from.unwrap_or(workers);
    order.say(&format!("scaling {} from {from} to {workers}", order.name()));
    if !order.wait {
        return Ok(codes::OK);
    }
    let mut scaling = Scaling::new(from, workers, order.accepted.attempts.unwrap_or(1));
    let (mut changed, mut asked, mut look_at) = (true, false, Instant::now());
    loop {
        if changed && !asked && Instant::now() >= look_at {
            order.connection.send(Request::Status)?;
            (changed, asked, look_at) = (false, true, Instant::now() + LOOK);
        }
        let until = if changed && !asked {
            Some(order.until.map_or(look_at, |until| until.min(look_at)))
        } else {
            order.until
        };
        match order.connection.receive(until)? {
            Received::Line(Line::Event(event), text) => {
                order.pass_on(&text);
                if let Some((code, text)) = scaling.take(&event) {
                    let slot = event.slot.unwrap_or_default();
                    return Ok(order.end(code, &with_reason(&order, code, text, slot)));
                }
                changed = true;
            }
            Received::Line(Line::Reply(reply), _) => {
                asked = false;
                if reply.status.is_some_and(|snapshot| scaling.is_done(&snapshot)) {
                    return Ok(
                        order.end(codes::OK, &format!("{workers} of {workers} ready after {}", order.took()))
                    );
                }
            }
            Received::Nothing if order.until.is_some_and(|until| until <= Instant::now()) => {
                return Ok(order.timed_out());
            }
            Received::Nothing => {}
            Received::End => return Err(Order::lost()),
        }
    }
}

/// How far a change of the number of workers is.
struct Scaling {
    /// The first new slot.
    from: u32,
    to: u32,
    attempts: u32,
    /// The slots that have had a ready worker since.
    ready: BTreeSet<u32>,
    failed: BTreeMap<u32, u32>,
    /// Whether the event of this change itself has come.
    begun: bool,
}

impl Scaling {
    fn new(from: u32, to: u32, attempts: u32) -> Scaling {
        Scaling { from, to, attempts, ready: BTreeSet::new(), failed: BTreeMap::new(), begun: from == to }
    }

    fn take(&mut self, event: &Event) -> Option<(u8, String)> {
        match (event.event.as_str(), event.slot) {
            ("scaled", _) if !self.begun && event.to == Some(self.to) => self.begun = true,
            ("scaled", _) if event.to != Some(self.to) => {
                let to = event.to.unwrap_or_default();
                return Some((codes::SUPERSEDED, format!("superseded: {to} workers are wanted now")));
            }
            ("supervisor.stopping", _) => {
                return Some((codes::GIVEN_UP, "given up: the supervisor is stopping".to_owned()));
            }
            ("worker.ready", Some(slot)) => _ = self.ready.insert(slot),
            // The supervisor does not give up. Who waits for a program that does not start should know.
            ("worker.ended" | "worker.start_failed", Some(slot))
                if slot >= self.from && slot < self.to && !self.ready.contains(&slot) =>
            {
                let failed = self.failed.entry(slot).or_default();
                *failed += 1;
                if *failed >= self.attempts {
                    let why = failure(event);
                    let text =
                        format!("slot {slot} failed {failed} times: {why}; the supervisor goes on trying");
                    return Some((codes::GIVEN_UP, text));
                }
            }
            _other => {}
        }
        None
    }

    fn is_done(&self, snapshot: &Snapshot) -> bool {
        let removed = snapshot.workers.iter().any(|worker| worker.slot >= self.to);
        snapshot.slots_wanted == self.to && snapshot.workers_ready == self.to && !removed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str, slot: u32, pid: i32) -> Event {
        Event { event: name.to_owned(), slot: Some(slot), pid: Some(pid), ..Event::default() }
    }

    #[test]
    fn a_restart_is_over_when_the_old_worker_is_gone() {
        let mut restart = Restart::new(1, Some(7), 3);
        for other in [event("worker.ended", 0, 5), event("worker.started", 1, 9), event("worker.ready", 1, 9)]
        {
            assert_eq!(restart.take(&other), None);
        }
        assert_eq!(restart.take(&event("restart.complete", 1, 9)), None);
        assert_eq!(restart.take(&event("worker.ended", 1, 7)), Some((0, "slot 1 runs pid 9".to_owned())));
        let code = |mut restart: Restart, event: &Event| restart.take(event).map(|(code, _)| code);
        assert_eq!(code(Restart::new(1, Some(7), 3), &event("reload.begun", 0, 0)), Some(codes::SUPERSEDED));
        let down = Event { to: Some(1), ..event("scaled", 0, 0) };
        assert_eq!(code(Restart::new(1, Some(7), 3), &down), Some(codes::SUPERSEDED));
    }

    #[test]
    fn a_slot_without_a_worker_fails_like_a_reload() {
        let mut restart = Restart::new(0, None, 2);
        assert_eq!(restart.take(&event("worker.ended", 0, 5)), None);
        assert_eq!(restart.take(&event("worker.ended", 0, 6)).map(|(code, _)| code), Some(codes::GIVEN_UP));
        let mut restart = Restart::new(0, None, 2);
        assert_eq!(restart.take(&event("worker.ready", 0, 5)).map(|(code, _)| code), Some(codes::OK));
    }

    #[test]
    fn scaling_up_fails_when_a_new_worker_does() {
        let mut scaling = Scaling::new(2, 4, 2);
        let own = Event { from: Some(2), to: Some(4), ..event("scaled", 0, 0) };
        assert_eq!(scaling.take(&own), None);
        assert_eq!(scaling.take(&event("worker.ended", 1, 5)), None, "an old slot");
        assert_eq!(scaling.take(&event("worker.ready", 3, 6)), None);
        assert_eq!(scaling.take(&event("worker.ended", 2, 7)), None);
        assert_eq!(scaling.take(&event("worker.ended", 2, 8)).map(|(code, _)| code), Some(codes::GIVEN_UP));
        let other = Event { to: Some(9), ..event("scaled", 0, 0) };
        assert_eq!(scaling.take(&other).map(|(code, _)| code), Some(codes::SUPERSEDED));
    }
}
