use walgate_sink::{Bytes, DynSink, Event, Outcome, PayloadFormat, Target, erase};

use super::*;

fn delivery(id: &str, name: &str, payload: &str) -> Delivery {
    let mut event = Event::new(id, "order.created");
    event.payload = Some(Bytes::copy_from_slice(payload.as_bytes()));
    Delivery {
        event,
        target: Target::new(FileSinkFactory::TARGET, [Some(name.into())]),
        ordering_key: None,
        dedup_id: id.into(),
        attempt: 1,
    }
}

async fn sink(folder: &std::path::Path) -> Arc<dyn DynSink> {
    let factory = erase::<FileSinkFactory>();
    let config = factory.parse(serde_json::json!({ "folder": folder })).unwrap();
    assert!(factory.validate(&config).is_empty());
    factory.connect(&config, SinkContext::new("archive", Duration::from_secs(60))).await.unwrap()
}

async fn outcomes(sink: &dyn DynSink, deliveries: Vec<Delivery>) -> Vec<Outcome> {
    let report = DeliveryReport::new(deliveries.len());
    sink.deliver(&Batch::new(deliveries), &report).await;
    report.take()
}

const ACKNOWLEDGED: Outcome = Outcome::Acknowledged { duplicate: false };

#[tokio::test]
async fn each_event_is_a_line_behind_whatever_was_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("orders");
    std::fs::write(&path, "{\"id\":\"torn").unwrap();
    let sink = sink(folder.path()).await;
    assert_eq!(sink.check().await, Ok(()));
    let mut binary = delivery("4", "orders", "x");
    binary.event.format = PayloadFormat::Binary;
    let batch = vec![delivery("1", "orders", "{\n\"a\": 1}"), delivery("2", "others", "[]"), binary];
    let found = outcomes(&*sink, batch).await;
    assert_eq!(found[..2], [ACKNOWLEDGED, ACKNOWLEDGED]);
    assert!(matches!(&found[2], Outcome::Rejected(why) if why.reason == RejectReason::InvalidEvent), "{found:?}");
    assert_eq!(outcomes(&*sink, vec![delivery("3", "orders", "1")]).await, [ACKNOWLEDGED]);
    assert_eq!(
        std::fs::read_to_string(path).unwrap(),
        "{\"id\":\"torn\n{\"id\":\"1\",\"event_type\":\"order.created\",\"key\":null,\"payload\":{ \"a\": 1}}\n\
         {\"id\":\"3\",\"event_type\":\"order.created\",\"key\":null,\"payload\":1}\n"
    );
    sink.close().await;
    sink.close().await;
    assert!(matches!(&outcomes(&*sink, vec![delivery("5", "orders", "1")]).await[0], Outcome::Failed(_)));
}

#[tokio::test]
async fn no_name_leads_out_of_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let sink = sink(folder.path()).await;
    for name in ["", "..", "../x", "/etc/x", ".hidden", "a/b", "a\nb", "é", &"x".repeat(300)] {
        let found = outcomes(&*sink, vec![delivery("1", name, "{}")]).await;
        assert!(matches!(&found[0], Outcome::Rejected(why) if why.reason == RejectReason::InvalidTarget), "{name}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_folder_that_is_not_there_has_to_be_made() {
    let folder = tempfile::tempdir().unwrap();
    let sink = sink(&folder.path().join("away")).await;
    assert!(sink.check().await.is_err());
    let found = outcomes(&*sink, vec![delivery("1", "orders", "{}")]).await;
    assert!(matches!(&found[0], Outcome::Failed(why) if why.kind == FailureKind::Fatal), "{found:?}");
    std::fs::create_dir(folder.path().join("away")).unwrap();
    assert_eq!(outcomes(&*sink, vec![delivery("1", "orders", "{}")]).await, [ACKNOWLEDGED]);
}

#[test]
fn the_configuration_is_checked() {
    let factory = erase::<FileSinkFactory>();
    assert!(factory.parse(serde_json::json!({ "folder": "/x", "foldr": "/y" })).is_err());
    let relative = factory.parse(serde_json::json!({ "folder": "x" })).unwrap();
    assert_eq!(factory.validate(&relative).len(), 1);
}
