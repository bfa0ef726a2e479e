//! Clients that ask at once and wait for their answers: what is in a queue, and who takes it.

use crate::load::{Kept, Outcome, Target};

/// Connections that have asked, and wait in some queue if nobody takes them.
///
/// # Panics
/// When there is no queue.
#[must_use]
pub fn waiting_clients(target: impl Into<Target>, count: usize) -> Vec<Kept> {
    let target = target.into();
    let one = |_| {
        let mut kept = Kept::open(target.clone()).expect("a queue takes it");
        kept.ask().expect("the connection is there");
        kept
    };
    (0..count).map(one).collect()
}

/// The pids that answer them.
///
/// # Panics
/// When one is not answered.
#[must_use]
pub fn answers(clients: Vec<Kept>) -> Vec<i32> {
    let answer = |mut client: Kept| {
        let outcome = client.answer();
        let Outcome::Ok(body) = outcome else {
            panic!("one who waited in a queue was not answered: {outcome:?}");
        };
        body.trim().parse().expect("a pid")
    };
    clients.into_iter().map(answer).collect()
}
