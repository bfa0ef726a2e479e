//! A queue for each worker: the spread of connections, and the queue of a worker that crashed, stalled or stops.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, SocketAddrV4};
use std::time::Duration;

use master_process_tests::clients::{answers, waiting_clients};
use master_process_tests::gate::Gate;
use master_process_tests::load::{self, Connections, Load, Outcome};
use master_process_tests::messages::{await_failed_reload, await_listening, await_reload_complete};
use master_process_tests::script::{script, started};
use master_process_tests::supervisor::Builder;
use master_process_tests::traffic::{nothing_is_lost, pass, reload_under_load};
use master_process_tests::{
    Supervisor, TIMEOUT, address, always, eventually, fixtures, needs_root, network, process, profile, skip,
};
use rustix::process::Signal;
use rustix::time::{ClockId, clock_gettime};

/// The fixture prints that it is ready, and that it got the stop signal, just after it was so.
const BETWEEN_BEING_AND_SAYING: f64 = 0.1;

/// Why a test of moved queues cannot run.
const NO_QUEUE_MOVES: &str = "this kernel moves nothing from a queue that closes to another one";

fn version_4(address: SocketAddr) -> SocketAddrV4 {
    match address {
        SocketAddr::V4(address) => address,
        SocketAddr::V6(_) => unreachable!("the tests' addresses are of version 4"),
    }
}

/// Asserts that the workers answered, each with its share of four hundred.
fn is_even(supervisor: &Supervisor, answered: impl IntoIterator<Item = i32>) {
    let mut spread: BTreeMap<i32, u32> = BTreeMap::new();
    for pid in answered {
        *spread.entry(pid).or_default() += 1;
    }
    assert_eq!(spread.keys().copied().collect::<BTreeSet<_>>(), supervisor.workers());
    assert!(spread.values().all(|count| (60..=150).contains(count)), "{spread:?}");
}

#[test]
fn connections_are_spread_evenly_over_four_workers() {
    let address = address::tcp();
    let builder = Supervisor::builder().args(["-w", "4"]).command(fixtures::node("plain.js"));
    let supervisor = builder.env("LISTEN", address.to_string()).spawn();
    await_listening(&supervisor, 4);
    // Kept to the end: a worker that has fewer gets more is not what is asked.
    let mut kept = waiting_clients(address, 400);
    let answered = kept.iter_mut().map(|one| {
        let Outcome::Ok(body) = one.answer() else { panic!("not answered") };
        body.trim().parse().expect("a pid")
    });
    is_even(&supervisor, answered);
}

#[test]
fn connections_are_spread_evenly_after_reloads() {
    let options = ["--throttle", "10ms", "--drain", "1ms"];
    let (supervisor, address, _) = fixtures::listening_workers(4, &options, &[]);
    for _ in 0..3 {
        supervisor.reload(4);
    }
    is_even(&supervisor, answers(waiting_clients(address, 400)));
}

/// Freezes one of two workers, connects clients, and kills it. Gives the pids that answered, and those of the workers then.
fn served_after_a_crash(builder: Builder) -> (BTreeSet<i32>, BTreeSet<i32>) {
    let address = address::tcp();
    let options = ["-w", "2", "--throttle", "1s", "--throttle-max", "1s"];
    let supervisor = builder.args(options).command(fixtures::listening(address, &[])).spawn();
    let ready = supervisor.await_events(2, "ready");
    let victim = ready[0].pid;
    // What comes to it from now on waits in its queue.
    process::freeze(victim);
    eventually(TIMEOUT, "it is stopped", || process::stat(victim).is_some_and(|found| found.state == 'T'));
    let waiting = waiting_clients(address, 40);
    process::signal(victim, Signal::KILL);
    let answered: BTreeSet<i32> = answers(waiting).into_iter().collect();
    assert!(!answered.contains(&victim));
    (answered, supervisor.await_workers(2))
}

#[test]
fn queue_of_a_crashed_worker_moves_to_siblings_with_ebpf() {
    needs_root!();
    if !network::kernel_moves_queues() {
        skip!(NO_QUEUE_MOVES);
    }
    let (answered, alive) = served_after_a_crash(Supervisor::builder());
    assert!(answered.is_subset(&alive), "{answered:?} of {alive:?}");
    assert_eq!(answered.len(), 1, "the replacement starts a second later: the other has served all of them");
}

#[test]
fn queue_of_a_crashed_worker_goes_to_its_replacement_without_ebpf() {
    let user = process::is_root().then(profile::ordinary_user);
    let builder = Supervisor::builder().wrap(profile::launcher(user, &[]));
    let (answered, alive) = served_after_a_crash(builder);
    assert_eq!(answered, alive, "only the other and the replacement");
}

#[test]
fn stalled_worker_leaves_rotation_and_returns() {
    let (supervisor, address, ready) = fixtures::listening_workers(2, &[], &[]);
    let (hung, other) = (ready[0].pid, ready[1].pid);
    process::freeze(hung);
    let waiting = waiting_clients(address, 40);
    supervisor.eventually("the log names it", || !supervisor.logged(&["is not accepting on"]).is_empty());
    let named = supervisor.logged(&["is not accepting on"]);
    assert!(
        named[0].contains(&format!("pid {hung}")) && named[0].contains(&address.to_string()),
        "{named:?}"
    );
    for _ in 0..100 {
        assert_eq!(load::who(address), Some(other), "nobody meets the one that hangs");
    }
    always(Duration::from_millis(2500), "it is named once, and not replaced", || {
        supervisor.logged(&["is not accepting on"]).len() == 1 && supervisor.workers().contains(&hung)
    });
    process::signal(hung, Signal::CONT);
    let answered: BTreeSet<i32> = answers(waiting).into_iter().collect();
    assert_eq!(answered, BTreeSet::from([hung, other]), "the queued clients are served");
    supervisor.eventually("the log says that it accepts", || {
        !supervisor.logged(&["is accepting on", "again"]).is_empty()
    });
    supervisor.eventually("it gets its share again", || load::who(address) == Some(hung));
    assert_eq!(supervisor.logged(&["is accepting on", "again"]).len(), 1);
    assert_eq!(supervisor.logged(&["is not accepting on"]).len(), 1);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn slow_worker_is_not_stalled() {
    let address = address::tcp();
    let text = "
made = bound(HOST, PORT); made.listen(64)
while True:
    connection, _ = made.accept()
    reply(connection, 2)";
    let supervisor = started(&["-w", "2"], text, address);
    await_listening(&supervisor, 2);
    // Eight seconds of work for each: the queues move all the time, slowly.
    let answered = answers(waiting_clients(address, 6));
    assert_eq!(answered.len(), 6);
    assert_eq!(supervisor.logged(&["is not accepting on"]), Vec::<String>::new());
}

/// Two workers whose queues are full for twelve seconds, because more clients connect than they serve.
fn is_saturated_and_not_stalled(address: SocketAddr) {
    // Each worker serves some twenty clients a second, and more than its queue takes come at any moment.
    let text = "
made = bound(HOST, PORT); made.listen(4)
while True:
    connection, _ = made.accept()
    reply(connection, 0.05)";
    let supervisor = started(&["-w", "2"], text, address);
    await_listening(&supervisor, 2);
    let clients = Load::start(address, 40, Connections::Fresh);
    always(Duration::from_secs(12), "it accepts", || supervisor.logged(&["is not accepting on"]).is_empty());
    assert!(clients.stop().served() > 100, "it did serve");
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn saturated_worker_is_not_stalled() {
    is_saturated_and_not_stalled(address::tcp());
}

#[test]
fn saturated_worker_is_not_stalled_by_a_queue_at_another_address() {
    // Both addresses have the same port, and are of this test alone.
    let address = address::tcp();
    let neighbour = address::beside(address);
    let _never_accepts = std::net::TcpListener::bind(neighbour).expect("the address is free");
    let _waiting = waiting_clients(neighbour, 100);
    is_saturated_and_not_stalled(address);
}

/// Two reloads under load; not one request may be lost.
fn reloads_lose_nothing(supervisor: &Supervisor, address: SocketAddr) {
    supervisor.eventually("a worker answers", || load::who(address).is_some());
    supervisor.await_workers(4);
    reload_under_load(supervisor, address, 4, 2);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn reload_of_slow_workers_without_a_handler_loses_no_request() {
    // One request at a time: what waits is in the queue.
    let text = "
made = bound(HOST, PORT); made.listen(64)
while True:
    connection, _ = made.accept()
    reply(connection, 0.1)";
    let address = address::tcp();
    reloads_lose_nothing(&started(&["-w", "4"], text, address), address);
    // All at a time: what waits has been accepted.
    let address = address::tcp();
    let builder = Supervisor::builder().args(["-w", "4"]).command(fixtures::python_http());
    let builder = builder.env("LISTEN", address.to_string()).env("WORK_MS", "100");
    reloads_lose_nothing(&builder.spawn(), address);
}

/// How long after its successor was ready an old worker got the stop signal, for each slot.
fn stopped_after(supervisor: &Supervisor, workers: usize) -> Vec<f64> {
    supervisor.reload(workers);
    let of = |slot: i32| {
        // What a worker said last may be read after its end is seen.
        let at = |name: &str, reload: i32| {
            supervisor.until("the worker has said so", || {
                let events = supervisor.events_named(name);
                events
                    .iter()
                    .find(|event| event.index == slot && event.reload == reload)
                    .map(|event| event.at)
            })
        };
        at("term", 0) - at("ready", 1)
    };
    (0..i32::try_from(workers).expect("few")).map(of).collect()
}

#[test]
fn old_worker_serves_for_the_drain_time_before_the_stop_signal() {
    for load in [false, true] {
        let options = ["--drain", "1500ms", "--throttle", "1ms"];
        let (supervisor, address, _) = fixtures::listening_workers(2, &options, &[]);
        let clients = load.then(|| Load::start(address, 4, Connections::Fresh));
        let asked = stopped_after(&supervisor, 2);
        assert!(
            asked.iter().all(|after| *after >= 1.5 - BETWEEN_BEING_AND_SAYING),
            "stopped after {asked:?} s, under load: {load}"
        );
        if let Some(tally) = clients.map(Load::stop) {
            assert_eq!(tally.lost() + tally.inexcusable(), 0, "{tally}");
        }
    }
}

#[test]
fn old_worker_is_on_standby_until_its_successors_probation_ends() {
    let options = ["--drain", "1ms", "--throttle", "2s"];
    let (supervisor, _, _) = fixtures::listening_workers(2, &options, &[]);
    // Before the successors are started, which is when the throttle begins. Workers print the same clock.
    let begun = clock_gettime(ClockId::Monotonic);
    let begun = Duration::new(
        begun.tv_sec.try_into().expect("since the boot"),
        begun.tv_nsec.try_into().expect("nanoseconds"),
    );
    supervisor.reload(2);
    for stopped in supervisor.await_events(2, "term") {
        let after = stopped.at - begun.as_secs_f64();
        assert!(after >= 2.0, "slot {} stopped {after} s after the reload began", stopped.index);
    }
}

#[test]
fn ttou_and_ttin_under_load_lose_no_request() {
    let address = address::tcp();
    let builder = Supervisor::builder().args(["-w", "4"]).command(fixtures::node("plain.js"));
    let supervisor = builder.env("LISTEN", address.to_string()).env("WORK_MS", "1").spawn();
    await_listening(&supervisor, 4);
    let clients = Load::start(address, 8, Connections::Fresh);
    for (signal, workers) in [
        (Signal::TTOU, 3),
        (Signal::TTOU, 2),
        (Signal::TTIN, 3),
        (Signal::TTOU, 2),
        (Signal::TTOU, 1),
        (Signal::TTIN, 2),
    ] {
        pass(&supervisor, &clients, 100);
        supervisor.signal(signal);
        supervisor.await_workers(workers);
    }
    pass(&supervisor, &clients, 100);
    nothing_is_lost(clients);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn hundred_reloads_leave_at_most_two_sockets_a_slot() {
    const SLOTS: usize = 2;
    let options = ["--throttle", "1ms", "--drain", "1ms"];
    let (supervisor, address, _) = fixtures::listening_workers(SLOTS, &options, &[]);
    let pid = supervisor.pid();
    supervisor.await_measuring();
    for _ in 0..2 {
        supervisor.reload(SLOTS);
    }
    let before = process::descriptors(pid);
    for _ in 0..100 {
        supervisor.reload(SLOTS);
    }
    eventually(TIMEOUT, &format!("as many descriptors as before: {before:?}"), || {
        process::descriptors(pid).len() <= before.len()
    });
    let listening = process::listening(version_4(address));
    assert!(listening <= 2 * SLOTS, "{listening} sockets listen on {address}");
    assert_eq!(supervisor.stop(), 0);
    assert_eq!(process::listening(version_4(address)), 0);
}

#[test]
fn crashes_in_reloads_leave_at_most_two_sockets_a_slot() {
    const SLOTS: usize = 2;
    let options = ["--throttle", "1ms", "--throttle-max", "1ms", "--drain", "1ms"];
    let (supervisor, address, _) = fixtures::listening_workers(SLOTS, &options, &[]);
    for round in 1..=10 {
        let victims = supervisor.await_workers(SLOTS);
        supervisor.signal(Signal::HUP);
        victims.iter().take(1 + round % SLOTS).for_each(|pid| process::signal(*pid, Signal::KILL));
        supervisor.eventually("all are replaced", || {
            let workers = supervisor.workers();
            workers.len() == SLOTS && workers.is_disjoint(&victims)
        });
        supervisor.await_event("the new ones are ready", |event| {
            event.name == "ready" && event.reload == i32::try_from(round).expect("few")
        });
    }
    await_reload_complete(&supervisor, 10);
    let answered: BTreeSet<i32> = answers(waiting_clients(address, 40)).into_iter().collect();
    assert_eq!(answered, supervisor.await_workers(SLOTS), "each queue is served");
    let listening = process::listening(version_4(address));
    assert!(listening <= 2 * SLOTS, "{listening} sockets listen on {address}");
}

#[test]
fn share_mode_decides_the_number_of_sockets() {
    let address = address::tcp();
    let text = "made = bound(HOST, PORT); made.listen(64); serve(made)";
    let supervisor = Supervisor::start(&["-w", "3", "--share", "shared"], script(text, address));
    await_listening(&supervisor, 3);
    assert_eq!(process::listening(version_4(address)), 1);
    drop(supervisor);
    let address = address::tcp();
    let supervisor = Supervisor::start(&["-w", "3", "--share", "slots"], script(text, address));
    await_listening(&supervisor, 3);
    assert_eq!(process::listening(version_4(address)), 3);
}

#[test]
fn queue_of_an_old_worker_that_crashes_in_a_reload_goes_to_its_successor() {
    let address = address::tcp();
    let options = ["--throttle", "50ms", "--throttle-max", "50ms"];
    let supervisor = Supervisor::start(&options, fixtures::listening(address, &["from=1:delay=1"]));
    let old = supervisor.await_events(1, "ready")[0].pid;
    process::freeze(old);
    let mut waiting = waiting_clients(address, 5);
    supervisor.signal(Signal::HUP);
    supervisor.eventually("the new one starts", || supervisor.workers().len() == 2);
    process::signal(old, Signal::KILL);
    eventually(TIMEOUT, "the old one is dead", || !process::alive(old));
    // No worker accepts yet.
    waiting.extend(waiting_clients(address, 5));
    let answered: BTreeSet<i32> = answers(waiting).into_iter().collect();
    assert_eq!(answered, supervisor.workers(), "the successor serves all of them");
}

#[test]
fn queue_of_a_failed_new_worker_moves_to_the_old_one_with_ebpf() {
    needs_root!();
    if !network::kernel_moves_queues() {
        skip!(NO_QUEUE_MOVES);
    }
    // The new release listens, accepts no connection, and dies within the throttle.
    let text = "
made = bound(HOST, PORT); made.listen(64)
say('ready', RELOAD)
if RELOAD:
    wait()
    sys.exit(1)
serve(made)";
    let (address, gate) = (address::tcp(), Gate::new());
    let command = gate.script(text, address);
    let options = ["--throttle", "5s", "--throttle-max", "5s", "--reload-attempts", "1"];
    let supervisor = Supervisor::start(&options, command);
    await_listening(&supervisor, 1);
    let old = supervisor.await_workers(1);
    supervisor.signal(Signal::HUP);
    await_listening(&supervisor, 2);
    supervisor.await_rest();
    let waiting = waiting_clients(address, 5);
    gate.open();
    await_failed_reload(&supervisor);
    assert_eq!(supervisor.await_workers(1), old);
    let answered: BTreeSet<i32> =
        answers(waiting).into_iter().chain(answers(waiting_clients(address, 5))).collect();
    assert_eq!(answered, old, "the old one serves everybody");
}

#[test]
fn queue_of_a_removed_slot_is_reset_and_the_others_serve() {
    let options = ["--throttle", "20s", "--throttle-max", "20s"];
    let (supervisor, address, ready) = fixtures::listening_workers(2, &options, &[]);
    let last = ready.iter().find(|event| event.index == 1).expect("two slots").pid;
    process::freeze(last);
    let waiting = waiting_clients(address, 20);
    // Its slot waits for the throttle, and is taken away meanwhile.
    process::signal(last, Signal::KILL);
    eventually(TIMEOUT, "it is dead", || !process::alive(last));
    supervisor.signal(Signal::TTOU);
    supervisor.eventually("one worker from now on", || {
        !supervisor.logged(&["scaled from 2 to 1 worker"]).is_empty()
    });
    // About half of them had come to the other worker, which has answered.
    for mut client in waiting {
        let outcome = client.answer();
        assert!(matches!(outcome, Outcome::Ok(_) | Outcome::Reset | Outcome::Truncated), "{outcome:?}");
    }
    let answered: BTreeSet<i32> = answers(waiting_clients(address, 20)).into_iter().collect();
    assert_eq!(answered, supervisor.workers(), "the other one serves everybody");
}
