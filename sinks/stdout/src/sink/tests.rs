//! Against outputs that block, fail and close.

use std::{
    io::{self, PipeWriter, Read as _, Write},
    sync::{Arc, Mutex as StdMutex, mpsc},
};

use walgate_sink::{Bytes, Delivery, Event, Outcome, Target, erase};

use super::*;

const LONG: Duration = Duration::from_secs(60);
const ACKNOWLEDGED: Outcome = Outcome::Acknowledged { duplicate: false };

fn delivery(id: &str, payload: &[u8]) -> Delivery {
    let mut event = Event::new(id, "order.created");
    event.payload = Some(Bytes::copy_from_slice(payload));
    Delivery {
        event,
        target: Target::new(StdoutFactory::TARGET, []),
        ordering_key: None,
        dedup_id: id.into(),
        attempt: 1,
    }
}

fn batch(ids: &[&str]) -> Batch {
    ids.iter().map(|id| delivery(id, b"{}")).collect::<Vec<_>>().into()
}

async fn deliver(sink: &StdoutSink, batch: &Batch) -> Vec<Outcome> {
    let report = DeliveryReport::new(batch.len());
    Sink::deliver(sink, batch, &report).await;
    report.take()
}

fn kind(outcome: &Outcome) -> Option<FailureKind> {
    match outcome {
        Outcome::Failed(failure) => Some(failure.kind),
        _ => None,
    }
}

fn ids(output: &[u8]) -> Vec<String> {
    let text = std::str::from_utf8(output).unwrap();
    text.lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["id"].as_str().unwrap().into())
        .collect()
}

/// What was written and flushed, and how often.
#[derive(Clone, Default)]
struct Collected(Arc<StdMutex<Writes>>);

#[derive(Clone, Default)]
struct Writes {
    written: Vec<u8>,
    flushed: Vec<u8>,
    count: usize,
}

impl Write for Collected {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut collected = self.0.lock().unwrap();
        collected.written.extend_from_slice(bytes);
        collected.count += 1;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut collected = self.0.lock().unwrap();
        collected.flushed = collected.written.clone();
        Ok(())
    }
}

/// Blocks in every write until the test says what becomes of it.
struct Gate {
    entered: tokio::sync::mpsc::UnboundedSender<()>,
    verdicts: mpsc::Receiver<io::Result<()>>,
    collected: Collected,
}

impl Write for Gate {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.entered.send(());
        self.verdicts.recv().unwrap()?;
        self.collected.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.collected.flush()
    }
}

struct Gated {
    sink: StdoutSink,
    entered: tokio::sync::mpsc::UnboundedReceiver<()>,
    verdicts: mpsc::Sender<io::Result<()>>,
    collected: Collected,
}

fn gated(timeout: Duration) -> Gated {
    let (enter, entered) = tokio::sync::mpsc::unbounded_channel();
    let (verdicts, inbox) = mpsc::channel();
    let collected = Collected::default();
    let gate = Gate { entered: enter, verdicts: inbox, collected: collected.clone() };
    Gated { sink: StdoutSink::new(gate, timeout).unwrap(), entered, verdicts, collected }
}

#[tokio::test]
async fn a_batch_is_one_write_that_is_flushed_before_it_counts() {
    let collected = Collected::default();
    let sink = StdoutSink::new(collected.clone(), LONG).unwrap();
    assert_eq!(deliver(&sink, &batch(&["1", "2", "3"])).await, vec![ACKNOWLEDGED; 3]);
    let Writes { written, flushed, count } = collected.0.lock().unwrap().clone();
    assert_eq!(written, flushed);
    assert_eq!(ids(&flushed), ["1", "2", "3"]);
    assert_eq!(count, 1);
}

#[tokio::test]
async fn a_dropped_future_neither_stops_nor_repeats_a_write_that_has_begun() {
    let mut gated = gated(LONG);
    let first = batch(&["1", "2"]);
    let report = DeliveryReport::new(2);
    tokio::select! {
        () = Sink::deliver(&gated.sink, &first, &report) => panic!("the write has not ended"),
        _ = gated.entered.recv() => {}
    }
    assert_eq!(report.take(), vec![Outcome::Unknown; 2]);

    gated.verdicts.send(Ok(())).unwrap();
    gated.verdicts.send(Ok(())).unwrap();
    assert_eq!(deliver(&gated.sink, &batch(&["2", "3", "1"])).await, vec![ACKNOWLEDGED; 3]);
    assert_eq!(ids(&gated.collected.0.lock().unwrap().flushed), ["1", "2", "3"]);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_pauses_is_a_timeout_and_then_one_copy() {
    let mut gated = gated(Duration::from_secs(15));
    // A second thread blocks, so the paused clock moves on by itself only while every task waits.
    let outcomes = deliver(&gated.sink, &batch(&["1"])).await;
    assert_eq!(kind(&outcomes[0]), Some(FailureKind::Timeout));
    let outcomes = deliver(&gated.sink, &batch(&["1"])).await;
    assert_eq!(kind(&outcomes[0]), Some(FailureKind::Timeout));

    gated.entered.recv().await.unwrap();
    gated.verdicts.send(Ok(())).unwrap();
    gated.verdicts.send(Ok(())).unwrap();
    tokio::time::resume();
    assert_eq!(deliver(&gated.sink, &batch(&["1", "2"])).await, vec![ACKNOWLEDGED; 2]);
    assert_eq!(ids(&gated.collected.0.lock().unwrap().flushed), ["1", "2"]);
}

#[tokio::test]
async fn a_closed_pipe_is_an_orderly_stop() {
    let (reader, writer) = io::pipe().unwrap();
    let sink = StdoutSink::new(writer, LONG).unwrap();
    assert_eq!(sink.check().await, Ok(()));
    drop(reader);
    for _ in 0..2 {
        let outcomes = deliver(&sink, &batch(&["1", "2"])).await;
        assert!(outcomes.iter().all(|outcome| kind(outcome) == Some(FailureKind::Closed)), "{outcomes:?}");
    }
    assert!(sink.check().await.is_err());
}

#[tokio::test]
async fn a_reader_that_leaves_in_the_middle_acknowledges_nothing_of_that_batch() {
    let (mut reader, writer) = io::pipe().unwrap();
    let sink = StdoutSink::new(writer, LONG).unwrap();
    let reading = std::thread::spawn(move || {
        let mut start = [0; 100];
        reader.read_exact(&mut start).unwrap();
    });
    // Larger than any pipe: the write is under way when the reader goes.
    let large = Batch::new(vec![delivery("1", &[b' '; 4 << 20])]);
    let outcomes = deliver(&sink, &large).await;
    assert_eq!(kind(&outcomes[0]), Some(FailureKind::Closed));
    reading.join().unwrap();
}

#[tokio::test]
async fn a_slow_pipe_carries_everything_in_order() {
    let (mut reader, writer): (_, PipeWriter) = io::pipe().unwrap();
    let sink = StdoutSink::new(writer, LONG).unwrap();
    let reading = std::thread::spawn(move || {
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
        all
    });
    let payload = format!("\"{}\"", "7".repeat(100_000)).into_bytes();
    for round in 0..5 {
        let ids: Vec<String> = (0..3).map(|n| format!("{round}-{n}")).collect();
        let batch = Batch::new(ids.iter().map(|id| delivery(id, &payload)).collect());
        assert_eq!(deliver(&sink, &batch).await, vec![ACKNOWLEDGED; 3]);
    }
    sink.close().await;
    let expected: Vec<String> = (0..5).flat_map(|round| (0..3).map(move |n| format!("{round}-{n}"))).collect();
    assert_eq!(ids(&reading.join().unwrap()), expected, "closing ends the thread and closes the pipe");
}

#[tokio::test]
async fn a_full_disk_is_tried_again() {
    let mut gated = gated(LONG);
    gated.verdicts.send(Err(io::ErrorKind::StorageFull.into())).unwrap();
    let outcomes = deliver(&gated.sink, &batch(&["1"])).await;
    assert_eq!(kind(&outcomes[0]), Some(FailureKind::Unavailable));
    gated.verdicts.send(Ok(())).unwrap();
    assert_eq!(deliver(&gated.sink, &batch(&["1"])).await, [ACKNOWLEDGED]);
    assert_eq!(gated.entered.recv().await, Some(()));
}

#[tokio::test]
async fn close_waits_for_the_write_and_can_be_called_twice() {
    let mut gated = gated(LONG);
    let first = batch(&["1"]);
    let report = DeliveryReport::new(1);
    tokio::select! {
        () = Sink::deliver(&gated.sink, &first, &report) => panic!("the write has not ended"),
        _ = gated.entered.recv() => {}
    }
    gated.verdicts.send(Ok(())).unwrap();
    gated.sink.close().await;
    gated.sink.close().await;
    assert_eq!(ids(&gated.collected.0.lock().unwrap().flushed), ["1"]);
    assert_eq!(kind(&deliver(&gated.sink, &batch(&["2"])).await[0]), Some(FailureKind::Connection));
}

#[tokio::test]
async fn the_factory_makes_a_sink_and_refuses_unknown_keys() {
    let factory = erase::<StdoutFactory>();
    assert!(factory.parse(serde_json::json!({ "pretty": true })).is_err());
    let config = factory.parse(serde_json::json!({})).unwrap();
    let sink = factory.connect(&config, SinkContext::new("console", LONG)).await.unwrap();
    assert_eq!(sink.check().await, Ok(()));
    sink.close().await;
}
