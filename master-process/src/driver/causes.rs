//! Who asked for what, for the log and the events. The policy reports that it begins something, without the cause.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::policy::Supervisor;

/// The number of causes that wait for the report of the policy. There are more only if the policy refuses them.
const MOST: usize = 64;

/// What somebody asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Asked {
    /// All workers are to stop.
    Stop,
    /// A reload to this generation.
    Reload(u32),
    /// This number of workers.
    Scale(u32),
    /// Another worker in this slot.
    Restart(u32),
    /// The limits are to be paused or resumed.
    Limits(bool),
}

/// The causes of what the policy has not reported yet, oldest first.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Causes {
    waiting: VecDeque<(Asked, String)>,
    /// The reason why all workers stop. It stays: other events of the stop name it.
    stop: String,
}

/// The state that requests change, before a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Before {
    generation: u32,
    wanted: u32,
    paused: bool,
}

impl Before {
    pub(super) fn of(policy: &Supervisor) -> Before {
        Before {
            generation: policy.requested_generation(),
            wanted: policy.wanted(),
            paused: policy.is_paused(),
        }
    }
}

impl Causes {
    /// Records the cause of what has changed since `before`.
    pub(super) fn changed(&mut self, before: Before, after: Before, cause: &str) {
        let changes = [
            (before.generation != after.generation).then_some(Asked::Reload(after.generation)),
            (before.wanted != after.wanted).then_some(Asked::Scale(after.wanted)),
            (before.paused != after.paused).then_some(Asked::Limits(after.paused)),
        ];
        changes.into_iter().flatten().for_each(|asked| self.add(asked, cause.to_owned()));
    }

    /// Records a cause.
    pub(super) fn add(&mut self, asked: Asked, cause: String) {
        if asked == Asked::Stop {
            self.stop = cause;
            return;
        }
        if self.waiting.len() == MOST {
            self.waiting.pop_front();
        }
        self.waiting.push_back((asked, cause));
    }

    /// Takes the cause of what the policy reports; empty if it is unknown.
    pub(super) fn take(&mut self, asked: Asked) -> String {
        if asked == Asked::Stop {
            return self.stop.clone();
        }
        let at = self.waiting.iter().position(|(of, _)| *of == asked);
        at.and_then(|at| self.waiting.remove(at)).map(|(_, cause)| cause).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_report_finds_its_own_cause() {
        let mut causes = Causes::default();
        let before = Before { generation: 3, wanted: 2, paused: false };
        causes.changed(before, Before { generation: 4, ..before }, "HUP");
        causes.changed(before, Before { wanted: 5, ..before }, "a command");
        causes.changed(before, before, "nothing");
        causes.add(Asked::Stop, "TERM".to_owned());
        assert_eq!(causes.take(Asked::Scale(5)), "a command");
        assert_eq!(causes.take(Asked::Reload(4)), "HUP");
        assert_eq!(causes.take(Asked::Reload(4)), "");
        assert_eq!([causes.take(Asked::Stop), causes.take(Asked::Stop)], ["TERM", "TERM"]);
    }

    #[test]
    fn causes_that_are_never_reported_do_not_pile_up() {
        let mut causes = Causes::default();
        (0..1000).for_each(|slot| causes.add(Asked::Restart(slot), String::new()));
        assert_eq!(causes.waiting.len(), MOST);
    }
}
