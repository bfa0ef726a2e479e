//! The workers, by slot. During a replacement a slot has two: what they use is added up.

use std::fmt;
use std::time::SystemTime;

use prometheus_client::metrics::MetricType;

use super::family::{Families, Head, Labels, in_bytes, in_seconds, plain};
use crate::control::{Restarts, Snapshot, Stamp, Worker};

/// A slot: its instance, and the rows of its workers, the newest first.
type Slot<'a> = (Option<&'a str>, &'a [Worker]);

/// A time, in seconds since 1970.
pub(super) fn unix_time(text: &str) -> Option<f64> {
    since_1970(humantime::parse_rfc3339(text).ok()?)
}

fn since_1970(at: SystemTime) -> Option<f64> {
    at.duration_since(SystemTime::UNIX_EPOCH).ok().map(|since| since.as_secs_f64())
}

pub(super) fn encode(families: &mut Families<'_>, instances: &[(Option<&str>, &Snapshot)]) -> fmt::Result {
    let slots: Vec<Slot<'_>> = instances
        .iter()
        .flat_map(|(name, snapshot)| {
            let by_slot = snapshot.workers.chunk_by(|one, other| one.slot == other.slot);
            by_slot.map(|rows| (*name, rows))
        })
        .collect();
    generations(families, &slots)?;
    states(families, &slots)?;
    usage(families, &slots)?;
    queues(families, &slots)?;
    restarts(families, &slots)
}

fn labels<'a>((name, rows): Slot<'a>) -> Labels<'a> {
    Labels { name, slot: rows.first().map(|row| row.slot), more: &[] }
}

fn sum<V: std::ops::Add<Output = V>>(rows: &[Worker], of: fn(&Worker) -> Option<V>) -> Option<V> {
    rows.iter().filter_map(of).reduce(|one, other| one + other)
}

/// The generations of the workers.
fn generations(families: &mut Families<'_>, slots: &[Slot<'_>]) -> fmt::Result {
    let head = plain("master_process_worker", "The workers: their slots and generations");
    families.family(&head, MetricType::Info, |series| {
        slots.iter().try_for_each(|slot| {
            let mut told: Option<u32> = None;
            // The newest comes first, so generations only fall.
            for row in slot.1.iter().filter(|row| row.pid.is_some()) {
                if told.replace(row.generation) != Some(row.generation) {
                    let generation = row.generation.to_string();
                    series.info(&Labels { more: &[("generation", &generation)], ..labels(*slot) })?;
                }
            }
            Ok(())
        })
    })
}

/// The number of workers in each state. A state without a worker has no series: there are eight for each slot.
fn states(families: &mut Families<'_>, slots: &[Slot<'_>]) -> fmt::Result {
    let head = plain("master_process_worker_state", "The workers of the slot that are in this state");
    families.family(&head, MetricType::Gauge, |series| {
        slots.iter().try_for_each(|slot| {
            let rows = slot.1;
            rows.iter().enumerate().try_for_each(|(at, row)| {
                if rows[..at].iter().any(|earlier| earlier.state == row.state) {
                    return Ok(());
                }
                let count = rows.iter().filter(|other| other.state == row.state).count();
                series.gauge(&Labels { more: &[("state", row.state.word())], ..labels(*slot) }, &count)
            })
        })
    })
}

fn usage(families: &mut Families<'_>, slots: &[Slot<'_>]) -> fmt::Result {
    let some = |of: fn(&[Worker]) -> Option<u64>| {
        slots.iter().filter_map(move |slot| Some((labels(*slot), of(slot.1)?)))
    };
    let cpu = in_seconds("master_process_worker_cpu", "The CPU time of all workers that the slot has had");
    let used =
        slots.iter().filter_map(|slot| Some((labels(*slot), sum(slot.1, |row| row.cpu_seconds_total)?)));
    families.counters(&cpu, used)?;
    let resident = in_bytes("master_process_worker_resident_memory", "The resident memory");
    families.gauges(&resident, some(|rows| sum(rows, |row| row.memory_bytes)))?;
    let peak = in_bytes(
        "master_process_worker_peak_memory",
        "The highest resident memory of a worker that was seen",
    );
    families.gauges(&peak, some(|rows| rows.iter().filter_map(|row| row.memory_peak_bytes).max()))?;
    let limit =
        in_bytes("master_process_worker_memory_limit", "The limit of the resident memory of a worker");
    families.gauges(&limit, some(|rows| rows.iter().find_map(|row| row.memory_limit_bytes)))?;
    let started =
        in_seconds("master_process_worker_start_time", "When the newest worker was started, since 1970");
    let times = slots.iter().filter_map(|slot| {
        let Stamp(at) = slot.1.iter().find_map(|row| row.started_at)?;
        Some((labels(*slot), since_1970(at)?))
    });
    families.gauges(&started, times)
}

/// The accept queues. Two workers of a slot may share one: that of the one with the longer queue counts.
fn queues(families: &mut Families<'_>, slots: &[Slot<'_>]) -> fmt::Result {
    let longest = |rows: &[Worker]| {
        let known = rows.iter().filter_map(|row| Some((row.queue_length?, row.queue_limit)));
        known.max_by_key(|(length, _)| *length)
    };
    let lengths = slots.iter().filter_map(|slot| Some((labels(*slot), longest(slot.1)?.0)));
    families.gauges(
        &plain("master_process_worker_accept_queue_length", "The connections that wait to be accepted"),
        lengths,
    )?;
    let limits = slots.iter().filter_map(|slot| Some((labels(*slot), longest(slot.1)?.1?)));
    families
        .gauges(&plain("master_process_worker_accept_queue_limit", "The room of the accept queue"), limits)?;
    let head: Head = plain(
        "master_process_worker_accept_queue_drops",
        "The connections that found no room in the accept queue",
    );
    let drops =
        slots.iter().filter_map(|slot| Some((labels(*slot), sum(slot.1, |row| row.queue_drops_total)?)));
    families.counters(&head, drops)
}

/// The replaced workers. Each reason is there from the start: a counter that appears with 1 has no increase.
fn restarts(families: &mut Families<'_>, slots: &[Slot<'_>]) -> fmt::Result {
    let head =
        plain("master_process_worker_restarts", "The workers of the slot that were replaced, by reason");
    families.family(&head, MetricType::Counter, |series| {
        slots.iter().try_for_each(|slot| {
            let totals = slot.1.first().map(|row| row.restarts_total).unwrap_or_default();
            by_reason(&totals).iter().try_for_each(|(reason, count)| {
                series.counter(&Labels { more: &[("reason", *reason)], ..labels(*slot) }, count)
            })
        })
    })
}

fn by_reason(totals: &Restarts) -> [(&'static str, u64); 10] {
    let Restarts { exit, signal, oom, cpu, memory, hung, reload, upgrade, request, never_ready } = *totals;
    [
        ("exit", exit),
        ("signal", signal),
        ("oom", oom),
        ("cpu", cpu),
        ("memory", memory),
        ("hung", hung),
        ("reload", reload),
        ("upgrade", upgrade),
        ("request", request),
        ("never_ready", never_ready),
    ]
}
