//! A C program whose main thread has ended with `pthread_exit`: the kernel shows it as a zombie, and it serves.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use master_process_tests::load::{self, Outcome};
use master_process_tests::traffic::pass;
use master_process_tests::{Supervisor, process};
use rustix::process::Signal;

use crate::built;
use crate::network::{self, needs};
use crate::run::{Alone, answers, load, supervised};

const PORT: u16 = 3000;

fn address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], PORT))
}

/// Two processes that answer, none of them one of these.
fn two_others(supervisor: &Supervisor, than: &BTreeSet<i32>) -> BTreeSet<i32> {
    let mut seen = BTreeSet::new();
    supervisor.until("two others answer", || {
        seen.extend(load::who(address()).filter(|pid| !than.contains(pid)));
        (seen.len() == 2).then(|| seen.clone())
    })
}

fn main_thread_has_ended(pid: i32) -> bool {
    process::stat(pid).is_some_and(|stat| stat.state == 'Z')
}

#[test]
fn a_c_program_without_its_main_thread_is_a_worker_as_any_other() {
    needs!("a_c_program_without_its_main_thread_is_a_worker_as_any_other", "cc");
    let command = [built::c("main_thread"), PORT.to_string()];
    let client = || load::get(address(), "/");
    network::enter();
    {
        let alone = Alone::start(&command, &[]);
        answers(&alone, &client);
        assert!(main_thread_has_ended(alone.pid()));
    }
    let supervisor = supervised(&["-w", "2", "--kill-timeout", "20s"], &command);
    answers(&supervisor, &client);
    let mut old = two_others(&supervisor, &BTreeSet::new());
    assert!(old.iter().copied().all(main_thread_has_ended), "{old:?}");
    let (fast, slow) = (load(4, &client), load(4, &|| load::get(address(), "/slow")));
    for count in 1..=5 {
        pass(&supervisor, &fast, 50);
        supervisor.signal(Signal::HUP);
        let complete = format!("reload {count} complete after");
        supervisor.eventually(&complete, || !supervisor.logged(&[&complete]).is_empty());
        for _ in 0..20 {
            let answer = client();
            assert!(matches!(&answer, Outcome::Ok(pid) if !old.contains(&pid.parse().expect("a pid"))));
        }
        let new = two_others(&supervisor, &old);
        supervisor
            .eventually("the old ones are gone", || old.iter().all(|pid| process::stat(*pid).is_none()));
        old = new;
    }
    for clients in [fast, slow] {
        let tally = clients.stop();
        println!("{tally}");
        assert_eq!(tally.lost() + tally.inexcusable(), 0, "{tally}");
    }
    let victim = *old.first().expect("two");
    process::signal(victim, Signal::KILL);
    supervisor.eventually("it is replaced", || !supervisor.logged(&["killed by sigkill"]).is_empty());
    let now = two_others(&supervisor, &BTreeSet::from([victim]));
    assert!(now.is_superset(&old.into_iter().filter(|pid| *pid != victim).collect()), "the other one stays");
    assert_eq!(supervisor.stop(), 0);
    assert!(now.iter().all(|pid| process::stat(*pid).is_none()), "{now:?}");
}
