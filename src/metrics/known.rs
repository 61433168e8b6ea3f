//! A gauge whose value is not always known.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::{
    encoding::{EncodeGaugeValue, EncodeMetric, MetricEncoder},
    metrics::MetricType,
};

/// A number that is not shown before it is known: a zero would be a lie. A clone is the same gauge.
#[derive(Clone, Debug, Default)]
pub(super) struct Known<N = u64>(Arc<Mutex<Option<N>>>);

impl<N> Known<N> {
    pub(super) fn set(&self, value: Option<N>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = value;
    }
}

impl<N: EncodeGaugeValue + Copy> EncodeMetric for Known<N> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let value = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        value.map_or(Ok(()), |value| encoder.encode_gauge(&value))
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}
