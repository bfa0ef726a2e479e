//! The gate: the places that starts have, out of those that all supervisors of the host share.
//!
//! The policy says for which starts it needs places, and for how long. A place is tried without waiting first. If others
//! have all of them, a thread waits for one, and the loop goes on.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing::info;

use super::context::{Context, Deferred, Token};
use crate::config::Config;
use crate::policy::Event;
use crate::sys::handover::{Fd, Incoming, Outgoing};
use crate::sys::helper::{Helper, Wake};
use crate::sys::start_places::{self, OccupiedPlace, Place, Places};

/// How soon a place that this supervisor gave back is tried again by itself. Those that wait for the place have it by
/// then: the kernel gives it to the next one within microseconds on an idle machine. Without the pause, a supervisor with
/// many workers would never pass a place on.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(10);

/// The stack of the thread, which makes one system call.
const STACK: usize = 64 * 1024;

/// The places of this supervisor.
#[derive(Debug)]
pub(super) struct Gate {
    /// `None`: no places can be shared.
    places: Option<Places>,
    held: Vec<Place>,
    /// The number of starts that need no place: this supervisor holds all of them, or they cannot be used.
    beyond: usize,
    /// Waits for a place. One for all waits: each new thread would keep some pages of its stack.
    waiter: Option<Helper<OccupiedPlace, std::io::Result<Place>>>,
    /// Whether it waits.
    waits: bool,
    /// Whether it was logged that starts wait, since the last one that did not.
    said_waiting: bool,
    /// The last reason that was logged for which the places cannot be used.
    said_unusable: String,
}

/// The places as a supervisor hands them over. Their locks go with the descriptors.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct SavedGate {
    held: Vec<(Fd, u32)>,
    beyond: usize,
    said_waiting: bool,
}

impl Gate {
    pub(super) fn save(&self, out: &mut Outgoing) -> SavedGate {
        let held = self.held.iter().map(|place| place.save(out)).collect();
        SavedGate { held, beyond: self.beyond, said_waiting: self.said_waiting }
    }

    /// Goes on with them. A start that waits for a place is asked for again by [`give`](Self::give).
    pub(super) fn resume(config: &Config, saved: SavedGate, from: &mut Incoming) -> Gate {
        let mut gate = Gate::new(config);
        gate.held.extend(saved.held.into_iter().map(|place| Place::resume(place, from)));
        (gate.beyond, gate.said_waiting) = (saved.beyond, saved.said_waiting);
        gate
    }

    pub(super) fn new(config: &Config) -> Gate {
        let directory = config.start_gate.and_then(|count| Some((start_places::directory()?, count)));
        Gate {
            places: directory.map(|(directory, count)| Places::new(directory, count)),
            held: Vec::new(),
            beyond: 0,
            waiter: None,
            waits: false,
            said_waiting: false,
            said_unusable: String::new(),
        }
    }

    /// Gives places to the starts that wait for one, as far as there are any.
    pub(super) fn give(&mut self, cx: &mut Context) {
        while cx.policy.awaits_place() {
            let is_given = match self.try_place() {
                Ok(false) => self.wait(cx).map(|()| false),
                tried => tried,
            };
            match is_given {
                Ok(true) => {}
                Ok(false) => return,
                Err(why) => self.go_without(&why),
            }
            cx.event(Event::PlaceGiven);
        }
    }

    /// A start is over. Places are given back when fewer starts are in progress than places are held.
    pub(super) fn release(&mut self, cx: &mut Context) {
        match self.beyond.checked_sub(1) {
            Some(fewer) => self.beyond = fewer,
            None => drop(self.held.pop()),
        }
        if cx.policy.awaits_place() {
            cx.schedule(TRY_AGAIN_AFTER, Deferred::TryPlaces);
        }
    }

    /// The thread has a place. If no start waits any more, the place is free again at once.
    pub(super) fn read(&mut self, cx: &mut Context) {
        let _was_set = self.waiter.as_ref().map(|waiter| waiter.wake().clear());
        for waited in self.waiter.as_mut().map(Helper::take).unwrap_or_default() {
            self.waits = false;
            match waited {
                Ok(place) if cx.policy.awaits_place() => {
                    self.held.push(place);
                    cx.event(Event::PlaceGiven);
                }
                Ok(_not_needed) => {}
                Err(error) if cx.policy.awaits_place() => {
                    self.go_without(&format!("flock: {error}"));
                    cx.event(Event::PlaceGiven);
                }
                Err(_nobody_waits) => {}
            }
        }
        self.give(cx);
    }

    /// Tries to get a place, and returns whether a start may begin.
    fn try_place(&mut self) -> Result<bool, String> {
        let Some(places) = &mut self.places else {
            return Err("this user has no XDG_RUNTIME_DIR".to_owned());
        };
        // If all places are ours, nobody else starts workers, and nothing has to be kept low.
        if self.held.len() >= places.count() {
            self.beyond += 1;
            return Ok(true);
        }
        let Some(place) = places.take(&self.held).map_err(|why| why.to_string())? else {
            return Ok(false);
        };
        self.held.push(place);
        self.said_waiting = false;
        self.said_unusable.clear();
        Ok(true)
    }

    /// Has a thread wait for a place, unless one does.
    fn wait(&mut self, cx: &mut Context) -> Result<(), String> {
        let Some(places) = &mut self.places else { return Ok(()) };
        if !std::mem::replace(&mut self.said_waiting, true) {
            let count = places.count();
            info!(places = count, "starts wait for those of other supervisors (--start-gate {count})");
        }
        if !self.waits {
            let occupied = places.next_occupied(&self.held).map_err(|why| why.to_string())?;
            self.ask(cx, occupied).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    fn ask(&mut self, cx: &mut Context, occupied: OccupiedPlace) -> std::io::Result<()> {
        let waiter = match &mut self.waiter {
            Some(waiter) => waiter,
            None => {
                self.waiter.insert(Helper::new("start-gate", STACK, 1, Wake::new()?, OccupiedPlace::wait))
            }
        };
        if !waiter.ask(occupied) {
            return Err(std::io::Error::other("the thread cannot be started"));
        }
        // A watch is for one wake-up.
        cx.watch(waiter.wake().fd(), Token::Places);
        self.waits = true;
        Ok(())
    }

    /// A start begins without a place: they cannot be used.
    fn go_without(&mut self, why: &str) {
        self.beyond += 1;
        if self.said_unusable != why {
            why.clone_into(&mut self.said_unusable);
            info!("start gate unavailable: {why}; starting workers without waiting for other supervisors");
        }
    }
}
