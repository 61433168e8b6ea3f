//! Numbers that sinks count themselves.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _, MetricEncoder},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};
use walgate_sink::{Reading, ReadingKind};

use super::SinkLabel;

/// The last readings of each sink. A clone is the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Readings(Arc<Mutex<BTreeMap<Arc<str>, Vec<Reading>>>>);

impl Readings {
    pub(super) fn set(&self, sink: &str, readings: Vec<Reading>) {
        let mut sinks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sinks.insert(sink.into(), readings);
    }
}

impl Collector for Readings {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let sinks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A metric has one head, and a line for each sink.
        let mut metrics: BTreeMap<&str, Vec<(&Arc<str>, &Reading)>> = BTreeMap::new();
        for (sink, readings) in sinks.iter() {
            for reading in readings {
                metrics.entry(reading.name).or_default().push((sink, reading));
            }
        }
        for (name, lines) in metrics {
            let Some((_, first)) = lines.first() else { continue };
            let kind = match first.kind {
                ReadingKind::Gauge => MetricType::Gauge,
                ReadingKind::Counter => MetricType::Counter,
            };
            let mut family = encoder.encode_descriptor(name, first.help, None, kind)?;
            for (sink, reading) in lines.iter().filter(|(_, reading)| reading.kind == first.kind) {
                let label = SinkLabel { sink: Arc::clone(sink) };
                encode(family.encode_family(&label)?, reading)?;
            }
        }
        Ok(())
    }
}

fn encode(encoder: MetricEncoder<'_>, reading: &Reading) -> fmt::Result {
    match reading.kind {
        ReadingKind::Gauge => ConstGauge::new(reading.value).encode(encoder),
        ReadingKind::Counter => ConstCounter::new(reading.value).encode(encoder),
    }
}
