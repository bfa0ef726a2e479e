//! Where a cgroup is delegated to the supervisor, each worker has one: whoever is in there is the worker's, whatever it
//! did to hide.

use master_process_tests::cgroup::Place;
use master_process_tests::script::{said, script};
use master_process_tests::supervisor::await_gone;
use master_process_tests::{TIMEOUT, address, load, process, skip};
use rustix::process::Signal;

/// Five chains of processes in sessions of their own, each of which lives for a moment, and one that waits.
const HIDING: &str = "
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    for chain in range(5):
        if os.fork() == 0:
            while True:
                if os.fork(): os._exit(0)
                os.setsid()
    os.execve('/bin/sleep', ['sleep', '1000'], {})
made = bound(HOST, PORT); made.listen(64)
say('ready', PID)
serve(made)";

const QUICK: [&str; 6] = ["-w", "2", "--kill-timeout", "500ms", "--throttle", "100ms"];

#[test]
fn fork_bomb_in_own_sessions_is_killed_with_its_worker() {
    let Some(place) = Place::make(true) else { skip!("no cgroup can be made") };
    let supervisor = place.start(&QUICK, script(HIDING, address::tcp()));
    said(&supervisor, 2);
    assert_eq!(place.workers().len(), 2, "{:?}", place.workers());
    let victim = supervisor.output()[0].trim_start_matches("ready ").parse().expect("a pid");
    process::signal(victim, Signal::KILL);
    said(&supervisor, 3);
    supervisor.eventually("the cgroup of the crashed one is gone", || {
        place.workers().len() == 2 && place.in_use().len() == 2
    });
    assert_eq!(supervisor.stop(), 0);
    assert!(place.is_empty(), "{:?}", place.workers());
    assert_eq!(supervisor.survivors(), Vec::<i32>::new());
}

/// Makes a chain of cgroups below its own, deeper than is allowed by default.
const DIVIDING: &str = "
own = ROOT + open('/proc/self/cgroup').read().split('0::')[1].split('\\n')[0]
at = os.open(own, os.O_RDONLY)
made = 0
try:
    while made < 600:
        if made == LIFTED_AT:
            for limit in ('depth', 'descendants'): open(f'{own}/cgroup.max.{limit}', 'w').write('max')
        os.mkdir('below', dir_fd=at)
        below = os.open('below', os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
        made += 1
except BlockingIOError: pass
say('made', made, PID)
time.sleep(1000)";

/// Kills a worker that divides its cgroup, once it has made this many, and sees that none is left.
fn a_divided_cgroup_is_removed(lifted_at: i32, made: usize) {
    let Some(place) = Place::make(true) else { skip!("no cgroup can be made") };
    let root = place.path().parent().expect("a mount").display().to_string();
    let text = format!("ROOT = '{root}'\nLIFTED_AT = {lifted_at}\n{DIVIDING}");
    let options = ["--throttle", "100ms", "--ready", "none"];
    let supervisor = place.start(&options, script(&text, address::tcp()));
    let line = said(&supervisor, 1).pop_first().expect("one");
    let worker = line.strip_prefix(&format!("made {made} ")).and_then(|pid| pid.parse().ok());
    process::signal(worker.unwrap_or_else(|| panic!("{line}")), Signal::KILL);
    said(&supervisor, 2);
    supervisor.eventually("the cgroup of the killed one is gone", || place.workers().len() == 1);
    assert_eq!(supervisor.stop(), 0);
    assert!(place.is_empty(), "{:?}", place.workers());
}

#[test]
fn depth_of_a_worker_cgroup_is_limited() {
    a_divided_cgroup_is_removed(-1, 32);
}

#[test]
fn deep_cgroup_tree_without_limits_is_removed() {
    a_divided_cgroup_is_removed(0, 600);
}

#[test]
fn processes_of_a_killed_supervisor_are_killed_by_the_next_one() {
    let Some(place) = Place::make(true) else { skip!("no cgroup can be made") };
    // One chain: an emulated machine would do little else than fork.
    let first = place.start(&QUICK, script(&HIDING.replace("range(5)", "range(1)"), address::tcp()));
    said(&first, 2);
    let is_sleeping = |pid: &i32| process::executable(*pid).is_some_and(|path| path.ends_with("sleep"));
    let hidden: Vec<i32> = first.until("both workers have a child that hides", || {
        let sleeping: Vec<i32> = first.survivors().into_iter().filter(is_sleeping).collect();
        (sleeping.len() == 2).then_some(sleeping)
    });
    first.signal(Signal::KILL);
    let _killed = first.wait_exit(TIMEOUT);
    assert!(hidden.iter().all(|pid| process::alive(*pid)), "they live on");
    let second = place.start(&QUICK, script("time.sleep(1000)", address::tcp()));
    second.eventually("it is logged", || {
        !second.logged(&["of an earlier master-process", "killed"]).is_empty()
    });
    hidden.into_iter().for_each(await_gone);
    assert_eq!(second.stop(), 0);
    assert!(place.is_empty(), "{:?}", place.workers());
}

/// Serves what `--listen` opened, and has a child that keeps it open and hides.
const HOLDING: &str = "
if os.fork() == 0:
    os.setsid()
    os.execve('/bin/sleep', ['sleep', '1000'], {})
say('ready', PID)
serve(socket.socket(fileno=3))";

#[test]
fn processes_of_a_killed_supervisor_are_killed_before_addresses_are_opened() {
    let Some(place) = Place::make(true) else { skip!("no cgroup can be made") };
    let address = address::tcp();
    let listen = ["--listen", &address.to_string(), "--kill-timeout", "500ms"];
    let first = place.start(&listen, script(HOLDING, address));
    said(&first, 1);
    let worker: i32 = first.output()[0].trim_start_matches("ready ").parse().expect("a pid");
    let child = process::children(worker)[0].pid;
    let is_sleep = || process::executable(child).is_some_and(|path| path.ends_with("sleep"));
    first.eventually("the child hides", is_sleep);
    first.signal(Signal::KILL);
    let _killed = first.wait_exit(TIMEOUT);
    await_gone(worker);
    assert!(process::alive(child), "it lives on");
    let second = place.start(&listen, script(HOLDING, address));
    let lines = said(&second, 1);
    await_gone(child);
    let answer = load::who(address).map(|pid| format!("ready {pid}"));
    assert!(answer.is_some_and(|answer| lines.contains(&answer)), "{lines:?}");
    assert_eq!(second.logged(&["1 process of an earlier master-process", "killed"]).len(), 1);
    assert_eq!(second.stop(), 0);
    assert!(place.is_empty(), "{:?}", place.workers());
}

#[test]
fn undelegated_cgroup_is_not_changed() {
    let Some(place) = Place::make(false) else { skip!("no cgroup can be made") };
    let supervisor = place.start(&["-w", "2"], script("say('ready'); time.sleep(1000)", address::tcp()));
    said(&supervisor, 1);
    supervisor.await_workers(2);
    assert!(place.is_empty(), "{:?}", place.workers());
    assert_eq!(supervisor.stop(), 0);
}
