//! What `top` shows, and what its keys do. Nothing here knows a terminal or a socket.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};

use crate::client::{events, show};
use crate::control::{Accepted, Event, Request, Snapshot, Worker};

/// The samples that are kept of each worker: one a second, as wide as a wide terminal shows them.
const SAMPLES: usize = 120;

/// The events that are kept: more than a tall terminal shows.
const EVENTS: usize = 200;

/// A key, as far as `top` knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
    End,
    Escape,
    /// Ctrl-C.
    Interrupt,
    /// Ctrl-Z.
    Suspend,
    /// Ctrl-L.
    Redraw,
    Char(char),
}

/// What a key asks for that the model cannot do itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Nothing,
    Quit,
    Suspend,
    Redraw,
    Send(Request),
}

/// The order of the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sort {
    Slot,
    Cpu,
    Memory,
    Queue,
    Restarts,
}

impl Sort {
    fn next(self) -> Sort {
        match self {
            Sort::Slot => Sort::Cpu,
            Sort::Cpu => Sort::Memory,
            Sort::Memory => Sort::Queue,
            Sort::Queue => Sort::Restarts,
            Sort::Restarts => Sort::Slot,
        }
    }

    pub(super) fn word(self) -> &'static str {
        match self {
            Sort::Slot => "slot",
            Sort::Cpu => "cpu",
            Sort::Memory => "memory",
            Sort::Queue => "queue",
            Sort::Restarts => "restarts",
        }
    }
}

/// A request that waits for `y`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prompt {
    Reload,
    Restart { slot: u32, pid: Option<i32> },
    Scale { from: u32, to: u32 },
}

impl Prompt {
    fn request(self) -> Request {
        match self {
            Prompt::Reload => Request::Reload { follow: false },
            Prompt::Restart { slot, .. } => Request::Restart { slot, follow: false },
            Prompt::Scale { to, .. } => Request::Scale { workers: to, follow: false },
        }
    }

    /// The question.
    pub(super) fn text(self) -> String {
        match self {
            Prompt::Reload => "reload all workers? y: yes, any other key: no".to_owned(),
            Prompt::Restart { slot, pid } => {
                let pid = pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
                format!("restart slot {slot}{pid}? y: yes, any other key: no")
            }
            Prompt::Scale { from, to } if from == to => {
                format!("{from} slots, as now. + -: change it, any other key: no")
            }
            Prompt::Scale { from, to } => {
                format!("scale from {from} to {to}? y: yes, + -: change it, any other key: no")
            }
        }
    }
}

/// The last answer of the supervisor to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Notice {
    pub(super) text: String,
    pub(super) is_error: bool,
}

/// The connection to the supervisor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Link {
    Up,
    /// It has not answered for some time: it is stopped, or the host is overloaded.
    Silent,
    /// There is no supervisor, for this reason. `top` tries to connect again.
    Lost(String),
}

/// The recent samples of a worker, the newest last.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct History {
    /// In percent of one CPU.
    pub(super) cpu: VecDeque<f64>,
    /// In bytes.
    pub(super) memory: VecDeque<u64>,
}

impl History {
    fn add(&mut self, worker: &Worker) {
        if let Some(percent) = worker.cpu_percent {
            push(&mut self.cpu, percent, SAMPLES);
        }
        if let Some(bytes) = worker.memory_bytes {
            push(&mut self.memory, bytes, SAMPLES);
        }
    }
}

fn push<T>(queue: &mut VecDeque<T>, value: T, most: usize) {
    if queue.len() == most {
        queue.pop_front();
    }
    queue.push_back(value);
}

/// What identifies a row over snapshots.
pub(super) type RowId = (u32, Option<i32>);

fn id_of(worker: &Worker) -> RowId {
    (worker.slot, worker.pid)
}

/// Everything that is shown.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) link: Link,
    pub(super) snapshot: Option<Snapshot>,
    /// The rows: places in the snapshot's workers, in the order of `sort`.
    pub(super) rows: Vec<usize>,
    /// The selected one of `rows`.
    pub(super) selected: usize,
    pub(super) sort: Sort,
    pub(super) histories: BTreeMap<RowId, History>,
    /// The events as lines, the newest last.
    pub(super) events: VecDeque<String>,
    pub(super) prompt: Option<Prompt>,
    pub(super) notice: Option<Notice>,
    pub(super) shows_help: bool,
}

impl Model {
    pub(super) fn new() -> Model {
        Model {
            link: Link::Up,
            snapshot: None,
            rows: Vec::new(),
            selected: 0,
            sort: Sort::Slot,
            histories: BTreeMap::new(),
            events: VecDeque::new(),
            prompt: None,
            notice: None,
            shows_help: false,
        }
    }

    /// The worker of a row.
    pub(super) fn worker(&self, row: usize) -> Option<&Worker> {
        self.snapshot.as_ref()?.workers.get(*self.rows.get(row)?)
    }

    /// Takes in a snapshot.
    pub(super) fn update(&mut self, snapshot: Snapshot) {
        let selected = self.worker(self.selected).map(id_of);
        let mut before = std::mem::take(&mut self.histories);
        for worker in &snapshot.workers {
            let mut history = before.remove(&id_of(worker)).unwrap_or_default();
            history.add(worker);
            self.histories.insert(id_of(worker), history);
        }
        self.snapshot = Some(snapshot);
        self.link = Link::Up;
        self.arrange(selected);
    }

    /// Orders the rows, and keeps the selection on its worker, or else on its slot.
    fn arrange(&mut self, selected: Option<RowId>) {
        let workers = self.snapshot.as_ref().map(|snapshot| &snapshot.workers[..]).unwrap_or_default();
        let mut rows: Vec<usize> = (0..workers.len()).collect();
        let per_mille = |worker: &Worker| worker.cpu_percent.map(|percent| (percent * 10.0).round());
        match self.sort {
            Sort::Slot => {}
            Sort::Cpu => rows.sort_by(|one, other| {
                let key = |at: &usize| per_mille(&workers[*at]).unwrap_or(-1.0);
                key(other).total_cmp(&key(one))
            }),
            Sort::Memory => rows.sort_by_key(|at| Reverse(workers[*at].memory_bytes)),
            Sort::Queue => rows.sort_by_key(|at| Reverse(workers[*at].queue_length)),
            Sort::Restarts => rows.sort_by_key(|at| Reverse(workers[*at].restarts_total.unasked())),
        }
        let place = |wanted: &dyn Fn(&Worker) -> bool| rows.iter().position(|at| wanted(&workers[*at]));
        if let Some(id) = selected {
            let kept = place(&|worker| id_of(worker) == id).or_else(|| place(&|worker| worker.slot == id.0));
            self.selected = kept.unwrap_or(self.selected);
        }
        self.selected = self.selected.min(rows.len().saturating_sub(1));
        self.rows = rows;
    }

    /// Takes in an event.
    pub(super) fn add_event(&mut self, event: &Event) {
        push(&mut self.events, show::plain(&events::line(event)), EVENTS);
    }

    /// Forgets what belongs to the previous connection.
    pub(super) fn reconnected(&mut self) {
        self.events.clear();
        self.notice = None;
        self.link = Link::Up;
    }

    /// The connection is gone.
    pub(super) fn lost(&mut self, why: &str) {
        self.link = Link::Lost(show::plain(why));
        self.prompt = None;
        self.notice = None;
    }

    /// A request was accepted.
    pub(super) fn accepted(&mut self, accepted: &Accepted) {
        let text = if let Some(number) = accepted.reload {
            format!("reload {number} has begun: {} slots", accepted.slots_total.unwrap_or_default())
        } else if let Some((from, to)) = accepted.from.zip(accepted.to) {
            format!("scaling from {from} to {to}")
        } else if let Some(slot) = accepted.slot {
            format!("restarting slot {slot}")
        } else if let Some(paused) = accepted.limits_paused {
            format!("limits {}", if paused { "paused" } else { "resumed" })
        } else {
            "accepted".to_owned()
        };
        self.notice = Some(Notice { text, is_error: false });
    }

    /// A request was refused.
    pub(super) fn refused(&mut self, why: &str) {
        self.notice = Some(Notice { text: show::plain(why), is_error: true });
    }

    /// A key was pressed. `page` is the number of rows on the screen.
    pub(super) fn press(&mut self, key: Key, page: usize) -> Action {
        if key == Key::Interrupt {
            return Action::Quit;
        }
        if key == Key::Suspend {
            return Action::Suspend;
        }
        if key == Key::Redraw {
            return Action::Redraw;
        }
        if let Some(prompt) = self.prompt.take() {
            return self.answer(prompt, key);
        }
        self.notice = None;
        if std::mem::take(&mut self.shows_help) && key != Key::Char('q') {
            return Action::Nothing;
        }
        let last = self.rows.len().saturating_sub(1);
        match key {
            Key::Up | Key::Char('k') => self.selected = self.selected.saturating_sub(1),
            Key::Down | Key::Char('j') => self.selected = (self.selected + 1).min(last),
            Key::PageUp => self.selected = self.selected.saturating_sub(page.max(1)),
            Key::PageDown => self.selected = (self.selected + page.max(1)).min(last),
            Key::Home => self.selected = 0,
            Key::End => self.selected = last,
            Key::Char('q') => return Action::Quit,
            Key::Char('?' | 'h') => self.shows_help = true,
            Key::Char('s') => {
                let selected = self.worker(self.selected).map(id_of);
                self.sort = self.sort.next();
                self.arrange(selected);
            }
            Key::Char(key @ ('R' | 'r' | '+' | '=' | '-' | 'p')) => return self.steer(key),
            Key::Char(_) | Key::Escape | Key::Interrupt | Key::Suspend | Key::Redraw => {}
        }
        Action::Nothing
    }

    /// A key that changes something of the supervisor. Only a pause, which the same key ends, needs no `y`.
    fn steer(&mut self, key: char) -> Action {
        let Some(snapshot) = self.snapshot.as_ref().filter(|_| self.link == Link::Up) else {
            self.refused("not possible: no answer from the supervisor");
            return Action::Nothing;
        };
        let wanted = snapshot.slots_wanted;
        let prompt = match key {
            'R' => Some(Prompt::Reload),
            'r' => self.worker(self.selected).map(|worker| Prompt::Restart {
                slot: worker.slot,
                // A restart replaces the newest worker of the slot, whichever row is selected.
                pid: snapshot
                    .workers
                    .iter()
                    .find(|first| first.slot == worker.slot)
                    .and_then(|first| first.pid),
            }),
            'p' => return Action::Send(Request::Pause(!snapshot.limits_paused)),
            '-' => (wanted > 1).then(|| Prompt::Scale { from: wanted, to: wanted - 1 }),
            _plus => Some(Prompt::Scale { from: wanted, to: wanted + 1 }),
        };
        match prompt {
            Some(prompt) => self.prompt = Some(prompt),
            None if key == '-' => self.refused("not possible: at least one worker"),
            None => {}
        }
        Action::Nothing
    }

    fn answer(&mut self, prompt: Prompt, key: Key) -> Action {
        match (prompt, key) {
            (Prompt::Scale { from, to }, Key::Char(sign @ ('+' | '=' | '-'))) => {
                let to = if sign == '-' { to.saturating_sub(1).max(1) } else { to.saturating_add(1) };
                self.prompt = Some(Prompt::Scale { from, to });
                Action::Nothing
            }
            (Prompt::Scale { from, to }, Key::Char('y')) if from == to => Action::Nothing,
            (prompt, Key::Char('y')) => Action::Send(prompt.request()),
            _no => Action::Nothing,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::client::status;

    /// The instance of the design's example, and two events.
    pub(crate) fn example() -> Model {
        let mut model = Model::new();
        model.update(status::tests::example());
        for (seq, name) in [(230, "worker.hung"), (231, "worker.started")] {
            let event = Event {
                time: "2026-11-29T10:48:18.961Z".to_owned(),
                seq,
                event: name.to_owned(),
                slot: Some(2),
                ..Event::default()
            };
            model.add_event(&event);
        }
        model
    }

    fn pids(model: &Model) -> Vec<Option<i32>> {
        (0..model.rows.len()).map(|row| model.worker(row).expect("a row").pid).collect()
    }

    fn press(model: &mut Model, keys: &str) -> Action {
        keys.chars().map(|key| model.press(Key::Char(key), 3)).last().expect("a key")
    }

    #[test]
    fn what_changes_the_supervisor_needs_a_y() {
        let reload = Action::Send(Request::Reload { follow: false });
        let restart = Action::Send(Request::Restart { slot: 2, follow: false });
        let scale = |workers| Action::Send(Request::Scale { workers, follow: false });
        for (keys, action) in [
            ("R", Action::Nothing),
            ("Ry", reload),
            ("Rn", Action::Nothing),
            ("RR", Action::Nothing),
            ("Rny", Action::Nothing),
            ("jjr", Action::Nothing),
            ("jjry", restart),
            ("+y", scale(5)),
            ("=++y", scale(7)),
            ("-y", scale(3)),
            ("--------y", scale(1)),
            ("+-y", Action::Nothing),
            ("+q", Action::Nothing),
            ("p", Action::Send(Request::Pause(true))),
            ("q", Action::Quit),
            ("?q", Action::Quit),
            ("y", Action::Nothing),
        ] {
            assert_eq!(press(&mut example(), keys), action, "{keys}");
        }
        let mut model = example();
        press(&mut model, "R");
        assert_eq!(model.press(Key::Escape, 3), Action::Nothing);
        assert_eq!(model.prompt, None);
        press(&mut model, "R");
        assert_eq!(model.press(Key::Interrupt, 3), Action::Quit, "Ctrl-C is no answer");
    }

    #[test]
    fn without_a_supervisor_no_key_asks_it_for_anything() {
        for keys in ["Ry", "ry", "+y", "p"] {
            let mut model = example();
            model.lost("it has ended");
            assert_eq!(press(&mut model, keys), Action::Nothing, "{keys}");
        }
        let mut model = example();
        press(&mut model, "R");
        model.lost("it has ended");
        assert_eq!(press(&mut model, "y"), Action::Nothing, "the question is gone with it");
    }

    #[test]
    fn the_selection_stays_on_its_worker() {
        let mut model = example();
        press(&mut model, "jjj");
        assert_eq!(model.worker(model.selected).and_then(|worker| worker.pid), Some(27695));
        press(&mut model, "s");
        assert_eq!(pids(&model)[..2], [Some(27671), Some(27672)], "by CPU");
        assert_eq!(model.worker(model.selected).and_then(|worker| worker.pid), Some(27695));
        // Its worker is gone, its slot is not.
        let mut snapshot = status::tests::example();
        snapshot.workers.retain(|worker| worker.pid != Some(27695));
        model.update(snapshot.clone());
        assert_eq!(model.worker(model.selected).and_then(|worker| worker.pid), Some(27402));
        snapshot.workers.truncate(1);
        model.update(snapshot.clone());
        assert_eq!(model.selected, 0);
        snapshot.workers.clear();
        model.update(snapshot);
        assert!(model.worker(model.selected).is_none());
        press(&mut model, "jkry");
    }

    #[test]
    fn rows_are_sorted_with_the_most_first() {
        let mut model = example();
        let mut first = Vec::new();
        for _ in 0..5 {
            press(&mut model, "s");
            first.push((model.sort, pids(&model)[0]));
        }
        let expected = [
            (Sort::Cpu, Some(27671)),
            (Sort::Memory, Some(27402)),
            (Sort::Queue, Some(27690)),
            (Sort::Restarts, Some(27695)),
            (Sort::Slot, Some(27671)),
        ];
        assert_eq!(first, expected);
    }

    #[test]
    fn moving_stays_within_the_rows() {
        let mut model = example();
        for (key, row) in [
            (Key::Up, 0),
            (Key::PageDown, 3),
            (Key::PageDown, 4),
            (Key::Down, 4),
            (Key::PageUp, 1),
            (Key::End, 4),
            (Key::Home, 0),
        ] {
            model.press(key, 3);
            assert_eq!(model.selected, row, "{key:?}");
        }
    }

    #[test]
    fn a_history_is_of_one_worker_and_bounded() {
        let mut model = example();
        for _ in 0..2 * SAMPLES {
            model.update(status::tests::example());
        }
        assert_eq!(model.histories[&(0, Some(27671))].cpu.len(), SAMPLES);
        let mut snapshot = status::tests::example();
        snapshot.workers[0].pid = Some(1);
        model.update(snapshot);
        assert_eq!(model.histories[&(0, Some(1))].cpu.len(), 1);
        assert!(!model.histories.contains_key(&(0, Some(27671))));
        for _ in 0..2 * EVENTS {
            model.add_event(&Event::default());
        }
        assert_eq!(model.events.len(), EVENTS);
    }
}
