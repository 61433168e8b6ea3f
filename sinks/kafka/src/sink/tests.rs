//! The sink against librdkafka's own mock cluster, for what no real broker can be made to do.

use std::time::Duration;

use rdkafka::{mocking::MockCluster, producer::DefaultProducerContext, types::RDKafkaRespErr};
use serde_json::{Value, json};
use walgate_sink::{Bytes, Delivery, Event, Lsn, Position, Target};

use super::*;

type Mock = MockCluster<'static, DefaultProducerContext>;

fn cluster() -> Mock {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("orders", 3, 1).unwrap();
    cluster
}

async fn sink(cluster: &Mock, more: Value) -> KafkaSink {
    let mut config = json!({ "brokers": [cluster.bootstrap_servers()], "topic": "orders" });
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let config: KafkaConfig = walgate_sink::read_config(&config).unwrap();
    KafkaFactory::connect(&config, SinkContext::new("bus", Duration::from_secs(5))).await.unwrap()
}

fn delivery(number: u64, size: usize) -> Delivery {
    let mut event = Event::new(format!("e{number}"), "order.created");
    event.key = Some(format!("k{number}").into());
    event.payload = Some(Bytes::from(vec![b'x'; size]));
    event.position = Position { commit_lsn: Lsn(number << 8), ordinal: 0 };
    Delivery {
        dedup_id: event.id.clone(),
        event,
        target: Target::new(KafkaFactory::TARGET, [Some("orders".into()), None]),
        ordering_key: None,
        attempt: 1,
    }
}

async fn deliver(sink: &KafkaSink, deliveries: &[Delivery]) -> Vec<Outcome> {
    let (batch, report) = (Batch::new(deliveries.to_vec()), DeliveryReport::new(deliveries.len()));
    sink.deliver(&batch, &report).await;
    report.take()
}

fn acknowledged(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Acknowledged { .. })
}

/// Delivers as the lane does, until everything is acknowledged; how often it took.
async fn settle(sink: &KafkaSink, deliveries: Vec<Delivery>) -> usize {
    let mut left = deliveries;
    for attempts in 1..10 {
        let outcomes = deliver(sink, &left).await;
        if let Some(rejected) = outcomes.iter().find(|outcome| matches!(outcome, Outcome::Rejected(_))) {
            panic!("{rejected:?}");
        }
        left =
            left.into_iter().zip(&outcomes).filter(|(_, outcome)| !acknowledged(outcome)).map(|(it, _)| it).collect();
        if left.is_empty() {
            return attempts;
        }
    }
    panic!("{} are left: {:?}", left.len(), deliver(sink, &left).await);
}

/// Records that the mock holds.
async fn stored(sink: &KafkaSink) -> i64 {
    let client = sink.lookout.clone();
    let deadline = Instant::now() + Duration::from_secs(10);
    client.count("orders", 3, deadline).await.unwrap()
}

const PRODUCE: rdkafka::types::RDKafkaApiKey = rdkafka::types::RDKafkaApiKey::Produce;

#[tokio::test]
async fn k4_a_fatal_idempotence_error_is_followed_by_a_new_producer_and_nothing_is_lost() {
    let cluster = cluster();
    let sink = sink(&cluster, json!({})).await;
    assert_eq!(settle(&sink, (0..50).map(|n| delivery(n, 10)).collect()).await, 1);
    for (round, error) in [
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER,
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_PRODUCER_ID,
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH,
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_PRODUCER_FENCED,
    ]
    .into_iter()
    .enumerate()
    {
        cluster.request_errors(PRODUCE, &[error; 3]);
        let first = 100 * (round as u64 + 1);
        settle(&sink, (first..first + 50).map(|n| delivery(n, 10)).collect()).await;
        assert!(stored(&sink).await >= 50 * (round as i64 + 2), "{error:?}");
    }
}

#[tokio::test]
async fn k1_what_may_pass_is_tried_again_by_the_client_and_stored_once() {
    let cluster = cluster();
    let sink = sink(&cluster, json!({})).await;
    for error in [
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR,
    ] {
        cluster.request_errors(PRODUCE, &[error; 2]);
    }
    assert_eq!(settle(&sink, (0..50).map(|n| delivery(n, 10)).collect()).await, 1);
    assert_eq!(stored(&sink).await, 50);
}

#[tokio::test]
async fn k2_the_one_that_is_too_large_for_the_broker_is_found_among_others() {
    let cluster = cluster();
    let sink = sink(&cluster, json!({})).await;
    settle(&sink, vec![delivery(0, 10)]).await;
    // The set is refused; then, alone, the first is taken and so is the second; the third is refused again.
    let too_large = RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
    cluster.request_errors(PRODUCE, &[too_large]);
    let same_partition = |number: u64| {
        let mut delivery = delivery(number, 10);
        delivery.event.key = Some("k".into());
        delivery
    };
    let outcomes = deliver(&sink, &[same_partition(1), same_partition(2), same_partition(3)]).await;
    assert!(outcomes.iter().all(acknowledged), "none of them is to blame: {outcomes:?}");
    cluster.request_errors(PRODUCE, &[too_large, too_large]);
    let outcomes = deliver(&sink, &[same_partition(4)]).await;
    assert!(matches!(&outcomes[0], Outcome::Rejected(why) if why.reason == RejectReason::TooLarge), "{outcomes:?}");
    settle(&sink, vec![same_partition(5)]).await;
}

#[tokio::test]
async fn k3_a_denied_topic_is_no_events_fault_where_all_go_there() {
    let cluster = cluster();
    let sink = sink(&cluster, json!({})).await;
    settle(&sink, vec![delivery(0, 10)]).await;
    cluster.request_errors(PRODUCE, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED]);
    let outcomes = deliver(&sink, &[delivery(1, 10)]).await;
    assert!(matches!(&outcomes[0], Outcome::Failed(why) if why.kind == FailureKind::Fatal), "{outcomes:?}");
    settle(&sink, vec![delivery(1, 10)]).await;
}

#[tokio::test]
async fn k3_a_right_that_the_producer_lacks_is_told_however_early_it_ends() {
    let cluster = cluster();
    let denied = RDKafkaRespErr::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED;
    cluster.request_errors(rdkafka::types::RDKafkaApiKey::InitProducerId, &[denied; 12]);
    let sink = sink(&cluster, json!({})).await;
    for number in 1..10 {
        let outcomes = deliver(&sink, &[delivery(number, 10)]).await;
        let Outcome::Failed(why) = &outcomes[0] else { panic!("{outcomes:?}") };
        assert!(why.kind == FailureKind::Fatal && why.message.contains("grant the user the operation"), "{outcomes:?}");
    }
    cluster.clear_request_errors(rdkafka::types::RDKafkaApiKey::InitProducerId);
    settle(&sink, vec![delivery(1, 10)]).await;
}

#[tokio::test]
async fn k5_a_full_queue_is_waited_for_and_keeps_the_order() {
    let cluster = cluster();
    cluster.create_topic("one", 1, 1).unwrap();
    // Room for ten of the forty.
    let sink = sink(&cluster, json!({ "topic": "one", "buffer": "100KiB", "max_message": "20kB" })).await;
    let deliveries: Vec<Delivery> = (0..40)
        .map(|n| {
            let mut delivery = delivery(n, 10_000);
            delivery.target = Target::new(KafkaFactory::TARGET, [Some("one".into()), None]);
            delivery
        })
        .collect();
    let outcomes = deliver(&sink, &deliveries).await;
    assert!(outcomes.iter().all(acknowledged), "{outcomes:?}");
}

#[tokio::test]
async fn what_the_client_still_holds_is_not_queued_twice() {
    let cluster = cluster();
    let mut config = json!({ "brokers": [cluster.bootstrap_servers()], "topic": "orders" });
    config["properties"] = json!({ "request.timeout.ms": 60_000, "socket.timeout.ms": 60_000 });
    let config: KafkaConfig = walgate_sink::read_config(&config).unwrap();
    let sink = KafkaFactory::connect(&config, SinkContext::new("bus", Duration::from_secs(2))).await.unwrap();
    settle(&sink, vec![delivery(0, 10)]).await;
    cluster.broker_round_trip_time(1, Duration::from_secs(3)).unwrap();
    let deliveries: Vec<Delivery> = (1..=20).map(|n| delivery(n, 10)).collect();
    let outcomes = deliver(&sink, &deliveries).await;
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Failed(why) if why.kind == FailureKind::Timeout)));
    assert_eq!(sink.link.flights.held(), 20);
    let outcomes = deliver(&sink, &deliveries).await;
    assert!(outcomes.iter().all(acknowledged), "{outcomes:?}");
    cluster.broker_round_trip_time(1, Duration::ZERO).unwrap();
    assert_eq!(stored(&sink).await, 21);
}

#[tokio::test]
async fn closing_lets_what_was_queued_go_out() {
    let cluster = cluster();
    let sink = sink(&cluster, json!({})).await;
    let outcomes = deliver(&sink, &(0..100).map(|n| delivery(n, 10)).collect::<Vec<_>>()).await;
    assert!(outcomes.iter().all(acknowledged), "{outcomes:?}");
    sink.close().await;
    sink.close().await;
    let late = deliver(&sink, &[delivery(200, 10)]).await;
    assert!(matches!(&late[0], Outcome::Failed(_)), "{late:?}");
    assert!(sink.check().await.is_err());
}
