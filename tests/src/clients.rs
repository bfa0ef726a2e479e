//! Clients that send a request at once and wait in a queue for the answer.

use crate::load::{Kept, Outcome, Target};

/// Connections with a request, which wait in a queue until a worker accepts them.
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

/// The pids of the processes that answer them.
///
/// # Panics
/// When one is not answered.
#[must_use]
pub fn answers(clients: Vec<Kept>) -> Vec<i32> {
    let answer = |mut client: Kept| {
        let outcome = client.answer();
        let Outcome::Ok(body) = outcome else {
            panic!("a queued client was not answered: {outcome:?}");
        };
        body.trim().parse().expect("a pid")
    };
    clients.into_iter().map(answer).collect()
}
