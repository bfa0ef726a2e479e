//! A simulated kernel: effects come later than their causes, and an endless loop of actions is a failure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::config::{Batch, Limits, ReadyMode};
use crate::policy::{
    Action, AfterPreload, Before, Busiest, Event, LaunchFailure, Next, Outcome, Pss, Queue, ReadySignal,
    Report, Settings, Supervisor, Time, Usage, WorkerId,
};

/// More actions than this for one event of a few slots are an endless loop.
const MOST_ACTIONS: usize = 64;

/// The tests do not wait for deadlines further away than this.
const TIMEOUT: Duration = Duration::from_secs(1);

/// The interval of the samples.
pub(super) const INTERVAL: Duration = Duration::from_secs(2);

/// Default settings, which tests change as needed.
pub(super) fn settings(workers: u32) -> Settings {
    Settings {
        workers,
        throttle: Duration::from_secs(1),
        throttle_max: Duration::from_secs(30),
        give_up: None,
        kill_timeout: Duration::from_secs(5),
        drain: Duration::from_millis(200),
        ready: ReadyMode::Listen,
        ready_timeout: Duration::from_secs(60),
        reload_batch: Batch::All,
        reload_attempts: 3,
        start_gate: false,
        preload: false,
        limits: Limits {
            max_cpu: Some(950_000_000),
            cpu_is_default: false,
            cpu_failures: 10,
            max_memory: Some(1000),
            memory_is_default: false,
            memory_failures: 10,
            interval: INTERVAL,
            delay: Duration::from_secs(30),
        },
        signals_high_memory: true,
    }
}

/// A process in the simulated kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) generation: u32,
    pub(super) running: bool,
    pub(super) ready: bool,
    /// Out of rotation.
    pub(super) out_of_rotation: bool,
    pub(super) stopped: bool,
    pub(super) killed: bool,
}

/// A preload command in the simulated kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Command {
    pub(super) id: WorkerId,
    pub(super) generation: u32,
    pub(super) running: bool,
    pub(super) stopped: bool,
    pub(super) killed: bool,
}

/// The policy and the simulated kernel.
#[derive(Clone)]
pub(super) struct Sim {
    pub(super) policy: Supervisor,
    pub(super) now: Time,
    pub(super) processes: BTreeMap<WorkerId, Process>,
    /// The workers whose first process has ended while others are left: whether these got the stop signal, and
    /// whether they were killed.
    pub(super) remains: BTreeMap<WorkerId, (bool, bool)>,
    pub(super) notes: Vec<Report>,
    /// The preload command that runs or is being started; there is one at most.
    pub(super) command: Option<Command>,
    /// The last command that has ended, and its generation.
    ended_command: Option<(WorkerId, u32)>,
    /// The generation whose output the next workers get; `None`: of no command.
    pub(super) output: Option<u32>,
    /// The places at the gate that are free, and those that the policy has.
    pub(super) free_places: usize,
    pub(super) held_places: usize,
    /// The time and the CPU time of the last sample of each worker.
    pub(super) samples: BTreeMap<WorkerId, (Time, u64)>,
    /// The workers that got the signal about high memory use.
    pub(super) warned: Vec<WorkerId>,
    /// The workers whose proportional set size, or whose threads, the policy has requested.
    pub(super) pss_requests: Vec<WorkerId>,
    pub(super) thread_requests: Vec<WorkerId>,
    /// The result with which [`Self::sample`] answers a look; `None`: no memory is shared.
    pub(super) pss: Option<Pss>,
    /// Whether [`Self::sample`] leaves the answers to the test.
    pub(super) answers_later: bool,
    /// The workers whose queue the policy has requested.
    pub(super) queue_requests: Vec<WorkerId>,
    /// The delay of the last reported restart.
    pub(super) last_wait: Option<Duration>,
    /// The slots from this one on were removed: their workers may be stopped without a successor.
    wanted: u32,
    /// The generation of the current reload.
    target: Option<u32>,
    /// The slots that were restarted by request.
    restarted: BTreeSet<u32>,
    /// The workers that have just started: one that was cancelled before that has served no connection.
    just_launched: Option<WorkerId>,
    stopping: bool,
    /// Whether there is a preload command.
    preloads: bool,
}

impl Sim {
    pub(super) fn new(settings: Settings) -> Sim {
        let now = Time::new(Duration::from_secs(1000));
        let (wanted, preloads) = (settings.workers, settings.preload);
        let mut sim = Sim {
            policy: Supervisor::new(settings, now),
            now,
            processes: BTreeMap::new(),
            remains: BTreeMap::new(),
            notes: Vec::new(),
            command: None,
            ended_command: None,
            output: None,
            free_places: 0,
            held_places: 0,
            samples: BTreeMap::new(),
            warned: Vec::new(),
            pss_requests: Vec::new(),
            thread_requests: Vec::new(),
            pss: None,
            answers_later: false,
            queue_requests: Vec::new(),
            last_wait: None,
            wanted,
            target: None,
            restarted: BTreeSet::new(),
            just_launched: None,
            stopping: false,
            preloads,
        };
        sim.carry_out();
        sim
    }

    /// Another supervisor goes on from the state of this one, as it was written and read.
    pub(super) fn take_over(&mut self) {
        let before = format!("{:?}", self.policy);
        let written = serde_json::to_string(&self.policy.save()).expect("it can be written");
        let read = serde_json::from_str(&written).expect("it can be read");
        self.policy = Supervisor::resume(self.policy.settings.clone(), read);
        assert_eq!(format!("{:?}", self.policy), before, "nothing of it is lost");
    }

    /// Passes an event to the policy and begins the actions that it requests.
    pub(super) fn event(&mut self, event: Event) {
        match event {
            Event::Restart(slot) => _ = self.restarted.insert(slot),
            Event::Stop | Event::Hangup => self.stopping = true,
            Event::ScaleUp => self.wanted += 1,
            Event::ScaleDown if self.wanted > 1 => self.wanted -= 1,
            Event::Scale(workers) if (1..=crate::config::MAX_WORKERS).contains(&workers) => {
                self.wanted = workers
            }
            Event::ScaleDown
            | Event::Reload
            | Event::PlaceGiven
            | Event::PreloadLaunched(_)
            | Event::PreloadNotLaunched(..)
            | Event::PreloadEnded(..)
            | Event::Launched(_)
            | Event::LaunchFailed(..)
            | Event::ReadySignal(..)
            | Event::Queue(..)
            | Event::Died(_)
            | Event::Sampled(..)
            | Event::Pss(..)
            | Event::Threads(..)
            | Event::WatchesItself(..)
            | Event::DiedWithRemains(_)
            | Event::RemainsGone(_)
            | Event::RemainsUnheeding(_)
            | Event::WentIntoBackground(_)
            | Event::ToggleMonitoring
            | Event::PauseMonitoring(_)
            | Event::Scale(_) => {}
        }
        self.policy.handle(self.now, event);
        self.carry_out();
    }

    /// Advances the time, stopping at every deadline.
    pub(super) fn pass(&mut self, span: Duration) {
        let until = self.now.after(span);
        while let Some(at) = self.policy.deadline().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            self.policy.advance(self.now);
            self.carry_out();
            assert!(self.policy.deadline().is_none_or(|next| next > self.now), "a spin: due again at once");
        }
        self.now = until;
    }

    fn carry_out(&mut self) {
        let mut actions = 0;
        while let Some(action) = self.policy.next_action(self.now) {
            actions += 1;
            assert!(actions <= MOST_ACTIONS, "a spin: no end of actions, last {action:?}");
            match action {
                Action::Launch { worker, generation } => {
                    assert!(!self.stopping, "a start after the stop: {worker:?}");
                    assert!(
                        self.target.is_none_or(|target| target == generation),
                        "{worker:?} comes too late"
                    );
                    assert!(
                        self.output == self.preloads.then_some(generation),
                        "{worker:?} of generation {generation} gets the output of {:?}",
                        self.output
                    );
                    let process = Process {
                        generation,
                        running: false,
                        ready: false,
                        out_of_rotation: false,
                        stopped: false,
                        killed: false,
                    };
                    assert!(self.processes.insert(worker, process).is_none(), "{worker:?} started twice");
                }
                Action::Preload { id, generation } => {
                    assert!(!self.stopping, "a preload command after the stop");
                    assert!(self.command.is_none(), "two preload commands at a time");
                    self.command =
                        Some(Command { id, generation, running: false, stopped: false, killed: false });
                }
                Action::StopPreload(id) => {
                    let command = self.command.as_mut().filter(|command| command.id == id);
                    let command = command.expect("only a preload command that is there can be stopped");
                    assert!(command.running && !command.stopped, "the preload command is stopped in vain");
                    command.stopped = true;
                }
                Action::KillPreload(id) => {
                    let command = self.command.as_mut().filter(|command| command.id == id);
                    let command = command.expect("only a preload command that is there can be killed");
                    assert!(command.stopped && !command.killed, "the preload command is killed in vain");
                    command.killed = true;
                }
                Action::UsePreload(id) => {
                    let (ended, generation) = self.ended_command.expect("it has ended");
                    assert_eq!(ended, id, "another command has ended");
                    self.output = Some(generation);
                }
                Action::RequestPlace => assert!(self.policy.awaits_place(), "requested in vain"),
                Action::ReleasePlace => {
                    self.held_places = self.held_places.checked_sub(1).expect("only a place that it has");
                    self.free_places += 1;
                }
                Action::Target(target) => self.target = target,
                Action::AddToRotation(worker) => {
                    let process = self.processes.get_mut(&worker).expect("only a process can serve");
                    assert!(process.ready && !process.stopped, "{worker:?} is to serve and cannot");
                    process.out_of_rotation = false;
                }
                Action::RemoveFromRotation(worker) => {
                    self.check_not_missed(worker);
                    self.processes
                        .get_mut(&worker)
                        .expect("only a process can be out_of_rotation")
                        .out_of_rotation = true;
                }
                Action::CheckQueue(worker) => {
                    assert!(!self.queue_requests.contains(&worker), "{worker:?} requested twice");
                    self.queue_requests.push(worker);
                }
                Action::Stop(worker) => {
                    self.check_not_missed(worker);
                    let process = self.processes.get_mut(&worker).expect("only a process can be stopped");
                    assert!(process.running && !process.stopped, "{worker:?} stopped in vain");
                    process.stopped = true;
                }
                Action::StopRemains(worker) => {
                    let (signalled, killed) =
                        self.remains.get_mut(&worker).expect("only remaining processes are signalled");
                    assert!(!*signalled && !*killed, "what remains of {worker:?} is signalled twice");
                    *signalled = true;
                }
                Action::Kill(worker) if self.remains.contains_key(&worker) => {
                    let (signalled, killed) = self.remains.get_mut(&worker).expect("it is there");
                    assert!(*signalled && !*killed, "what remains of {worker:?} is killed in vain");
                    *killed = true;
                }
                Action::Kill(worker) => {
                    let process = self.processes.get_mut(&worker).expect("only a process can be killed");
                    assert!(process.stopped && !process.killed, "{worker:?} killed in vain");
                    process.killed = true;
                }
                Action::MeasurePss(worker) => {
                    assert!(!self.pss_requests.contains(&worker), "{worker:?}: its PSS is requested twice");
                    self.pss_requests.push(worker);
                }
                Action::LookAtThreads(worker) => {
                    assert!(
                        !self.thread_requests.contains(&worker),
                        "{worker:?}: its threads are requested twice"
                    );
                    self.thread_requests.push(worker);
                }
                Action::SignalHigh(worker) => {
                    assert!(self.processes[&worker].ready, "{worker:?} is warned before it is ready");
                    self.warned.push(worker);
                }
                Action::Report(note) => {
                    if matches!(
                        note,
                        Report::GaveUp { .. }
                            | Report::LaunchFailed { next: Next::Nothing, .. }
                            | Report::PreloadFailed { next: AfterPreload::Nothing, .. }
                    ) {
                        self.stopping = true;
                    }
                    if let Report::PreloadFailed { next: AfterPreload::Retry(wait), .. } = note {
                        self.last_wait = Some(wait);
                    }
                    if let Report::Ready { worker, .. } = note {
                        self.processes.get_mut(&worker).expect("it runs").ready = true;
                    }
                    if let Report::Died { next, .. }
                    | Report::Late { next, .. }
                    | Report::LaunchFailed { next, .. } = note
                        && let Next::Restart(wait) = next
                    {
                        self.last_wait = Some(wait);
                    }
                    self.notes.push(note);
                }
            }
        }
        self.check_slots();
    }

    /// A ready worker may be stopped only when its slot has another ready one. A worker that is not known to be ready
    /// may be serving if the slot has no other, so it also needs another worker there.
    fn check_not_missed(&self, worker: WorkerId) {
        let process = self.processes[&worker];
        let never_wanted = !process.ready && self.just_launched == Some(worker);
        if self.stopping || worker.slot >= self.wanted || process.out_of_rotation || never_wanted {
            return;
        }
        let has_successor = self.processes.iter().any(|(other, by)| {
            *other != worker
                && other.slot == worker.slot
                && (by.ready || !process.ready)
                && !by.out_of_rotation
                && !by.stopped
        });
        assert!(has_successor, "{worker:?} may serve and is stopped without a successor");
    }

    fn check_slots(&self) {
        let mut counts = BTreeMap::<u32, (u32, BTreeSet<u32>, u32)>::new();
        for (worker, process) in
            self.processes.iter().filter(|(_, process)| !process.stopped && !process.out_of_rotation)
        {
            let (serving, generations, starting) = counts.entry(worker.slot).or_default();
            if process.ready {
                *serving += 1;
            } else {
                generations.insert(process.generation);
                *starting += 1;
            }
        }
        for (slot, (serving, generations, starting)) in counts {
            // A start that was cancelled in progress is stopped as soon as the kernel answers.
            let unwanted = self.processes.iter().filter(|(worker, process)| {
                worker.slot == slot && !process.running && !self.is_newest(**worker)
            });
            assert!(serving <= 1, "slot {slot} has {serving} serving workers");
            let unwanted = u32::try_from(unwanted.count()).expect("few");
            // If no worker is known to serve, the worker from before the reload or restart may: it is kept beside the
            // new one.
            let replaced = generations.len() > 1 || self.restarted.contains(&slot);
            let kept = u32::from(serving == 0 && replaced);
            assert!(starting <= 1 + kept + unwanted, "slot {slot} has {starting} starting workers");
        }
    }

    fn is_newest(&self, worker: WorkerId) -> bool {
        self.processes.keys().filter(|other| other.slot == worker.slot).max() == Some(&worker)
    }

    // The actions of the kernel, of the programs and of other supervisors.

    /// Gives the free places to the starts that wait, and returns whether there was one.
    pub(super) fn give_places(&mut self) -> bool {
        let mut given = false;
        while self.free_places > 0 && self.policy.awaits_place() {
            given = true;
            self.give_place();
        }
        given
    }

    /// Gives a free place, whether a start waits or not.
    pub(super) fn give_place(&mut self) {
        self.free_places -= 1;
        self.held_places += 1;
        self.event(Event::PlaceGiven);
    }

    /// The preload command starts.
    pub(super) fn launch_command(&mut self) {
        let command = self.command.as_mut().expect("a command was requested");
        command.running = true;
        let id = command.id;
        self.event(Event::PreloadLaunched(id));
    }

    /// The preload command cannot be started.
    pub(super) fn fail_command(&mut self, failure: LaunchFailure) {
        let command = self.command.take().expect("a command was requested");
        self.event(Event::PreloadNotLaunched(command.id, failure));
    }

    /// The preload command ends.
    pub(super) fn end_command(&mut self, complete: bool) {
        let command = self.command.take().expect("only a command that runs can end");
        self.ended_command = Some((command.id, command.generation));
        self.event(Event::PreloadEnded(command.id, complete));
    }

    /// The preload command that waits, if any, starts and succeeds. One that got the stop signal ends.
    pub(super) fn run_command(&mut self) {
        while let Some(command) = self.command {
            if !command.running {
                self.launch_command();
            }
            if let Some(command) = self.command {
                self.end_command(!command.stopped);
            }
        }
    }

    pub(super) fn find(&self, filter: impl Fn(&Process) -> bool) -> Vec<WorkerId> {
        let mut found: Vec<_> =
            self.processes.iter().filter(|(_, process)| filter(process)).map(|(id, _)| *id).collect();
        found.sort_by_key(|worker| worker.serial);
        found
    }

    /// The processes that run and did not get the stop signal.
    pub(super) fn alive(&self) -> Vec<WorkerId> {
        self.find(|process| process.running && !process.stopped && !process.out_of_rotation)
    }

    /// Answers the requested checks of queues.
    pub(super) fn answer_queue_requests(&mut self, queue: Queue) {
        for worker in std::mem::take(&mut self.queue_requests) {
            self.event(Event::Queue(worker, queue));
        }
    }

    pub(super) fn launch(&mut self, worker: WorkerId) {
        self.processes.get_mut(&worker).expect("a launch was requested").running = true;
        self.just_launched = Some(worker);
        self.event(Event::Launched(worker));
        self.just_launched = None;
    }

    pub(super) fn fail_launch(&mut self, worker: WorkerId, failure: LaunchFailure) {
        self.processes.remove(&worker);
        self.event(Event::LaunchFailed(worker, failure));
    }

    pub(super) fn launch_all(&mut self) {
        for worker in self.find(|process| !process.running) {
            self.launch(worker);
        }
    }

    pub(super) fn make_ready(&mut self, worker: WorkerId) {
        self.processes.get_mut(&worker).expect("only a process can be ready").ready = true;
        self.event(Event::ReadySignal(worker, ReadySignal::Listen));
    }

    pub(super) fn make_all_ready(&mut self) {
        for worker in self.find(|process| process.running && !process.ready && !process.stopped) {
            self.make_ready(worker);
        }
    }

    /// A sample: the CPU time since the start, in nanoseconds, and the memory.
    pub(super) fn sample(&mut self, worker: WorkerId, cpu_ns: u64, memory: u64) {
        let before = self.samples.insert(worker, (self.now, cpu_ns)).map(|(at, had)| Before {
            ago: self.now.since(at),
            span_ns: self.now.nanoseconds_since(at),
            used_ns: cpu_ns.saturating_sub(had),
        });
        self.event(Event::Sampled(worker, Usage { cpu_ns, memory, before }));
        if !self.answers_later {
            self.answer_pss(self.pss.unwrap_or(Pss::Bytes(memory)));
        }
    }

    /// Answers the requested measurements of proportional set sizes with this.
    pub(super) fn answer_pss(&mut self, pss: Pss) {
        for worker in std::mem::take(&mut self.pss_requests) {
            self.event(Event::Pss(worker, pss));
        }
    }

    /// Answers the requested examinations of threads with this.
    pub(super) fn answer_threads(&mut self, busiest: Option<Busiest>) {
        for worker in std::mem::take(&mut self.thread_requests) {
            self.event(Event::Threads(worker, busiest));
        }
    }

    pub(super) fn die(&mut self, worker: WorkerId) {
        for requests in [&mut self.queue_requests, &mut self.pss_requests, &mut self.thread_requests] {
            requests.retain(|requested| *requested != worker);
        }
        self.processes.remove(&worker).expect("only a process can die");
        self.event(Event::Died(worker));
    }

    /// The first process of the worker ends, and others are left.
    pub(super) fn die_with_remains(&mut self, worker: WorkerId) {
        self.queue_requests.retain(|requested| *requested != worker);
        self.processes.remove(&worker).expect("only a process can die");
        self.remains.insert(worker, (false, false));
        self.event(Event::DiedWithRemains(worker));
    }

    /// The last process of the worker ends.
    pub(super) fn end_remains(&mut self, worker: WorkerId) {
        self.remains.remove(&worker).expect("only what is there can go");
        self.event(Event::RemainsGone(worker));
    }

    /// All processes that got the stop signal end.
    pub(super) fn leave_all(&mut self) {
        for worker in self.find(|process| process.running && process.stopped) {
            self.die(worker);
        }
    }

    /// All workers start and become ready, and all that got the stop signal end.
    pub(super) fn run_smoothly(&mut self) {
        for _ in 0..100 {
            let before = self.processes.clone();
            self.give_places();
            self.run_command();
            self.launch_all();
            self.make_all_ready();
            self.answer_queue_requests(Queue::None);
            self.leave_all();
            if self.processes == before
                && self.policy.deadline().is_none_or(|at| at.since(self.now) > TIMEOUT)
            {
                return;
            }
            self.pass(self.policy.deadline().map_or(Duration::ZERO, |at| at.since(self.now).min(TIMEOUT)));
        }
        panic!("does not come to rest: {:?}", self.processes);
    }

    /// Stops everything and checks that nothing is left.
    pub(super) fn finish(mut self) -> Outcome {
        if !self.stopping {
            self.event(Event::Stop);
        }
        for _ in 0..100 {
            self.run_command();
            self.launch_all();
            self.leave_all();
            for worker in self.remains.keys().copied().collect::<Vec<_>>() {
                self.end_remains(worker);
            }
            if self.processes.is_empty() {
                break;
            }
        }
        assert_eq!(self.policy.deadline(), None, "a timer is left");
        assert_eq!(self.held_places, 0, "a place is left");
        self.policy.outcome().expect("nothing is left to wait for")
    }
}
