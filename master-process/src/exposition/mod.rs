//! The metrics: the state of one or several supervisors in the text format of OpenMetrics, or in the older one of
//! Prometheus. `docs/metrics.md` lists them.

mod family;
mod instance;
mod process;
mod readiness;
mod workers;

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, prometheus_text, text};
use prometheus_client::registry::Registry;

use crate::control::Snapshot;
use family::Families;
pub use readiness::not_ready;
use serde::{Deserialize, Serialize};

/// The text formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// The text format of Prometheus, 0.0.4.
    Prometheus,
}

impl Format {
    /// The type of the content in HTTP.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Format::Prometheus => prometheus_text::CONTENT_TYPE,
        }
    }
}

/// An instance of the host, and its state if it has told it.
#[derive(Debug)]
pub struct Instance {
    /// Its name.
    pub name: String,
    /// Its state.
    pub snapshot: Option<Snapshot>,
}

/// What is rendered.
#[derive(Debug)]
enum Scrape {
    /// One supervisor: it serves its own metrics.
    One(Box<Snapshot>),
    /// All instances of a host: the series have the label `name`.
    All(Vec<Instance>),
}

impl Scrape {
    fn instances(&self) -> impl Iterator<Item = (Option<&str>, &Snapshot)> {
        let (one, all) = match self {
            Scrape::One(snapshot) => (Some((None, &**snapshot)), &[][..]),
            Scrape::All(all) => (None, all.as_slice()),
        };
        let known = |instance: &'_ Instance| instance.snapshot.is_some();
        let named = all.iter().filter(move |instance| known(instance));
        let named =
            named.filter_map(|instance| Some((Some(instance.name.as_str()), instance.snapshot.as_ref()?)));
        one.into_iter().chain(named)
    }
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut families = Families::new(encoder);
        let instances: Vec<_> = self.instances().collect();
        if let Scrape::All(all) = self {
            instance::reachable(&mut families, all)?;
        }
        instance::encode(&mut families, &instances)?;
        workers::encode(&mut families, &instances)?;
        process::encode(&mut families, &instances)
    }
}

/// The metrics of one supervisor.
pub fn one(snapshot: Snapshot, format: Format) -> String {
    render(Scrape::One(Box::new(snapshot)), format)
}

/// The metrics of all instances of a host.
pub fn all(instances: Vec<Instance>, format: Format) -> String {
    render(Scrape::All(instances), format)
}

fn render(scrape: Scrape, format: Format) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(scrape));
    let mut text = String::new();
    // A string takes everything.
    let _always = match format {
        Format::OpenMetrics => text::encode(&mut text, &registry),
        Format::Prometheus => prometheus_text::encode(&mut text, &registry),
    };
    text
}

#[cfg(test)]
mod tests;
