//! What librdkafka counts, as readings for the metrics.
//!
//! Of its document (librdkafka, STATISTICS.md) only what has no name of a topic, partition or broker is taken: those
//! would be labels from event data. Over brokers it is summed up, or the worst counts.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use serde::Deserialize;
use walgate_sink::{Reading, ReadingKind};

/// The last document.
#[derive(Debug, Default)]
pub(crate) struct Statistics(Mutex<Option<Document>>);

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Document {
    msg_cnt: f64,
    msg_size: f64,
    txmsgs: f64,
    txmsg_bytes: f64,
    tx: f64,
    tx_bytes: f64,
    brokers: HashMap<String, Broker>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Broker {
    state: String,
    nodeid: i32,
    txerrs: f64,
    txretries: f64,
    req_timeouts: f64,
    connects: f64,
    disconnects: f64,
    waitresp_cnt: f64,
    rtt: Window,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
struct Window {
    /// Microseconds.
    p99: f64,
}

impl Statistics {
    /// A document of librdkafka. One that cannot be read is left out.
    pub(crate) fn take_in(&self, document: &[u8]) {
        match serde_json::from_slice(document) {
            Ok(document) => *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(document),
            Err(error) => tracing::debug!("librdkafka's statistics cannot be read: {error}"),
        }
    }

    /// What the last document said; empty before the first.
    pub(crate) fn readings(&self) -> Vec<Reading> {
        let document = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(document) = document else { return Vec::new() };
        // The first contact (`host:port/bootstrap`, id -1) becomes another entry once its id is known.
        let brokers = || document.brokers.values().filter(|broker| broker.nodeid >= 0);
        let sum = |field: fn(&Broker) -> f64| document.brokers.values().map(field).sum::<f64>();
        let up = brokers().filter(|broker| broker.state == "UP").count();
        let rtt = brokers().map(|broker| broker.rtt.p99).fold(0.0, f64::max) / 1e6;
        #[allow(clippy::cast_precision_loss, reason = "a number of brokers")]
        let up = up as f64;
        let gauge = |name, help, value| Reading::new(name, help, ReadingKind::Gauge, value);
        let counter = |name, help, value| Reading::new(name, help, ReadingKind::Counter, value);
        vec![
            gauge(
                "kafka_held_records",
                "Records that the client holds and no broker has acknowledged",
                document.msg_cnt,
            ),
            gauge("kafka_held_bytes", "Bytes of those records", document.msg_size),
            gauge("kafka_brokers_up", "Brokers with a connection", up),
            gauge(
                "kafka_outstanding_requests",
                "Requests that no broker has answered",
                sum(|broker| broker.waitresp_cnt),
            ),
            gauge("kafka_round_trip_seconds", "99th percentile of the slowest broker's answers", rtt),
            counter("kafka_sent_records", "Records sent, repeats counted", document.txmsgs),
            counter("kafka_sent_record_bytes", "Bytes of those records", document.txmsg_bytes),
            counter("kafka_requests", "Requests sent to brokers", document.tx),
            counter("kafka_request_bytes", "Bytes of those requests", document.tx_bytes),
            counter("kafka_request_retries", "Requests that were sent again", sum(|broker| broker.txretries)),
            counter("kafka_request_errors", "Requests that could not be sent", sum(|broker| broker.txerrs)),
            counter(
                "kafka_request_timeouts",
                "Requests that were not answered in time",
                sum(|broker| broker.req_timeouts),
            ),
            counter("kafka_connects", "Connections to brokers that were tried", sum(|broker| broker.connects)),
            counter("kafka_disconnects", "Connections to brokers that ended", sum(|broker| broker.disconnects)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brokers_are_summed_up_and_their_names_are_left_out() {
        let statistics = Statistics::default();
        assert_eq!(statistics.readings(), []);
        statistics.take_in(b"not JSON");
        assert_eq!(statistics.readings(), []);
        statistics.take_in(
            br#"{"name":"walgate#producer-1","msg_cnt":3,"msg_size":300,"tx":9,"tx_bytes":900,"txmsgs":40,"txmsg_bytes":4000,
            "brokers":{
              "a:9092/bootstrap":{"nodeid":-1,"state":"UP","connects":1,"rtt":{"p99":9000000}},
              "a:9092/1":{"nodeid":1,"state":"UP","txretries":2,"connects":1,"rtt":{"p99":2000}},
              "b:9092/2":{"nodeid":2,"state":"DOWN","txretries":1,"disconnects":4,"rtt":{"p99":5000}}},
            "topics":{"orders.canary":{"topic":"orders.canary"}}}"#,
        );
        let readings = statistics.readings();
        let value = |name: &str| readings.iter().find(|reading| reading.name == name).map(|reading| reading.value);
        assert_eq!(value("kafka_held_records"), Some(3.0));
        assert_eq!(value("kafka_brokers_up"), Some(1.0));
        assert_eq!(value("kafka_request_retries"), Some(3.0));
        assert_eq!(value("kafka_connects"), Some(2.0));
        assert_eq!(value("kafka_round_trip_seconds"), Some(0.005));
        assert!(!format!("{readings:?}").contains("canary"));
    }
}
