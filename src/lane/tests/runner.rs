//! The runner over a sink that plays a script, in virtual time.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
};

use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep},
};
use walgate_sink::{
    Batch, BoxFuture, Capabilities, ConfigIssue, DeliveryReport, DynSink, ErasedFactory, FailureKind, ParsedConfig,
    Sink, SinkContext, SinkError, TargetField,
};

use super::*;
use crate::{
    checkpoint::Checkpoint,
    lane::{DeliveryOutcome, LaneEnd, LaneHandle, LaneSettings, Observer, SinkSource, spawn},
};

type Deliver = Box<dyn Fn(Batch, DeliveryReport) -> BoxFuture<'static, ()> + Send + Sync>;

/// A sink that does what it is told and writes down what it gets.
struct Scripted {
    deliver: Deliver,
    capabilities: Capabilities,
    received: Mutex<Vec<(String, u32)>>,
    batches: Mutex<Vec<usize>>,
    away: AtomicBool,
    checks: AtomicUsize,
    closed: AtomicUsize,
    flying: AtomicUsize,
    most_flying: AtomicUsize,
}

impl Scripted {
    fn new<F>(deliver: impl Fn(Batch, DeliveryReport) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Scripted {
            deliver: Box::new(move |batch, report| Box::pin(deliver(batch, report))),
            capabilities: Capabilities::default(),
            received: Mutex::default(),
            batches: Mutex::default(),
            away: AtomicBool::new(false),
            checks: AtomicUsize::new(0),
            closed: AtomicUsize::new(0),
            flying: AtomicUsize::new(0),
            most_flying: AtomicUsize::new(0),
        }
    }

    /// Takes everything.
    fn willing() -> Self {
        Scripted::new(|_, report| async move { acknowledge(&report) })
    }

    fn received(&self) -> Vec<String> {
        self.received.lock().unwrap().iter().map(|(name, attempt)| format!("{name}/{attempt}")).collect()
    }
}

/// Counts down also when the future is dropped.
struct Flying<'a>(&'a AtomicUsize);

impl Drop for Flying<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

impl Sink for Scripted {
    async fn deliver(&self, batch: &Batch, report: &DeliveryReport) {
        let flying = self.flying.fetch_add(1, SeqCst) + 1;
        let _flying = Flying(&self.flying);
        self.most_flying.fetch_max(flying, SeqCst);
        self.batches.lock().unwrap().push(batch.len());
        self.received.lock().unwrap().extend(batch.iter().map(|one| (one.dedup_id.to_string(), one.attempt)));
        if self.away.load(SeqCst) {
            return report.fail_rest(&Failure::new(FailureKind::Connection, "connection refused"));
        }
        (self.deliver)(batch.clone(), report.clone()).await;
    }

    async fn check(&self) -> Result<(), SinkError> {
        self.checks.fetch_add(1, SeqCst);
        if self.away.load(SeqCst) { Err(SinkError::retryable("connection refused")) } else { Ok(()) }
    }

    async fn close(&self) {
        self.closed.fetch_add(1, SeqCst);
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }
}

fn acknowledge(report: &DeliveryReport) {
    for index in 0..report.outcomes().len() {
        report.acknowledged(index);
    }
}

/// A running lane.
struct Rig {
    handle: LaneHandle,
    end: JoinHandle<LaneEnd>,
    stop: watch::Sender<Option<Instant>>,
    checkpoint: Checkpoint,
    events: u64,
}

impl Rig {
    fn start(sink: &Arc<Scripted>) -> Self {
        Rig::with(SinkSource::connected(Arc::clone(sink) as Arc<dyn DynSink>), LaneSettings::default(), Arc::new(()))
    }

    fn with(source: SinkSource, settings: LaneSettings, observer: Arc<dyn Observer>) -> Self {
        let checkpoint = Checkpoint::new(Lsn(1));
        checkpoint.with(|ring| ring.begin(Lsn(1)));
        let (stop, stopped) = watch::channel(None);
        let (handle, end) = spawn("bus", source, settings, None, checkpoint.clone(), observer, stopped);
        Rig { handle, end, stop, checkpoint, events: 0 }
    }

    fn work(&mut self, key: &str) -> Work {
        self.events += 1;
        let ticket = self.checkpoint.with(|ring| ring.track(NonZeroU32::MIN, 100));
        work(self.events, key, 0, ticket)
    }

    fn push(&mut self, keys: &[&str]) {
        let works: Vec<_> = keys.iter().map(|key| self.work(key)).collect();
        self.handle.push_all(works);
    }

    fn unsettled(&self) -> u64 {
        self.checkpoint.with(|ring| ring.unsettled_events())
    }

    async fn settled(&self) {
        until(|| self.unsettled() == 0).await;
    }

    async fn stop(self, drain: Duration) -> LaneEnd {
        self.stop.send_replace(Some(Instant::now() + drain));
        self.end.await.expect("the lane does not panic")
    }
}

/// Waits until this holds, in virtual time.
async fn until(holds: impl Fn() -> bool) {
    for _ in 0..1_000_000 {
        if holds() {
            return;
        }
        sleep(Duration::from_millis(1)).await;
    }
    panic!("waited for 1000 s in vain");
}

#[tokio::test(start_paused = true)]
async fn what_is_pushed_is_delivered_and_settled() {
    let sink = Arc::new(Scripted::willing());
    let mut rig = Rig::start(&sink);
    rig.push(&["a", "a", "b", ""]);
    rig.settled().await;
    // Pushes to a lane that waits wake it.
    for _ in 0..10 {
        sleep(SECOND).await;
        rig.push(&["a"]);
        rig.settled().await;
    }
    assert_eq!(sink.received.lock().unwrap().len(), 14);
    assert_eq!(rig.handle.status().state, LaneState::Up);
    assert_eq!(rig.stop(10 * SECOND).await, LaneEnd::Stopped);
    assert_eq!(sink.closed.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_is_stuck_does_not_hold_another() {
    let stuck = Arc::new(Scripted::new(|_, _| std::future::pending()));
    let mut one = Rig::start(&stuck);
    let well = Arc::new(Scripted::willing());
    let mut two = Rig::start(&well);
    for _ in 0..100 {
        one.push(&["a"]);
        two.push(&["a"]);
    }
    two.settled().await;
    assert_eq!(one.unsettled(), 100);
    assert_eq!(one.handle.status().in_flight, 1);
}

#[tokio::test(start_paused = true)]
async fn when_a_sink_does_not_return_what_it_marked_counts_and_the_rest_is_sent_again() {
    let sink = Arc::new(Scripted::new(|batch: Batch, report: DeliveryReport| async move {
        if batch[0].attempt > 1 {
            return acknowledge(&report);
        }
        report.acknowledged(0);
        std::future::pending().await
    }));
    let mut rig = Rig::start(&sink);
    rig.push(&["a", "b", "c"]);
    let start = Instant::now();
    rig.settled().await;
    assert!(start.elapsed() > LaneSettings::default().timeout, "the sink had all the time that it may take");
    let received = sink.received();
    assert_eq!(received[..3], ["1/1", "2/1", "3/1"]);
    assert_eq!(received.len(), 5, "{received:?}");
    assert!(!received.contains(&"1/2".to_owned()), "what was acknowledged is not sent again: {received:?}");
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_sink_costs_one_attempt() {
    let sink = Arc::new(Scripted::new(|batch: Batch, report: DeliveryReport| async move {
        report.acknowledged(0);
        assert!(batch[0].attempt > 1, "planned panic");
        acknowledge(&report);
    }));
    let mut rig = Rig::start(&sink);
    rig.push(&["a", "b"]);
    rig.settled().await;
    assert_eq!(sink.received(), ["1/1", "2/1", "2/2"]);
    assert_eq!(rig.stop(SECOND).await, LaneEnd::Stopped);
}

#[tokio::test(start_paused = true)]
async fn after_an_outage_everything_is_delivered_within_two_seconds() {
    let sink = Arc::new(Scripted::willing());
    sink.away.store(true, SeqCst);
    let mut rig = Rig::start(&sink);
    for number in 0..200 {
        rig.push(&[format!("key {}", number % 50).as_str()]);
    }
    until(|| rig.handle.status().state == LaneState::Down).await;
    sleep(1800 * SECOND).await;
    let attempts = sink.received.lock().unwrap().len();
    assert!(attempts < 300, "a sink that is away is left alone: {attempts} attempts");
    sink.away.store(false, SeqCst);
    let back = Instant::now();
    rig.settled().await;
    assert!(back.elapsed() <= 2 * SECOND, "{:?}", back.elapsed());
    assert_eq!(rig.handle.status().state, LaneState::Up);
}

#[tokio::test(start_paused = true)]
async fn a_stop_lets_batches_in_flight_finish_and_starts_no_others() {
    let mut sink = Scripted::new(|batch: Batch, report: DeliveryReport| async move {
        sleep(if &*batch[0].dedup_id == "1" { SECOND } else { 3 * SECOND }).await;
        acknowledge(&report);
    });
    sink.capabilities = Capabilities::default().with_max_batch(1).with_concurrency(2);
    let sink = Arc::new(sink);
    let mut rig = Rig::start(&sink);
    rig.push(&["a", "b", "a", "c"]);
    until(|| rig.handle.status().in_flight == 2).await;
    let (checkpoint, start) = (rig.checkpoint.clone(), Instant::now());
    assert_eq!(rig.stop(10 * SECOND).await, LaneEnd::Stopped);
    assert!(start.elapsed() < 4 * SECOND, "no longer than it takes");
    assert_eq!(sink.received(), ["1/1", "2/1"]);
    assert_eq!(checkpoint.with(|ring| ring.unsettled_events()), 2, "two are settled, two were not started");
    assert_eq!(sink.closed.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_stop_drops_what_takes_too_long_and_what_it_marked_counts() {
    let sink = Arc::new(Scripted::new(|_, report: DeliveryReport| async move {
        report.acknowledged(1);
        std::future::pending().await
    }));
    let mut rig = Rig::start(&sink);
    rig.push(&["a", "b"]);
    until(|| rig.handle.status().in_flight == 2).await;
    let (checkpoint, start) = (rig.checkpoint.clone(), Instant::now());
    assert_eq!(rig.stop(2 * SECOND).await, LaneEnd::Stopped);
    assert!(start.elapsed() < 4 * SECOND);
    assert_eq!(checkpoint.with(|ring| ring.unsettled_events()), 1);
    assert_eq!((sink.flying.load(SeqCst), sink.closed.load(SeqCst)), (0, 1), "dropped, then closed");
}

#[tokio::test(start_paused = true)]
async fn a_lane_whose_owner_has_gone_stops() {
    let sink = Arc::new(Scripted::willing());
    let Rig { stop, end, .. } = Rig::start(&sink);
    drop(stop);
    assert_eq!(end.await.unwrap(), LaneEnd::Stopped);
}

#[tokio::test(start_paused = true)]
async fn a_closed_receiver_ends_the_lane_after_what_is_in_flight() {
    let mut sink = Scripted::new(|batch: Batch, report: DeliveryReport| async move {
        match &*batch[0].dedup_id {
            "1" => {
                sleep(SECOND).await;
                report.acknowledged(0);
            }
            _ => report.failed(0, Failure::new(FailureKind::Closed, "broken pipe")),
        }
    });
    sink.capabilities = Capabilities::default().with_max_batch(1).with_concurrency(2);
    let sink = Arc::new(sink);
    let mut rig = Rig::start(&sink);
    rig.push(&["a", "b", "c"]);
    let end = rig.end.await.unwrap();
    assert_eq!(end, LaneEnd::SinkClosed);
    assert_eq!(rig.checkpoint.with(|ring| ring.unsettled_events()), 2);
    assert_eq!((rig.handle.status().state, sink.closed.load(SeqCst)), (LaneState::Closed, 1));
}

#[tokio::test(start_paused = true)]
async fn batches_in_flight_and_their_size_keep_to_the_limits() {
    let mut sink = Scripted::new(|_, report: DeliveryReport| async move {
        sleep(SECOND).await;
        acknowledge(&report);
    });
    sink.capabilities = Capabilities::default().with_max_batch(10).with_concurrency(3);
    let sink = Arc::new(sink);
    let source = SinkSource::connected(Arc::clone(&sink) as Arc<dyn DynSink>);
    let mut rig = Rig::with(source, LaneSettings { batch: Some(4), ..LaneSettings::default() }, Arc::new(()));
    rig.push(&[""; 48]);
    let start = Instant::now();
    rig.settled().await;
    assert_eq!(sink.most_flying.load(SeqCst), 3);
    assert_eq!(*sink.batches.lock().unwrap(), [4; 12]);
    assert_eq!(start.elapsed().as_secs(), 4, "three at a time");
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_is_not_full_lingers() {
    let sink = Arc::new(Scripted::willing());
    let source = SinkSource::connected(Arc::clone(&sink) as Arc<dyn DynSink>);
    let settings = LaneSettings { linger: SECOND, batch: Some(8), ..LaneSettings::default() };
    let mut rig = Rig::with(source, settings, Arc::new(()));
    sleep(SECOND).await;
    for _ in 0..3 {
        rig.push(&[""]);
        sleep(Duration::from_millis(300)).await;
    }
    assert_eq!(rig.unsettled(), 3);
    rig.settled().await;
    rig.push(&[""; 8]);
    let start = Instant::now();
    rig.settled().await;
    assert!(start.elapsed() < SECOND / 2, "a full one does not");
    assert_eq!(*sink.batches.lock().unwrap(), [3, 8]);
}

/// Fails so many times before it makes a sink.
struct Reluctant {
    sink: Arc<Scripted>,
    failures: AtomicUsize,
    error: SinkError,
}

impl ErasedFactory for Reluctant {
    fn kind(&self) -> &'static str {
        "scripted"
    }
    fn target(&self) -> &'static [TargetField] {
        &[]
    }
    fn secrets(&self) -> &'static [&'static str] {
        &[]
    }
    fn parse(&self, _: serde_json::Value) -> Result<ParsedConfig, ConfigIssue> {
        walgate_sink::erase::<Nothing>().parse(serde_json::json!({}))
    }
    fn validate(&self, _: &ParsedConfig) -> Vec<ConfigIssue> {
        Vec::new()
    }
    fn connect<'a>(
        &'a self,
        _: &'a ParsedConfig,
        _: SinkContext,
    ) -> BoxFuture<'a, Result<Arc<dyn DynSink>, SinkError>> {
        Box::pin(async {
            let left = self.failures.fetch_update(SeqCst, SeqCst, |left| Some(left.saturating_sub(1))).unwrap();
            if left > 0 { Err(self.error.clone()) } else { Ok(Arc::clone(&self.sink) as Arc<dyn DynSink>) }
        })
    }
}

/// Only there to parse a configuration.
struct Nothing;

impl walgate_sink::SinkFactory for Nothing {
    const KIND: &'static str = "scripted";
    type Config = serde_json::Map<String, serde_json::Value>;
    type Sink = Scripted;

    async fn connect(_: &Self::Config, _: SinkContext) -> Result<Scripted, SinkError> {
        Ok(Scripted::willing())
    }
}

fn reluctant(failures: usize, error: SinkError) -> (Arc<Scripted>, SinkSource) {
    let sink = Arc::new(Scripted::willing());
    let factory = Reluctant { sink: Arc::clone(&sink), failures: AtomicUsize::new(failures), error };
    let config = Arc::new(factory.parse(serde_json::Value::Null).unwrap());
    (sink, SinkSource::factory(Arc::new(factory), config, SinkContext::new("bus", SECOND)))
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_cannot_be_made_is_made_later() {
    let (sink, source) = reluctant(20, SinkError::retryable("away"));
    let mut rig = Rig::with(source, LaneSettings::default(), Arc::new(()));
    rig.push(&["a", "a"]);
    let start = Instant::now();
    rig.settled().await;
    assert!(start.elapsed() < 22 * SECOND, "{:?}", start.elapsed());
    assert_eq!(sink.received(), ["1/1", "2/1"]);
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_somebody_has_to_mend_is_made_again_slowly() {
    let (sink, source) = reluctant(6, SinkError::fatal("no such certificate"));
    let mut rig = Rig::with(source, LaneSettings::default(), Arc::new(()));
    rig.push(&["a"]);
    until(|| rig.handle.status().state == LaneState::Down).await;
    assert_eq!(rig.handle.status().last_error.unwrap().message, "no such certificate");
    let start = Instant::now();
    rig.settled().await;
    assert!(start.elapsed() > 30 * SECOND, "1, 2, 4, ... less half by jitter: {:?}", start.elapsed());
    assert_eq!(sink.received(), ["1/1"]);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_sent_is_decided_while_the_sink_is_away() {
    let (_, source) = reluctant(usize::MAX, SinkError::fatal("away for good"));
    let mut settings = LaneSettings::default();
    settings.policy.on_reject = OnReject::Skip;
    let mut rig = Rig::with(source, settings, Arc::new(()));
    until(|| rig.handle.status().state == LaneState::Down).await;
    let mut work = rig.work("a");
    work.invalid = Some(Rejection::new(RejectReason::InvalidTarget, "empty"));
    rig.handle.push(work);
    rig.settled().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_given_up_just_before_the_end_is_settled() {
    // Which of the two the lane sees first is left to chance.
    for _ in 0..20 {
        let (_, source) = reluctant(usize::MAX, SinkError::fatal("away for good"));
        let mut rig = Rig::with(source, LaneSettings::default(), Arc::new(()));
        rig.push(&["a", "b", "a"]);
        until(|| rig.handle.status().state == LaneState::Down).await;
        assert!(rig.handle.holds_live());
        assert_eq!(rig.handle.give_up(), 3);
        assert!(!rig.handle.holds_live());
        let checkpoint = rig.checkpoint.clone();
        rig.stop(SECOND).await;
        assert_eq!(checkpoint.with(|ring| ring.unsettled_events()), 0);
    }
}

#[derive(Default)]
struct Counts(Mutex<Vec<String>>);

impl Observer for Counts {
    fn delivered(&self, route: u16, outcome: DeliveryOutcome, count: u64) {
        self.0.lock().unwrap().push(format!("{route} {} {count}", outcome.as_str()));
    }
    fn rejected(&self, reason: RejectReason) {
        self.0.lock().unwrap().push(reason.to_string());
    }
    fn retries(&self, count: u64) {
        self.0.lock().unwrap().push(format!("retries {count}"));
    }
    fn sink_up(&self, up: bool) {
        self.0.lock().unwrap().push(format!("up {up}"));
    }
}

#[tokio::test(start_paused = true)]
async fn what_happens_is_counted() {
    let sink = Arc::new(Scripted::new(|batch: Batch, report: DeliveryReport| async move {
        if batch[0].attempt == 1 {
            report.rejected(0, Rejection::new(RejectReason::TooLarge, "too large"));
            report.failed(1, Failure::new(FailureKind::Unavailable, "busy"));
            report.duplicate(2);
        }
        acknowledge(&report);
    }));
    let counts = Arc::new(Counts::default());
    let mut settings = LaneSettings::default();
    settings.policy.on_reject = OnReject::Skip;
    let source = SinkSource::connected(sink);
    let mut rig = Rig::with(source, settings, Arc::clone(&counts) as Arc<dyn Observer>);
    rig.push(&["a", "b", "c", "d", "e"]);
    rig.settled().await;
    let counts = counts.0.lock().unwrap();
    let expected =
        ["up true", "7 duplicate 1", "7 acknowledged 2", "7 skipped 1", "too_large", "retries 1", "7 acknowledged 1"];
    assert_eq!(*counts, expected);
}

/// Many pushes from another thread, in real time: nothing is lost, no wake-up is missed, keys keep their order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pushes_from_another_thread_are_all_delivered_in_order() {
    let mut sink = Scripted::willing();
    sink.capabilities = Capabilities::default().with_concurrency(4).with_max_batch(64);
    let sink = Arc::new(sink);
    let mut rig = Rig::start(&sink);
    let (handle, checkpoint) = (rig.handle.clone(), rig.checkpoint.clone());
    let works: Vec<_> = (0..20_000).map(|number| rig.work(&format!("key {}", number % 97))).collect();
    let pusher = std::thread::spawn(move || works.into_iter().for_each(|work| handle.push(work)));
    pusher.join().unwrap();
    let all_settled = async {
        while checkpoint.with(|ring| ring.unsettled_events()) > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(60 * SECOND, all_settled).await.expect("everything is settled");
    let received = sink.received.lock().unwrap();
    assert_eq!(received.len(), 20_000);
    let mut last = vec![0; 97];
    for (name, attempt) in received.iter() {
        let number: usize = name.parse().unwrap();
        let last = &mut last[(number - 1) % 97];
        assert!(number > *last && *attempt == 1);
        *last = number;
    }
    assert_eq!(rig.handle.unsettled(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_lane_at_its_rate_wakes_by_itself_and_only_when_it_may_send() {
    let sink = Arc::new(Scripted::willing());
    let settings = LaneSettings {
        policy: LanePolicy { rate_limit: Some("10/s".parse().unwrap()), ..LanePolicy::default() },
        linger: Duration::from_millis(5),
        ..LaneSettings::default()
    };
    let mut rig = Rig::with(SinkSource::connected(Arc::clone(&sink) as Arc<dyn DynSink>), settings, Arc::new(()));
    let started = Instant::now();
    for _ in 0..60 {
        rig.push(&[""]);
    }
    until(|| rig.unsettled() == 50).await;
    assert_eq!(rig.handle.status().state, LaneState::Limited);
    let turns = rig.handle.turns();
    for _ in 0..40 {
        rig.push(&[""]);
        tokio::task::yield_now().await;
    }
    assert_eq!(rig.handle.turns(), turns, "a push to a lane at its rate wakes nobody");
    rig.settled().await;
    let took = started.elapsed();
    assert!((Duration::from_millis(8_900)..Duration::from_millis(9_500)).contains(&took), "{took:?}");
    assert_eq!(rig.stop(SECOND).await, LaneEnd::Stopped);
}
