//! Invariants of all histories, and single cases by name.

use std::time::Duration;

use super::binding::MAX_BOUND;
use super::simulation::{Simulation, Step, request};
use super::{Bind, BindRequest, Core, Effect, Migration, STARTUP};
use crate::policy::{Time, WorkerId};
use crate::share::address::{Key, Protocol};

const BOTH: [Migration; 2] = [Migration::Moves, Migration::Resets];

const STEPS: [Step; 15] = [
    Step::Listen(0),
    Step::Listen(1),
    Step::EnterRotation(0),
    Step::EnterRotation(1),
    Step::Stop(0),
    Step::Die(0),
    Step::Die(1),
    Step::Crash(0),
    Step::Close(0),
    Step::Close(1),
    Step::ShutDown(0),
    Step::ShutDown(1),
    Step::Connect,
    Step::Accept,
    Step::Pass,
];

fn walk(simulation: &Simulation, depth: u32, count: &mut u64) {
    *count += 1;
    if depth == 0 {
        return simulation.clone().finish();
    }
    for step in STEPS {
        let mut next = simulation.clone();
        if next.step(step) {
            walk(&next, depth - 1, count);
        }
    }
}

#[test]
fn in_short_histories_connections_go_to_served_sockets_only() {
    for migration in BOTH {
        let mut count = 0;
        walk(&Simulation::new(migration), 5, &mut count);
        assert!(count > 10_000, "{count} histories");
    }
}

#[test]
fn in_long_histories_connections_go_to_served_sockets_only() {
    let mut random = 1u64;
    for round in 0..2_000 {
        let mut simulation = Simulation::new(BOTH[round % 2]);
        for _ in 0..60 {
            // xorshift: the same pseudo-random numbers in each run.
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let step = STEPS[usize::try_from(random % STEPS.len() as u64).expect("small")];
            simulation.step(step);
        }
        simulation.finish();
    }
}

#[test]
fn in_short_histories_after_a_restart_connections_go_to_served_sockets_only() {
    for migration in BOTH {
        let mut count = 0;
        walk(&Simulation::restored(migration, &[0, 1, 0]), 4, &mut count);
        assert!(count > 1_000, "{count} histories");
    }
}

#[test]
fn all_kept_listeners_get_connections_until_workers_listen() {
    for migration in BOTH {
        assert_eq!(Simulation::restored(migration, &[0, 1, 2]).selected(), [1000, 1001, 1002]);
    }
}

#[test]
fn the_queues_of_kept_listeners_are_lost_to_nobody() {
    for migration in BOTH {
        let mut simulation = Simulation::restored(migration, &[0, 1]);
        let steps = [
            Step::Connect,
            Step::Listen(1),
            Step::EnterRotation(1),
            Step::Connect,
            Step::Listen(0),
            Step::EnterRotation(0),
            Step::Connect,
            Step::Pass,
            Step::Accept,
            Step::Pass,
        ];
        for step in steps {
            assert!(simulation.step(step), "{step:?}");
        }
        assert_eq!((simulation.lost, simulation.waiting(), simulation.members()), (0, 0, 2), "{migration:?}");
    }
}

#[test]
fn a_worker_takes_the_kept_listener_of_its_slot_though_it_is_empty_where_queues_do_not_move() {
    let mut simulation = Simulation::restored(Migration::Resets, &[0]);
    assert!(simulation.step(Step::Listen(0)));
    assert_eq!((simulation.members(), simulation.selected()), (1, vec![1000]));
    // The next one takes only what waits.
    assert!(simulation.step(Step::Die(0)) && simulation.step(Step::Listen(0)));
    assert_ne!(simulation.selected(), [1000]);
}

fn run(migration: Migration, steps: &[Step]) -> Simulation {
    let mut simulation = Simulation::new(migration);
    for step in steps {
        assert!(simulation.step(*step), "{step:?}");
    }
    simulation
}

#[test]
fn connections_of_a_crashed_worker_go_to_its_siblings_where_the_kernel_moves_queues() {
    use Step::{Accept, Connect, Die, EnterRotation, Listen};
    let steps = [Listen(0), Listen(1), EnterRotation(0), Connect, EnterRotation(1), Die(0)];
    let simulation = run(Migration::Moves, &steps);
    assert_eq!((simulation.members(), simulation.waiting(), simulation.lost), (1, 1, 0));
    let simulation = run(Migration::Moves, &[&steps[..], &[Accept]].concat());
    assert_eq!(simulation.waiting(), 0, "the sibling has accepted it");
}

#[test]
fn connections_of_a_crashed_worker_wait_for_its_successor_where_the_kernel_moves_no_queues() {
    use Step::{Accept, Connect, Die, EnterRotation, Listen, Pass};
    let steps = [
        Listen(0),
        Listen(1),
        EnterRotation(0),
        Connect,
        EnterRotation(1),
        Die(0),
        Pass,
        Listen(0),
        EnterRotation(0),
        Accept,
    ];
    let simulation = run(Migration::Resets, &steps);
    assert_eq!((simulation.members(), simulation.waiting(), simulation.lost), (2, 0, 0));
}

#[test]
fn connections_that_arrive_without_a_worker_wait_for_the_next_one() {
    use Step::{Accept, Connect, Die, EnterRotation, Listen, Pass};
    for migration in BOTH {
        let steps = [
            Listen(0),
            EnterRotation(0),
            Connect,
            Die(0),
            Connect,
            Pass,
            Listen(0),
            EnterRotation(0),
            Accept,
            Pass,
        ];
        let simulation = run(migration, &steps);
        assert_eq!((simulation.members(), simulation.waiting(), simulation.lost), (1, 0, 0), "{migration:?}");
    }
}

#[test]
fn a_closed_listener_is_dropped_at_once_with_siblings_and_after_a_grace_without() {
    use Step::{Close, EnterRotation, Listen, Pass};
    for migration in BOTH {
        let two = run(migration, &[Listen(0), Listen(1), EnterRotation(0), EnterRotation(1), Close(0)]);
        assert_eq!(two.members(), 1);
        let mut one = run(migration, &[Listen(0), EnterRotation(0), Close(0)]);
        assert_eq!(one.members(), 1, "its worker may be about to end");
        one.step(Pass);
        assert_eq!(one.members(), 0);
    }
}

fn key(text: &str, protocol: Protocol) -> Key {
    Key::Inet { protocol, address: text.parse().expect("an address"), v6only: false, interface: 0 }
}

fn tcp(text: &str) -> Key {
    key(text, Protocol::Tcp)
}

fn at(seconds: u64) -> Time {
    Time::new(Duration::from_secs(seconds))
}

fn core_with(workers: u64) -> Core {
    let mut core = Core::new(Migration::Moves);
    for serial in 1..=workers {
        core.started(WorkerId { slot: u32::try_from(serial).expect("small"), serial }, 0);
    }
    core
}

fn own(reuseport: bool) -> Bind {
    Bind::Own { reuseport, enable: Vec::new() }
}

#[test]
fn a_second_socket_of_one_worker_gets_what_it_would_get_alone() {
    let mut core = core_with(1);
    let port = tcp("127.0.0.1:80");
    assert_eq!(core.bind(at(1), request(1, 10, &port, false, false)), own(false));
    assert_eq!(core.bind(at(1), request(1, 11, &port, false, false)), Bind::Check(vec![10]));
    // It is still open: the kernel decides as without a supervisor.
    assert_eq!(core.bind(at(1), request(1, 11, &port, false, true)), own(false));
    core.released(1, 11);
    core.released(1, 10);
    assert_eq!(core.bind(at(1), request(1, 12, &port, false, false)), own(false), "it was closed");
}

#[test]
fn sockets_of_one_worker_join_only_if_the_program_wants_it_of_all() {
    let mut core = core_with(2);
    let port = tcp("127.0.0.1:80");
    assert_eq!(core.bind(at(1), request(2, 20, &port, false, false)), own(false));
    assert!(core.activated(at(1), 2, 20, &port));
    assert_eq!(core.bind(at(1), request(1, 10, &port, true, false)), own(true));
    assert_eq!(core.bind(at(1), request(1, 11, &port, true, true)), own(true));
    assert_eq!(core.bind(at(1), request(1, 12, &port, false, true)), own(false));
    assert_eq!(
        core.bind(at(1), request(2, 21, &port, true, true)),
        Bind::Refuse(98),
        "its first is not for sharing"
    );
}

#[test]
fn of_many_udp_sockets_of_one_worker_only_the_latest_are_looked_at_before_its_next() {
    let mut core = core_with(2);
    let port = key("127.0.0.1:53", Protocol::Udp);
    for id in 100..200 {
        assert_eq!(core.bind(at(1), request(1, id, &port, false, true)), own(false));
    }
    let latest: Vec<u64> = (192..200).collect();
    assert_eq!(core.bind(at(1), request(1, 200, &port, false, false)), Bind::Check(latest));
    // If the program itself sets `SO_REUSEPORT`, the decision depends on each of them.
    let all: Vec<u64> = (100..200).collect();
    assert_eq!(core.bind(at(1), request(1, 200, &port, true, false)), Bind::Check(all.clone()));
    // With a sibling, whether the next one joins depends on each of them.
    let Bind::Own { reuseport: true, enable } = core.bind(at(1), request(2, 300, &port, false, false)) else {
        panic!("a sibling joins")
    };
    assert_eq!(enable, all);
    assert_eq!(core.bind(at(1), request(1, 200, &port, false, false)), Bind::Check(all));
}

#[test]
fn workers_of_a_supervisor_that_is_a_worker_share_with_one_another() {
    let mut core = core_with(1);
    let port = tcp("127.0.0.1:80");
    let inner = |id, inner, checked| BindRequest { inner, ..request(1, id, &port, false, checked) };
    assert_eq!(core.bind(at(1), inner(10, 7, false)), own(false));
    let joins = Bind::Own { reuseport: true, enable: vec![10] };
    assert_eq!(core.bind(at(1), inner(20, 8, false)), joins);
    assert_eq!(core.bind(at(1), inner(21, 8, false)), Bind::Check(vec![20]), "and not with themselves");
}

#[test]
fn two_sockets_of_one_worker_that_are_bound_before_either_listens_do_not_both_listen() {
    let mut core = core_with(1);
    let port = tcp("127.0.0.1:80");
    for id in [10, 11] {
        assert_eq!(core.bind(at(1), request(1, id, &port, false, true)), own(false));
    }
    assert!(core.listeners_in_the_way(1, 10, &port).is_empty());
    assert!(core.activated(at(1), 1, 10, &port));
    assert_eq!(core.listeners_in_the_way(1, 11, &port), [10]);
    core.released(1, 10);
    assert!(core.listeners_in_the_way(1, 11, &port).is_empty(), "it was closed");
}

#[test]
fn an_address_that_its_worker_binds_with_another_socket_is_free_at_once() {
    for migration in BOTH {
        let mut core = core_with(2);
        core.set_migration(migration);
        let port = tcp("127.0.0.1:80");
        for (serial, id) in [(1, 10), (2, 20)] {
            let _own = core.bind(at(1), request(serial, id, &port, false, false));
            assert!(core.activated(at(1), serial, id, &port));
            core.set_in_rotation(at(1), serial, true);
        }
        let _selected = core.reconcile(at(1));
        // Also if it was found closed before and is within its grace period.
        core.closed(at(1), 1, 10);
        core.released(1, 10);
        assert!(core.reconcile(at(1)).contains(&Effect::Close(10)), "{migration:?}");
    }
    let mut core = core_with(1);
    let port = tcp("127.0.0.1:80");
    let _own = core.bind(at(1), request(1, 10, &port, false, false));
    assert!(core.activated(at(1), 1, 10, &port));
    core.closed(at(1), 1, 10);
    assert_eq!(core.reconcile(at(1)), [], "alone it is kept for a moment");
    core.released(1, 10);
    assert!(core.reconcile(at(1)).contains(&Effect::Close(10)));
}

#[test]
fn siblings_of_an_overlapping_address_are_joined() {
    let mut core = core_with(2);
    assert_eq!(core.bind(at(1), request(1, 10, &tcp("0.0.0.0:80"), false, false)), own(false));
    let joins = Bind::Own { reuseport: true, enable: vec![10] };
    assert_eq!(core.bind(at(1), request(2, 20, &tcp("127.0.0.1:80"), false, false)), joins);
    assert_eq!(
        core.bind(at(1), request(2, 21, &key("127.0.0.1:80", Protocol::Udp), false, false)),
        own(false)
    );
}

#[test]
fn a_new_address_of_a_settled_worker_is_not_shared() {
    let mut core = core_with(2);
    let (known, late) = (tcp("127.0.0.1:80"), tcp("127.0.0.1:30000"));
    assert_eq!(core.bind(at(1), request(1, 10, &known, false, false)), own(false));
    assert!(core.activated(at(1), 1, 10, &known));
    core.set_in_rotation(at(1), 1, true);
    assert_eq!(core.bind(at(2), request(1, 11, &late, false, false)), own(false), "it may still be starting");
    core.released(1, 11);
    let past_startup = at(1).after(STARTUP);
    assert_eq!(core.bind(past_startup, request(1, 11, &late, false, false)), Bind::Private);
    assert_eq!(core.bind(past_startup, request(1, 12, &late, false, false)), Bind::Private);
    let mut effects = core.reconcile(past_startup);
    effects.retain(|effect| !matches!(effect, Effect::Close(_)));
    assert_eq!(effects, [Effect::Unshared(WorkerId { slot: 1, serial: 1 }, late.clone())], "once");
    assert_eq!(
        core.bind(past_startup, request(2, 20, &late, false, false)),
        own(false),
        "one that starts may share it"
    );
    let wildcard = tcp("0.0.0.0:80");
    let over = request(1, 14, &wildcard, false, false);
    assert_eq!(
        core.bind(past_startup, over),
        Bind::Check(vec![10]),
        "sockets that it may have closed are checked first"
    );
    core.released(1, 10);
    let _closed = core.reconcile(past_startup);
    assert_eq!(
        core.bind(past_startup, request(1, 13, &known, false, false)),
        own(false),
        "and what is known is shared"
    );
}

#[test]
fn a_socket_closed_by_the_rest_of_a_worker_is_dropped_only_where_its_queue_moves() {
    for (migration, is_closed) in [(Migration::Moves, true), (Migration::Resets, false)] {
        let mut core = Core::new(migration);
        let key = Key::tcp("127.0.0.1:80".parse().expect("an address"), false);
        for (slot, serial, id) in [(0, 1, 10), (1, 2, 20)] {
            core.started(WorkerId { slot, serial }, 0);
            assert!(matches!(core.bind(at(1), request(serial, id, &key, false, false)), Bind::Own { .. }));
            assert!(core.activated(at(1), serial, id, &key));
            core.set_in_rotation(at(1), serial, true);
        }
        let _selected = core.reconcile(at(1));
        core.set_in_rotation(at(2), 1, false);
        assert!(!core.reconcile(at(2)).contains(&Effect::Close(10)), "others of its tree have it");
        core.set_waiting(10, true);
        core.left(1, 10);
        assert_eq!(core.reconcile(at(2)).contains(&Effect::Close(10)), is_closed, "{migration:?}");
        assert_eq!(core.awaited_slots().is_empty(), is_closed);
        core.died(1, false);
        let _rest = core.reconcile(at(3));
        assert_eq!(core.socket(10).is_none(), is_closed);
    }
}

#[test]
fn a_worker_that_binds_forever_uses_bounded_memory() {
    let mut core = core_with(1);
    for port in 1..10_000u16 {
        let key = Key::tcp(([127, 0, 0, 1], port).into(), false);
        assert_eq!(core.bind(at(1), request(1, port.into(), &key, false, false)), own(false));
    }
    assert_eq!(core.sockets().len(), MAX_BOUND);
    let forgotten = core.reconcile(at(1));
    assert_eq!(forgotten.len(), 9_999 - MAX_BOUND);
    core.died(1, false);
    assert!(core.sockets().is_empty());
}

#[test]
fn a_continued_bind_is_waited_for_up_to_a_limit_while_its_thread_may_be_in_it() {
    let mut core = Core::new(Migration::Moves);
    let start = Time::new(Duration::from_secs(100));
    let key = Key::tcp("127.0.0.1:80".parse().expect("an address"), false);
    core.started(WorkerId { slot: 0, serial: 1 }, 0);
    assert!(matches!(core.bind(start, request(1, 7, &key, false, false)), Bind::Own { .. }));
    let fresh =
        |after: u64, in_bind: bool| core.is_fresh(start.after(Duration::from_millis(after)), 7, || in_bind);
    assert!(fresh(49, false), "the kernel may not have come to it");
    assert!(!fresh(50, false), "it failed");
    assert!(fresh(50, true), "its thread waits for a CPU");
    assert!(fresh(4999, true));
    assert!(!fresh(5000, true), "it is stopped");
    assert!(!core.is_fresh(start, 8, || true), "no worker has bound it");
}

#[test]
fn the_first_address_of_a_slow_program_is_shared() {
    let mut core = Core::new(Migration::Moves);
    let start = Time::new(Duration::from_secs(100));
    for (slot, serial) in [(0, 1), (1, 2)] {
        core.started(WorkerId { slot, serial }, 0);
        core.set_in_rotation(start, serial, true);
    }
    let late = start.after(STARTUP * 2);
    let (first, other) = (
        Key::tcp("127.0.0.1:80".parse().expect("an address"), false),
        Key::tcp("127.0.0.1:81".parse().expect("an address"), false),
    );
    assert!(matches!(core.bind(late, request(1, 7, &first, false, false)), Bind::Own { .. }));
    assert!(core.activated(late, 1, 7, &first));
    // Its sibling shares that address. Any bind beyond it is a search for a free port.
    assert_eq!(
        core.bind(late, request(2, 8, &first, false, false)),
        Bind::Own { reuseport: true, enable: Vec::new() }
    );
    assert_eq!(core.bind(late, request(1, 9, &other, false, false)), Bind::Private);
}
