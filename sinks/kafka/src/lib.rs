//! The sink `kafka`: events to topics of Apache Kafka.
use rdkafka as _;
use serde as _;
use serde_json as _;
use tokio as _;
use tracing as _;
use walgate_sink as _;
