//! A histogram that takes many observations at once.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::{MetricType, TypedMetric},
};

/// Counts of durations by bucket, in seconds. A clone is the same histogram. The one of `prometheus-client` takes a
/// lock for each observation; this one takes one for a batch.
#[derive(Clone, Debug)]
pub(super) struct Histogram(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bounds: &'static [f64],
    counts: Mutex<Counts>,
}

#[derive(Clone, Debug)]
struct Counts {
    sum: f64,
    count: u64,
    /// By bucket; one more than there are bounds.
    buckets: Vec<u64>,
}

impl Histogram {
    /// An empty one with these upper bounds, which ascend.
    pub(super) fn new(bounds: &'static [f64]) -> Self {
        let counts = Counts { sum: 0.0, count: 0, buckets: vec![0; bounds.len() + 1] };
        Histogram(Arc::new(Inner { bounds, counts: Mutex::new(counts) }))
    }

    /// Takes in each duration so many times, under one lock.
    pub(super) fn observe(&self, durations: impl IntoIterator<Item = (Duration, u64)>) {
        let bounds = self.0.bounds;
        let mut counts = self.0.counts.lock().unwrap_or_else(PoisonError::into_inner);
        for (duration, times) in durations {
            let seconds = duration.as_secs_f64();
            counts.sum += seconds * times as f64;
            counts.count += times;
            let bucket = bounds.partition_point(|bound| *bound < seconds);
            if let Some(bucket) = counts.buckets.get_mut(bucket) {
                *bucket += times;
            }
        }
    }
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let counts = self.0.counts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // The encoder writes the last bound as `+Inf`.
        let bounds = self.0.bounds.iter().copied().chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(counts.buckets).collect();
        encoder.encode_histogram::<NoLabelSet>(counts.sum, counts.count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

impl TypedMetric for Histogram {
    const TYPE: MetricType = MetricType::Histogram;
}

#[cfg(test)]
mod tests {
    use prometheus_client::{encoding::text::encode, registry::Registry};

    use super::*;

    #[test]
    fn its_text_is_that_of_the_library_s_own() {
        const BOUNDS: &[f64] = &[0.001, 0.1, 1.0];
        let (ours, theirs) =
            (Histogram::new(BOUNDS), prometheus_client::metrics::histogram::Histogram::new(BOUNDS.iter().copied()));
        let durations = [(0, 3), (1, 1), (2, 5), (100, 2), (101, 1), (1_000, 4), (90_000, 7)];
        let durations = durations.map(|(millis, times)| (Duration::from_millis(millis), times));
        ours.clone().observe(durations);
        for (duration, times) in durations {
            (0..times).for_each(|_| theirs.observe(duration.as_secs_f64()));
        }
        let text = |registry: &Registry| {
            let mut text = String::new();
            encode(&mut text, registry).unwrap();
            // The order of adding makes a difference in the last digit of the sum.
            text.lines().filter(|line| !line.starts_with("took_sum")).map(str::to_owned).collect::<Vec<_>>()
        };
        let (mut one, mut other) = (Registry::default(), Registry::default());
        one.register("took", "Time", ours);
        other.register("took", "Time", theirs);
        assert_eq!(text(&one), text(&other));
        assert!(text(&one).contains(&"took_bucket{le=\"+Inf\"} 23".to_owned()), "{:?}", text(&one));
    }
}
