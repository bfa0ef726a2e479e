//! `reload`, and how it goes: each slot as it is decided, and the exit code at the moment when the whole is.

use std::collections::BTreeMap;

use clap::{ArgMatches, Command};

use super::connection::{Connection, Failure, Received};
use super::exit::codes;
use super::order::{Order, print_result};
use super::{arguments, show, status};
use crate::control::{Accepted, Event, FailedReload, Line, ReloadState, Request};

/// From this number of slots on, a line for each would be too many.
const MANY: usize = 50;

/// The slots that are named in the last line.
const NAMED: usize = 12;

/// Where the further lines of a text begin, and those of a slot.
const INDENT: usize = 2;
const DEEP: usize = 10;

pub(super) fn arguments(command: Command) -> Command {
    arguments::waiting(arguments::of_one(command))
}

pub(super) fn run(matches: &ArgMatches) -> Result<u8, Failure> {
    let order = Order::give(matches, |follow| Request::Reload { follow })?;
    let reload = Progress::new(&order.accepted);
    let (number, slots) = (reload.number, reload.slots.len());
    let (plural, batch) = (if slots == 1 { "slot" } else { "slots" }, reload.batch.min(slots.max(1)));
    order.say(&format!("reload {number} of {}, {slots} {plural}, {batch} at a time", order.name()));
    if !order.wait {
        return Ok(codes::OK);
    }
    let live = !order.json && show::is_terminal() && !reload.is_long();
    Watcher { reload, order, live, drawn: 0 }.watch()
}

/// What becomes of a slot.
#[derive(Debug, Clone, Default, PartialEq)]
struct Slot {
    /// The pid of the new worker.
    new: Option<i32>,
    /// The pid of the old one, and whether it has ended.
    old: Option<(i32, bool)>,
    ready: Option<f64>,
    drained: Option<f64>,
    left: Option<f64>,
    /// The new workers that have failed.
    failed: u32,
    /// Whether the new worker has passed its probation.
    done: bool,
    /// Whether its line was printed.
    printed: bool,
}

impl Slot {
    /// Whether nothing more happens in it.
    fn is_over(&self) -> bool {
        self.done && self.old.is_none_or(|(_, ended)| ended)
    }
}

/// How a reload ended.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Outcome {
    /// Every slot has a ready worker of it, and no old one is left.
    Complete,
    /// It was given up.
    GivenUp(FailedReload),
    /// A newer one took its place.
    Superseded(u32),
    /// The supervisor stops.
    Stopping,
}

/// What is known of a reload.
#[derive(Debug)]
struct Progress {
    number: u32,
    attempts: u32,
    /// The slots that are replaced at a time.
    batch: usize,
    slots: BTreeMap<u32, Slot>,
    complete: bool,
}

impl Progress {
    fn new(accepted: &Accepted) -> Progress {
        let slots = accepted.slots_total.unwrap_or_default();
        Progress {
            number: accepted.reload.unwrap_or_default(),
            attempts: accepted.attempts.unwrap_or(1),
            batch: usize::try_from(accepted.batch.unwrap_or(slots).max(1)).unwrap_or(usize::MAX),
            slots: (0..slots).map(|slot| (slot, Slot::default())).collect(),
            complete: false,
        }
    }

    /// Whether a line for each slot would be too many.
    fn is_long(&self) -> bool {
        self.slots.len() >= MANY
    }

    /// Takes an event in. Returns how the reload ended, if that is decided now.
    fn take(&mut self, event: &Event) -> Option<Outcome> {
        let ours = event.reload == Some(self.number);
        match event.event.as_str() {
            "reload.complete" if ours => self.complete = true,
            "reload.given_up" if ours => return Some(Outcome::GivenUp(event.error.clone()?)),
            "reload.superseded" if ours => {
                return Some(Outcome::Superseded(event.superseded_by.unwrap_or_default()));
            }
            "supervisor.stopping" if !self.complete => return Some(Outcome::Stopping),
            // It was complete before: what becomes of the last old workers is another matter.
            "reload.begun" | "supervisor.stopping" if self.complete => return Some(Outcome::Complete),
            // Slots that are removed meanwhile have nothing to wait for.
            "scaled" => self.slots.retain(|slot, _| event.to.is_none_or(|to| *slot < to)),
            _other => self.take_of_slot(event),
        }
        (self.complete && self.slots.values().all(Slot::is_over)).then_some(Outcome::Complete)
    }

    fn take_of_slot(&mut self, event: &Event) {
        let number = self.number;
        let Some(slot) = event.slot.and_then(|slot| self.slots.get_mut(&slot)) else { return };
        match event.event.as_str() {
            "worker.started" if event.generation == Some(number) => slot.new = event.pid,
            "worker.ready" if event.pid == slot.new => {
                slot.ready = event.after_seconds;
                slot.old = slot.old.or(event.replaces_pid.map(|pid| (pid, false)));
            }
            "reload.slot_done" if event.reload == Some(number) => slot.done = true,
            "worker.ended" if slot.old.is_some_and(|(old, _)| event.pid == Some(old)) => {
                slot.old = slot.old.map(|(old, _)| (old, true));
                (slot.drained, slot.left) = (event.drained_seconds, event.stopped_seconds);
            }
            "worker.ended" if event.pid == slot.new && !slot.done => {
                slot.failed += 1;
                (slot.new, slot.ready) = (None, None);
            }
            "worker.start_failed" => slot.failed += 1,
            _other => {}
        }
    }

    /// What failed, the command that says more, and what runs now.
    fn failure(&self, error: &FailedReload) -> (String, String, String) {
        let message = show::plain(&error.message);
        match error.slot {
            Some(slot) => (
                format!("  slot {slot}  failed, {} of {}: {message}", error.attempts, self.attempts),
                format!("why {slot}"),
                self.after_failure(),
            ),
            None => (format!("  {message}"), "events".to_owned(), "every slot keeps its worker".to_owned()),
        }
    }

    /// Which slots run what after the reload was given up.
    fn after_failure(&self) -> String {
        let (new, old): (Vec<_>, Vec<_>) = self.slots.iter().partition(|(_, slot)| slot.done);
        let number = self.number;
        let runs = |slots: &[(&u32, &Slot)], verb: &str, number: u32| match slots.len() {
            0 => None,
            1 => Some(format!("slot {} {verb}s reload {number}", slots[0].0)),
            few if few <= NAMED => {
                let names: Vec<String> = slots.iter().map(|(slot, _)| slot.to_string()).collect();
                Some(format!("slots {} {verb} reload {number}", names.join(" ")))
            }
            many => Some(format!("{many} slots {verb} reload {number}")),
        };
        let kept = match number {
            // The start is no reload.
            0 | 1 => runs(&old, "stay", 0).map(|text| {
                text.replace("stays reload 0", "stays as it was")
                    .replace("stay reload 0", "stay as they were")
            }),
            number => runs(&old, "stay", number - 1).map(|text| text.replace(" reload", " with reload")),
        };
        let parts: Vec<String> = [runs(&new, "run", number), kept].into_iter().flatten().collect();
        parts.join(", ")
    }

    fn line(&self, number: u32, slot: &Slot) -> String {
        let arrow = match (slot.old, slot.new) {
            (Some((old, _)), Some(new)) => format!("{old} > {new}"),
            (None, Some(new)) => format!("- > {new}"),
            (Some((old, _)), None) => format!("{old}"),
            (None, None) => "-".to_owned(),
        };
        let part = |word: &str, seconds: Option<f64>| {
            seconds.map(|seconds| format!("  {word} {}", show::tenths(seconds))).unwrap_or_default()
        };
        let failed = match slot.failed {
            0 => String::new(),
            failed => format!("  attempt {} of {}", (failed + 1).min(self.attempts), self.attempts),
        };
        let (ready, drained) = (part("ready", slot.ready), part("drained", slot.drained));
        format!("  slot {number}  {arrow}{ready}{drained}{}{failed}", part("left", slot.left))
    }
}

struct Watcher {
    reload: Progress,
    order: Order,
    /// Whether slots that are not decided are shown, and drawn again.
    live: bool,
    /// The lines of these slots.
    drawn: usize,
}

impl Watcher {
    fn watch(mut self) -> Result<u8, Failure> {
        loop {
            match self.order.connection.receive(self.order.until)? {
                Received::Line(Line::Event(event), text) => {
                    self.order.pass_on(&text);
                    let outcome =
                        if event.missed.is_some() { self.catch_up()? } else { self.reload.take(&event) };
                    if let Some(outcome) = outcome {
                        return Ok(self.end(&outcome));
                    }
                    self.draw();
                }
                Received::Line(Line::Reply(_), _) => {}
                Received::Nothing => return Ok(self.timed_out()),
                Received::End if self.reload.complete => return Ok(self.end(&Outcome::Complete)),
                Received::End => return Err(Order::lost()),
            }
        }
    }

    /// Events were missed: the state itself says how far it is.
    fn catch_up(&self) -> Result<Option<Outcome>, Failure> {
        let (snapshot, _) = status::ask(&mut Connection::open(&self.order.connection.path)?)?;
        let Some(reload) = snapshot.reload else { return Ok(None) };
        if reload.number > self.reload.number {
            return Ok(Some(Outcome::Superseded(reload.number)));
        }
        Ok(match (reload.state, reload.error) {
            (ReloadState::Complete, _) => Some(Outcome::Complete),
            (ReloadState::GivenUp, Some(error)) => Some(Outcome::GivenUp(error)),
            (ReloadState::Stopping, _) => Some(Outcome::Stopping),
            (ReloadState::Running | ReloadState::GivenUp, _) => None,
        })
    }

    /// Prints the slots that are decided, and on a terminal those that are not, in place.
    fn draw(&mut self) {
        if self.order.json {
            return;
        }
        let mut text = self.erased();
        text.push_str(&self.decided());
        if self.live {
            let (columns, rows) = show::size();
            let open = self.reload.slots.iter().filter(|(_, slot)| !slot.printed);
            let line = |(number, slot): (&u32, &Slot)| {
                // A line that the terminal breaks would be two to erase.
                format!("{}\n", show::cut(&self.reload.line(*number, slot), columns))
            };
            let lines: Vec<String> = open.take(rows.saturating_sub(2)).map(line).collect();
            self.drawn = lines.len();
            text.extend(lines);
        }
        if !text.is_empty() {
            show::print(&text);
        }
    }

    /// What takes the drawn lines away again.
    fn erased(&mut self) -> String {
        match std::mem::take(&mut self.drawn) {
            0 => String::new(),
            drawn => format!("\x1b[{drawn}A\x1b[J"),
        }
    }

    /// The lines of the slots that are decided since the last call.
    fn decided(&mut self) -> String {
        let is_new = |(_, slot): &(&u32, &Slot)| slot.is_over() && !slot.printed;
        let over: Vec<u32> = self.reload.slots.iter().filter(is_new).map(|(number, _)| *number).collect();
        let mut text = String::new();
        for number in &over {
            if let Some(slot) = self.reload.slots.get_mut(number) {
                slot.printed = true;
            }
            if let Some(slot) = self.reload.slots.get(number).filter(|_| !self.reload.is_long()) {
                text.push_str(&show::wrapped(&self.reload.line(*number, slot), show::columns(), INDENT));
            }
        }
        let (done, all, batch) = (self.count_printed(), self.reload.slots.len(), self.reload.batch);
        let is_batch = done / batch > (done - over.len()) / batch || done == all;
        if self.reload.is_long() && !over.is_empty() && is_batch {
            text.push_str(&format!("  {done} of {all} slots done after {}\n", self.order.took()));
        }
        text
    }

    fn count_printed(&self) -> usize {
        self.reload.slots.values().filter(|slot| slot.printed).count()
    }

    /// Prints how it ended. Returns the exit code.
    fn end(&mut self, outcome: &Outcome) -> u8 {
        let (number, took) = (self.reload.number, self.order.took());
        let (code, word, text) = match outcome {
            Outcome::Complete => (codes::OK, "complete", format!("complete after {took}\n")),
            Outcome::GivenUp(error) => (codes::GIVEN_UP, "given_up", self.given_up(error)),
            Outcome::Superseded(by) => {
                (codes::SUPERSEDED, "superseded", format!("superseded by reload {by} after {took}\n"))
            }
            Outcome::Stopping => {
                (codes::GIVEN_UP, "stopping", format!("given up after {took}: the supervisor is stopping\n"))
            }
        };
        if self.order.json {
            let error = match outcome {
                Outcome::GivenUp(error) => serde_json::to_value(error).unwrap_or_default(),
                Outcome::Complete => serde_json::Value::Null,
                Outcome::Superseded(by) => serde_json::json!({ "code": "superseded", "superseded_by": by }),
                Outcome::Stopping => serde_json::json!({ "code": "stopping" }),
            };
            print_result(&result(number, word, &error));
            return code;
        }
        let text = format!("{}{}{text}", self.erased(), self.decided());
        show::print(&text);
        code
    }

    fn given_up(&self, error: &FailedReload) -> String {
        let took = self.order.took();
        let (what, next, summary) = self.reload.failure(error);
        let width = show::columns();
        let mut text = show::wrapped(&what, width, DEEP);
        let output = error.output.iter().map(|line| format!("{}{}", " ".repeat(DEEP), show::plain(line)));
        text.extend(output.map(|line| show::wrapped(&line, width, DEEP)));
        text.push_str(&show::wrapped(&format!("given up after {took}: {summary}"), width, INDENT));
        text.push_str(&show::wrapped(&format!("see: {}", self.order.next(&next)), width, INDENT));
        text
    }

    fn timed_out(&mut self) -> u8 {
        let (number, took) = (self.reload.number, self.order.took());
        let (done, all) = (self.count_printed(), self.reload.slots.len());
        if self.order.json {
            print_result(&result(number, "timed_out", &serde_json::Value::Null));
        } else {
            show::print(&self.erased());
            let text = format!("time-out after {took}: {done} of {all} slots done; reload {number} goes on");
            self.order.say(&text);
        }
        codes::TIMED_OUT
    }
}

/// The result in JSON.
fn result(number: u32, outcome: &str, error: &serde_json::Value) -> serde_json::Value {
    let mut result = serde_json::json!({ "outcome": outcome, "reload": number });
    if !error.is_null() {
        result["error"] = error.clone();
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(slots: u32) -> Progress {
        let accepted = Accepted {
            reload: Some(13),
            slots_total: Some(slots),
            batch: Some(2),
            attempts: Some(3),
            ..Accepted::default()
        };
        Progress::new(&accepted)
    }

    fn event(name: &str) -> Event {
        Event { event: name.to_owned(), ..Event::default() }
    }

    fn of(name: &str, slot: u32, pid: i32) -> Event {
        Event { slot: Some(slot), pid: Some(pid), generation: Some(13), ..event(name) }
    }

    fn ours(name: &str) -> Event {
        Event { reload: Some(13), ..event(name) }
    }

    fn replace(progress: &mut Progress, slot: u32, old: i32, new: i32) {
        assert_eq!(progress.take(&of("worker.started", slot, new)), None);
        let ready =
            Event { replaces_pid: Some(old), after_seconds: Some(0.8), ..of("worker.ready", slot, new) };
        assert_eq!(progress.take(&ready), None);
        assert_eq!(progress.take(&Event { slot: Some(slot), ..ours("reload.slot_done") }), None);
    }

    fn ended(slot: u32, old: i32) -> Event {
        Event { drained_seconds: Some(0.3), stopped_seconds: Some(0.1), ..of("worker.ended", slot, old) }
    }

    #[test]
    fn it_is_complete_when_no_old_worker_is_left() {
        let mut progress = progress(2);
        replace(&mut progress, 0, 71, 101);
        replace(&mut progress, 1, 72, 102);
        assert_eq!(progress.take(&ended(0, 71)), None);
        assert_eq!(progress.take(&ours("reload.complete")), None, "72 serves what it has");
        assert_eq!(progress.take(&ended(1, 72)), Some(Outcome::Complete));
        let line = progress.line(0, &progress.slots[&0]);
        assert_eq!(line, "  slot 0  71 > 101  ready 0.8s  drained 0.3s  left 0.1s");
    }

    #[test]
    fn a_failure_is_known_at_once() {
        let mut progress = progress(1);
        progress.take(&of("worker.started", 0, 101));
        progress.take(&of("worker.ended", 0, 101));
        assert_eq!(progress.slots[&0].failed, 1);
        assert_eq!(progress.line(0, &progress.slots[&0]), "  slot 0  -  attempt 2 of 3");
        let error = FailedReload {
            code: "exited".to_owned(),
            slot: Some(0),
            attempts: 3,
            message: "exit 1 after 0.4s".to_owned(),
            output: Vec::new(),
        };
        let given_up = Event { error: Some(error.clone()), ..ours("reload.given_up") };
        assert_eq!(progress.take(&given_up), Some(Outcome::GivenUp(error)));
    }

    #[test]
    fn what_others_do_is_told_apart() {
        let superseded = Event { superseded_by: Some(14), ..ours("reload.superseded") };
        assert_eq!(progress(1).take(&superseded), Some(Outcome::Superseded(14)));
        let older = Event { reload: Some(12), ..event("reload.superseded") };
        assert_eq!(progress(1).take(&older), None);
        assert_eq!(progress(1).take(&event("supervisor.stopping")), Some(Outcome::Stopping));
        let mut scaled = progress(2);
        replace(&mut scaled, 0, 71, 101);
        scaled.take(&ours("reload.complete"));
        scaled.take(&ended(0, 71));
        let down = Event { from: Some(2), to: Some(1), ..event("scaled") };
        assert_eq!(scaled.take(&down), Some(Outcome::Complete), "slot 1 is gone");
    }

    #[test]
    fn a_failed_preload_command_is_named() {
        let error = FailedReload {
            code: "preload_failed".to_owned(),
            slot: None,
            attempts: 1,
            message: "the preload command exited with code 1 after 0.3s".to_owned(),
            output: Vec::new(),
        };
        let given_up = Event { error: Some(error.clone()), ..ours("reload.given_up") };
        let mut reload = progress(2);
        assert_eq!(reload.take(&given_up), Some(Outcome::GivenUp(error.clone())));
        let (what, next, summary) = reload.failure(&error);
        assert_eq!(what, "  the preload command exited with code 1 after 0.3s");
        assert_eq!((next.as_str(), summary.as_str()), ("events", "every slot keeps its worker"));
    }

    #[test]
    fn what_runs_after_a_failure_is_said() {
        let mut reload = progress(4);
        replace(&mut reload, 0, 71, 101);
        replace(&mut reload, 1, 72, 102);
        assert_eq!(reload.after_failure(), "slots 0 1 run reload 13, slots 2 3 stay with reload 12");
        let mut first = progress(1);
        first.number = 1;
        assert_eq!(first.after_failure(), "slot 0 stays as it was");
    }
}
