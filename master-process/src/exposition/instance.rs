//! The instance as a whole, and its reloads.

use std::fmt;

use prometheus_client::metrics::MetricType;

use super::Instance;
use super::family::{Families, Labels, in_seconds, plain};
use crate::control::Snapshot;

/// Which instances have told their state.
pub(super) fn reachable(families: &mut Families<'_>, all: &[Instance]) -> fmt::Result {
    let up = plain("master_process_up", "Whether the supervisor has answered");
    let values = all.iter().map(|instance| {
        let labels = Labels { name: Some(&instance.name), ..Labels::default() };
        (labels, u32::from(instance.snapshot.is_some()))
    });
    families.gauges(&up, values)
}

pub(super) fn encode(families: &mut Families<'_>, instances: &[(Option<&str>, &Snapshot)]) -> fmt::Result {
    let labels = |name| Labels { name, ..Labels::default() };
    let build =
        plain("master_process_build", "The version of the supervisor, and the commit if the build knew it");
    families.family(&build, MetricType::Info, |series| {
        instances.iter().try_for_each(|(name, snapshot)| {
            let commit = snapshot.commit.as_deref().unwrap_or_default();
            let more = &[("version", snapshot.version.as_str()), ("commit", commit)];
            series.info(&Labels { more, ..labels(*name) })
        })
    })?;
    let slots = plain("master_process_slots", "The slots that are wanted");
    families.gauges(&slots, instances.iter().map(|(name, of)| (labels(*name), of.slots_wanted)))?;
    let ready = plain("master_process_workers_ready", "The slots that have a ready worker");
    families.gauges(&ready, instances.iter().map(|(name, of)| (labels(*name), of.workers_ready)))?;
    let reloads = plain("master_process_reloads", "The reloads that have ended, by result");
    families.family(&reloads, MetricType::Counter, |series| {
        instances.iter().try_for_each(|(name, snapshot)| {
            let totals = &snapshot.reloads_total;
            let by_result = [
                ("complete", totals.complete),
                ("given_up", totals.given_up),
                ("superseded", totals.superseded),
            ];
            by_result.iter().try_for_each(|(result, count)| {
                series.counter(&Labels { more: &[("result", *result)], ..labels(*name) }, count)
            })
        })
    })?;
    let duration =
        in_seconds("master_process_reload_duration", "How long the complete and the given up reloads took");
    families.family(&duration, MetricType::Histogram, |series| {
        instances
            .iter()
            .try_for_each(|(name, of)| series.histogram(&labels(*name), &of.reload_duration_seconds))
    })
}
