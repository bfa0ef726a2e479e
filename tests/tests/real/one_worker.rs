//! A program of several processes, by itself and under a supervisor side by side: reloads with slow requests in flight, a
//! first process that is killed, and the end.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use master_process_tests::cgroup::Place;
use master_process_tests::load::{self, Load, Outcome};
use master_process_tests::supervisor::await_gone;
use master_process_tests::traffic::pass;
use master_process_tests::{Supervisor, TIMEOUT, await_some, eventually, process, profile};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::fastcgi;
use crate::network;
use crate::run::{Alone, Running, answers, load, words};

/// Where every program is asked.
pub(crate) const PORT: u16 = 3000;

/// How long a slow request takes, at least.
pub(crate) const SLOW: Duration = Duration::from_secs(2);

const WORKERS: usize = 2;

const RELOADS: u32 = 5;

/// Clients that ask for what is answered at once.
const FAST_CLIENTS: usize = 4;

/// As `run::OPTIONS`, but every program here finishes its requests when it is asked to stop: it needs no longer drain.
const OPTIONS: [&str; 6] = ["-w", "2", "--throttle", "100ms", "--kill-timeout", "30s"];

/// By what protocol a program is asked.
#[derive(Clone)]
pub(crate) enum Protocol {
    Http,
    /// The scripts that answer with the pid, at once and after [`SLOW`].
    FastCgi {
        fast: String,
        slow: String,
    },
}

impl Protocol {
    fn fast(&self) -> impl Fn() -> Outcome + Clone + Send + 'static {
        self.client("/", |fast, _| fast)
    }

    fn slow(&self) -> impl Fn() -> Outcome + Clone + Send + 'static {
        self.client("/slow", |_, slow| slow)
    }

    fn client(
        &self,
        path: &'static str,
        of: fn(String, String) -> String,
    ) -> impl Fn() -> Outcome + Clone + Send + 'static {
        let address = SocketAddr::from(([127, 0, 0, 1], PORT));
        let script = match self.clone() {
            Protocol::Http => None,
            Protocol::FastCgi { fast, slow } => Some(of(fast, slow)),
        };
        move || match &script {
            None => load::get(address, path),
            Some(script) => fastcgi::get_by_port(address, script),
        }
    }
}

/// A program whose every worker is several processes, and which finishes its requests when it is asked to stop.
pub(crate) struct Program {
    pub(crate) command: Vec<String>,
    pub(crate) protocol: Protocol,
    pub(crate) stop_signal: Signal,
    /// How many slow requests one worker takes at a time.
    pub(crate) capacity: usize,
    /// Where its processes accept them.
    pub(crate) port: u16,
    /// How many processes are below the first one of a worker, at least: some answer before all of them are there.
    pub(crate) below: usize,
    /// The name of a daemon that a worker starts beside its first process.
    pub(crate) daemon: Option<&'static str>,
}

impl Program {
    pub(crate) fn new(command: Vec<String>) -> Program {
        Program {
            command,
            protocol: Protocol::Http,
            stop_signal: Signal::TERM,
            capacity: 4,
            port: PORT,
            below: 1,
            daemon: None,
        }
    }
}

/// Who starts the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum User {
    Root,
    Ordinary,
}

/// What measures the workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Monitor {
    Ebpf,
    Procfs,
}

/// What a supervisor finds around it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Surroundings {
    pub(crate) has_cgroup: bool,
    pub(crate) user: User,
    pub(crate) monitor: Monitor,
}

impl Surroundings {
    /// Words that make what follows them run as the user, with what eBPF takes.
    fn launcher(self) -> Vec<String> {
        match (self.user, self.monitor) {
            (User::Root, Monitor::Ebpf | Monitor::Procfs) => Vec::new(),
            (User::Ordinary, Monitor::Procfs) => profile::launcher(Some(profile::ordinary_user()), &[]),
            (User::Ordinary, Monitor::Ebpf) => {
                let user = profile::ordinary_user();
                let own = "+bpf,+perfmon";
                let line = format!(
                    "setpriv --reuid {user} --regid {user} --clear-groups --inh-caps {own} --ambient-caps {own} \
                     --bounding-set -all,{own}"
                );
                words(&line)
            }
        }
    }

    /// A folder that the user may write to.
    fn folder(self) -> TempDir {
        let folder = tempfile::tempdir().expect("a temporary folder");
        self.give(folder.path());
        folder
    }

    fn give(self, path: &Path) {
        if self.user == User::Ordinary {
            let user = Some(profile::ordinary_user());
            std::os::unix::fs::chown(path, user, user).expect("needs! has found that this is root");
        }
    }

    /// A cgroup that is delegated to the user. `None`: none can be made here.
    fn place(self) -> Option<Place> {
        let place = Place::make(true)?;
        // As systemd does for a unit that has `User=` and `Delegate=yes`.
        let files = ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"];
        files.map(|file| place.path().join(file)).iter().for_each(|path| self.give(path));
        Some(place)
    }
}

/// The slow requests of a program by itself that were cut when its first process got a signal.
struct Cut {
    by_stop: usize,
    by_kill: usize,
}

/// Shows that a program is one worker, whatever of it is asked to stop or killed, and that it loses no request that it
/// finishes by itself. `make` writes its files into a folder. An error says what is missing for that.
pub(crate) fn show(around: Surroundings, make: fn(&Path) -> Program) -> Result<(), &'static str> {
    let place = around.has_cgroup.then(|| around.place().ok_or("no cgroup can be made")).transpose()?;
    let alone = std::thread::spawn(move || cut_alone(around, make));
    let folder = around.folder();
    let program = make(folder.path());
    let under = Under { supervisor: under_supervisor(around, &program, place.as_ref()), program };
    under.is_there();
    let source = match around.monitor {
        Monitor::Ebpf => "monitor: ebpf",
        Monitor::Procfs => "monitor: procfs",
    };
    under.supervisor.eventually(source, || !under.supervisor.logged(&[source]).is_empty());
    if let Some(place) = &place {
        assert_eq!(place.workers().len(), WORKERS, "{:?}", place.workers());
    }
    let processes = under.supervisor.survivors().len();
    under.is_reloaded();
    under.are_there(processes);
    let alone = alone.join().expect("it serves alone");
    under.loses_its_first(alone.by_kill, around.user == User::Root);
    under.are_there(processes);
    under.is_stopped(alone.by_stop);
    if let Some(place) = &place {
        assert!(place.is_empty(), "{:?}", place.workers());
    }
    Ok(())
}

fn under_supervisor(around: Surroundings, program: &Program, place: Option<&Place>) -> Supervisor {
    network::enter();
    let stop_signal = if program.stop_signal == Signal::QUIT { "QUIT" } else { "TERM" };
    let monitor = match around.monitor {
        Monitor::Ebpf => "ebpf",
        Monitor::Procfs => "procfs",
    };
    let builder =
        Supervisor::builder().args(OPTIONS).args(["--stop-signal", stop_signal, "--monitor", monitor]);
    let launcher = [place.map(Place::launcher).unwrap_or_default(), around.launcher()].concat();
    builder.wrap(launcher).command(&program.command).spawn()
}

/// What a program cuts by itself, in a network of its own.
fn cut_alone(around: Surroundings, make: fn(&Path) -> Program) -> Cut {
    network::enter();
    let cut = |signal: Option<Signal>| {
        let _ended = NetworkEnded;
        let folder = around.folder();
        let program = make(folder.path());
        // Leads a process group, as a worker and the job of a shell do.
        let leader = vec![network::path_of("setsid")];
        let command = [leader, around.launcher(), program.command.clone()].concat();
        let alone = Alone::start(&command, &[]);
        answers(&alone, &program.protocol.fast());
        alone.wait_for("all are there", || (alone.descendants().len() >= program.below).then_some(()));
        let slow = Slow::begin(&program);
        process::signal(alone.pid(), signal.unwrap_or(program.stop_signal));
        let cut = slow.cut();
        println!("alone, {signal:?}: {cut} of {} cut", program.capacity);
        cut
    };
    Cut { by_stop: cut(None), by_kill: cut(Some(Signal::KILL)) }
}

/// Dropped, it ends every process in the network of this thread: what a program by itself leaves behind need not be below
/// any process that is known.
struct NetworkEnded;

impl Drop for NetworkEnded {
    fn drop(&mut self) {
        let own = std::fs::read_link("/proc/thread-self/ns/net").ok();
        let is_in_it = |one: &process::Stat| {
            process::alive(one.pid) && std::fs::read_link(format!("/proc/{}/ns/net", one.pid)).ok() == own
        };
        eventually(TIMEOUT, "nothing of the program by itself is left", || {
            let left: Vec<process::Stat> = process::all().into_iter().filter(is_in_it).collect();
            left.iter().copied().for_each(process::kill_exactly);
            left.is_empty()
        });
    }
}

/// The inode numbers of the connections to this port that a process has accepted, and not closed.
fn accepted(port: u16) -> Vec<u64> {
    const ESTABLISHED: &str = "01";
    // Of this thread's network; proc_net_tcp in the kernel's documentation.
    let table = std::fs::read_to_string("/proc/thread-self/net/tcp").unwrap_or_default();
    let fields = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let to_port = |field: &Vec<&str>| {
        field.get(1).is_some_and(|local| local.ends_with(&format!(":{port:04X}")))
            && field.get(3) == Some(&ESTABLISHED)
    };
    let inodes = fields.filter(to_port).filter_map(|field| field.get(9)?.parse().ok());
    inodes.filter(|inode| *inode != 0).collect()
}

/// Slow requests that processes of the program have accepted.
struct Slow(Vec<JoinHandle<(Outcome, Duration)>>);

impl Slow {
    /// Returns once processes have accepted all of them, and answered none.
    fn begin(program: &Program) -> Slow {
        let Program { port, capacity, .. } = *program;
        let mut slow = Slow(Vec::new());
        await_some(TIMEOUT, "slow requests are accepted, and not answered yet", || {
            // On a busy machine the first may be answered before the last is accepted.
            if slow.0.iter().any(JoinHandle::is_finished) {
                assert_eq!(std::mem::replace(&mut slow, Slow(Vec::new())).cut(), 0, "nothing has ended yet");
            }
            if slow.0.is_empty() && accepted(port).is_empty() {
                slow.0.extend((0..capacity).map(|_| Slow::ask(&program.protocol)));
            }
            (!slow.0.is_empty() && accepted(port).len() >= capacity).then_some(())
        });
        slow
    }

    fn ask(protocol: &Protocol) -> JoinHandle<(Outcome, Duration)> {
        let client = protocol.slow();
        std::thread::spawn(move || {
            let begun = Instant::now();
            (client(), begun.elapsed())
        })
    }

    /// How many were not answered.
    fn cut(self) -> usize {
        let outcomes = self.0.into_iter().map(|client| client.join().expect("it does not panic"));
        let is_cut = |(outcome, took): &(Outcome, Duration)| {
            if matches!(outcome, Outcome::Ok(_)) {
                // Timers of the programs may be a millisecond early.
                assert!(*took + Duration::from_millis(50) > SLOW, "not slow: {took:?}");
                return false;
            }
            println!("a slow request: {outcome:?} after {took:?}");
            true
        };
        outcomes.filter(is_cut).count()
    }
}

/// The program as the workers of a supervisor.
struct Under {
    supervisor: Supervisor,
    program: Program,
}

impl Under {
    fn is_there(&self) {
        answers(&self.supervisor, &self.program.protocol.fast());
        self.who_answer();
        self.supervisor.eventually("all are there", || {
            self.firsts().into_iter().all(|first| process::descendants(first).len() >= self.program.below)
        });
    }

    fn are_there(&self, processes: usize) {
        let survivors = || self.supervisor.survivors().len();
        self.supervisor.eventually("as many as before", || survivors() == processes);
    }

    /// The first processes of the workers.
    fn firsts(&self) -> BTreeSet<i32> {
        let mut all = self.supervisor.workers();
        all.retain(|pid| !self.program.daemon.is_some_and(|name| comm(*pid).starts_with(name)));
        all
    }

    fn is_reloaded(&self) {
        let (supervisor, program) = (&self.supervisor, &self.program);
        let slow = load(program.capacity, &program.protocol.slow());
        let fast = load(FAST_CLIENTS, &program.protocol.fast());
        for count in 1..=RELOADS {
            pass(supervisor, &fast, 30);
            let old: BTreeSet<i32> = supervisor.survivors().into_iter().collect();
            reload(supervisor, count);
            let new = self.who_answer();
            assert!(new.is_disjoint(&old), "{old:?} answer after the reload: {new:?}");
            old.into_iter().for_each(await_gone);
        }
        for (name, clients) in [("slow", slow), ("fast", fast)] {
            assert!(nothing_is_lost(name, clients) > 0);
        }
    }

    /// The first process of a worker that has slow requests is killed, which by itself cuts so many of them.
    ///
    /// `queue_moves`: whether the kernel hands the connections on that wait for the killed worker, while others of it hold its
    /// listener and do not accept any more. By itself the program cuts them too.
    fn loses_its_first(&self, cut_alone: usize, queue_moves: bool) {
        let (supervisor, program) = (&self.supervisor, &self.program);
        let all_of = |first: i32| {
            let below = process::descendants(first).into_iter().map(|process| process.pid);
            std::iter::once(first).chain(below).collect::<BTreeSet<i32>>()
        };
        let (slow, first) = supervisor.until("a worker has a slow request", || {
            let slow = Slow::begin(program);
            let taken: Vec<PathBuf> =
                accepted(PORT).iter().map(|inode| format!("socket:[{inode}]").into()).collect();
            let has_one = |pid: i32| process::descriptors(pid).iter().any(|(_, file)| taken.contains(file));
            let first = self.firsts().into_iter().find(|first| all_of(*first).into_iter().any(has_one));
            let Some(first) = first else {
                // A busy machine took longer to look than they to be answered.
                assert_eq!(slow.cut(), 0);
                return None;
            };
            Some((slow, first))
        });
        let its = all_of(first);
        let fast = load(FAST_CLIENTS, &program.protocol.fast());
        pass(supervisor, &fast, 10);
        process::signal(first, Signal::KILL);
        supervisor.eventually("it is replaced", || {
            let firsts = self.firsts();
            firsts.len() == WORKERS && firsts.is_disjoint(&its)
        });
        let new = self.who_answer();
        assert!(new.is_disjoint(&its), "{its:?} answer: {new:?}");
        its.into_iter().for_each(await_gone);
        pass(supervisor, &fast, 30);
        let cut = slow.cut();
        println!("kill -9: {cut} of {} cut, {cut_alone} alone", program.capacity);
        assert!(cut <= cut_alone, "{cut} cut when its first process was killed, {cut_alone} alone");
        if cut_alone == 0 && queue_moves {
            nothing_is_lost("fast, while a first process is killed", fast);
        } else {
            // What the killed worker had accepted or what waited for it, one request of each client at most.
            let tally = fast.stop();
            println!("fast, while a first process is killed: {tally}");
            assert!(tally.lost() <= FAST_CLIENTS as u64 && tally.inexcusable() == 0, "{tally}");
        }
    }

    fn is_stopped(&self, cut_alone: usize) {
        let slow = Slow::begin(&self.program);
        assert_eq!(self.supervisor.stop(), 0);
        let cut = slow.cut();
        println!("stop: {cut} of {} cut, {cut_alone} alone", self.program.capacity);
        assert!(cut <= cut_alone, "{cut} cut when it was stopped, {cut_alone} alone");
        assert_eq!(self.supervisor.survivors(), Vec::<i32>::new());
    }

    /// The processes that answer so many requests, and more until one of each worker has.
    fn who_answer(&self) -> BTreeSet<i32> {
        const REQUESTS: u32 = 20;
        let (ours, client) = (self.supervisor.pid(), self.program.protocol.fast());
        let (mut seen, mut workers, mut answered) = (BTreeSet::new(), BTreeSet::new(), 0);
        self.supervisor.eventually("every worker answers", || {
            if let Outcome::Ok(pid) = client() {
                answered += 1;
                let pid: i32 = pid.trim().parse().expect("a pid");
                seen.insert(pid);
                let parent = |pid: &i32| process::stat(*pid).map(|stat| stat.ppid);
                let line = std::iter::successors(Some(pid), parent);
                workers.extend(line.take_while(|pid| *pid != ours && *pid > 1).last());
            }
            workers.len() >= WORKERS && answered >= REQUESTS
        });
        seen
    }
}

/// Ends a load of which every request must have been answered. How many.
fn nothing_is_lost(name: &str, clients: Load) -> u64 {
    let tally = clients.stop();
    println!("{name}: {tally}");
    assert_eq!(tally.lost() + tally.inexcusable(), 0, "{name}: {tally}");
    tally.served()
}

/// HUP, until the supervisor says that this reload of it is complete.
pub(crate) fn reload(supervisor: &Supervisor, count: u32) {
    supervisor.signal(Signal::HUP);
    let line = format!("reload {count} complete after");
    supervisor.eventually(&line, || !supervisor.logged(&[&line]).is_empty());
}

fn comm(pid: i32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default()
}
