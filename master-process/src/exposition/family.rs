//! Families of series, in few words.

use std::fmt;

use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeLabel, EncodeLabelSet, LabelSetEncoder,
    MetricEncoder, NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use crate::control::Durations;

/// The labels of a series.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Labels<'a> {
    /// The instance, where there are several.
    pub(super) name: Option<&'a str>,
    /// The slot.
    pub(super) slot: Option<u32>,
    /// Others.
    pub(super) more: &'a [(&'static str, &'a str)],
}

impl EncodeLabelSet for Labels<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        if let Some(name) = self.name {
            ("name", name).encode(encoder.encode_label())?;
        }
        if let Some(slot) = self.slot {
            ("slot", slot).encode(encoder.encode_label())?;
        }
        self.more.iter().try_for_each(|label| label.encode(encoder.encode_label()))
    }
}

impl Labels<'_> {
    fn is_empty(&self) -> bool {
        self.name.is_none() && self.slot.is_none() && self.more.is_empty()
    }
}

/// The name, unit and meaning of a family.
pub(super) struct Head {
    /// Without the unit and `_total`.
    pub(super) name: &'static str,
    /// The unit.
    pub(super) unit: Option<Unit>,
    /// The meaning, without the full stop.
    pub(super) help: &'static str,
}

/// A family without a unit.
pub(super) fn plain(name: &'static str, help: &'static str) -> Head {
    Head { name, unit: None, help }
}

/// A family in seconds.
pub(super) fn in_seconds(name: &'static str, help: &'static str) -> Head {
    Head { name, unit: Some(Unit::Seconds), help }
}

/// A family in bytes.
pub(super) fn in_bytes(name: &'static str, help: &'static str) -> Head {
    Head { name, unit: Some(Unit::Bytes), help }
}

/// Writes families.
pub(super) struct Families<'a>(DescriptorEncoder<'a>);

impl<'a> Families<'a> {
    pub(super) fn new(encoder: DescriptorEncoder<'a>) -> Families<'a> {
        Families(encoder)
    }

    /// Writes a family with what `series` writes.
    pub(super) fn family(
        &mut self,
        head: &Head,
        kind: MetricType,
        series: impl FnOnce(&mut Series<'_>) -> fmt::Result,
    ) -> fmt::Result {
        let encoder = self.0.encode_descriptor(head.name, head.help, head.unit.as_ref(), kind)?;
        series(&mut Series(encoder))
    }

    /// Writes gauges. A family without a series is left out.
    pub(super) fn gauges<'l, V: EncodeGaugeValue>(
        &mut self,
        head: &Head,
        values: impl Iterator<Item = (Labels<'l>, V)>,
    ) -> fmt::Result {
        self.each(head, MetricType::Gauge, values, |series, (labels, value)| series.gauge(&labels, &value))
    }

    /// Writes counters, likewise.
    pub(super) fn counters<'l, V: EncodeCounterValue>(
        &mut self,
        head: &Head,
        values: impl Iterator<Item = (Labels<'l>, V)>,
    ) -> fmt::Result {
        self.each(head, MetricType::Counter, values, |series, (labels, value)| {
            series.counter(&labels, &value)
        })
    }

    fn each<T>(
        &mut self,
        head: &Head,
        kind: MetricType,
        values: impl Iterator<Item = T>,
        write: impl Fn(&mut Series<'_>, T) -> fmt::Result,
    ) -> fmt::Result {
        let mut values = values.peekable();
        if values.peek().is_none() {
            return Ok(());
        }
        self.family(head, kind, |series| values.try_for_each(|value| write(series, value)))
    }
}

/// Writes the series of a family.
pub(super) struct Series<'a>(MetricEncoder<'a>);

impl Series<'_> {
    fn with(
        &mut self,
        labels: &Labels<'_>,
        write: impl FnOnce(&mut MetricEncoder<'_>) -> fmt::Result,
    ) -> fmt::Result {
        if labels.is_empty() { write(&mut self.0) } else { write(&mut self.0.encode_family(labels)?) }
    }

    pub(super) fn gauge(&mut self, labels: &Labels<'_>, value: &impl EncodeGaugeValue) -> fmt::Result {
        self.with(labels, |encoder| encoder.encode_gauge(value))
    }

    pub(super) fn counter(&mut self, labels: &Labels<'_>, value: &impl EncodeCounterValue) -> fmt::Result {
        self.with(labels, |encoder| encoder.encode_counter::<NoLabelSet, _, u64>(value, None))
    }

    pub(super) fn info(&mut self, labels: &Labels<'_>) -> fmt::Result {
        self.0.encode_info(labels)
    }

    pub(super) fn histogram(&mut self, labels: &Labels<'_>, durations: &Durations) -> fmt::Result {
        let within: u64 = durations.buckets.iter().sum();
        let rest = (f64::INFINITY, durations.count.saturating_sub(within));
        let buckets: Vec<(f64, u64)> =
            Durations::BOUNDS.into_iter().zip(durations.buckets).chain([rest]).collect();
        self.with(labels, |encoder| {
            encoder.encode_histogram::<NoLabelSet>(durations.sum, durations.count, &buckets, None)
        })
    }
}
