//! P11: panics in a sink, wherever they may be. A lane never stops in silence: it sends again, makes the sink anew, or
//! tells how it ended.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep},
};
use walgate_sink::{
    Batch, BoxFuture, Capabilities, ConfigIssue, DeliveryReport, DynSink, ErasedFactory, ParsedConfig, Sink,
    SinkContext, SinkError, TargetField,
};

use super::*;
use crate::{
    checkpoint::Checkpoint,
    lane::{LaneEnd, LaneHandle, LaneSettings, SinkSource, spawn},
};

/// How often each place still panics.
#[derive(Default)]
struct Panics {
    connect: AtomicUsize,
    capabilities: AtomicUsize,
    deliver: AtomicUsize,
    check: AtomicUsize,
    close: AtomicUsize,
    /// Deliveries that were taken, and sinks that were made.
    taken: AtomicUsize,
    made: AtomicUsize,
}

fn strike(place: &AtomicUsize) {
    let struck = place.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok();
    assert!(!struck, "planned panic");
}

struct Fragile(Arc<Panics>);

impl Sink for Fragile {
    fn deliver(&self, batch: &Batch, report: &DeliveryReport) -> impl Future<Output = ()> + Send {
        // Before there is a future, every other time.
        if self.0.deliver.load(SeqCst).is_multiple_of(2) {
            strike(&self.0.deliver);
        }
        let (panics, batch, report) = (Arc::clone(&self.0), batch.clone(), report.clone());
        async move {
            strike(&panics.deliver);
            report.acknowledge_rest();
            panics.taken.fetch_add(batch.len(), SeqCst);
        }
    }

    async fn check(&self) -> Result<(), SinkError> {
        strike(&self.0.check);
        Ok(())
    }

    async fn close(&self) {
        strike(&self.0.close);
    }

    fn capabilities(&self) -> Capabilities {
        strike(&self.0.capabilities);
        Capabilities::default()
    }
}

struct Factory(Arc<Panics>);

impl ErasedFactory for Factory {
    fn kind(&self) -> &'static str {
        "fragile"
    }
    fn target(&self) -> &'static [TargetField] {
        &[]
    }
    fn secrets(&self) -> &'static [&'static str] {
        &[]
    }
    fn parse(&self, _: serde_json::Value) -> Result<ParsedConfig, ConfigIssue> {
        walgate_sink::erase::<Settings>().parse(serde_json::json!({}))
    }
    fn validate(&self, _: &ParsedConfig) -> Vec<ConfigIssue> {
        Vec::new()
    }
    fn connect<'a>(
        &'a self,
        _: &'a ParsedConfig,
        _: SinkContext,
    ) -> BoxFuture<'a, Result<Arc<dyn DynSink>, SinkError>> {
        strike(&self.0.connect);
        Box::pin(async {
            strike(&self.0.connect);
            self.0.made.fetch_add(1, SeqCst);
            Ok(Arc::new(Fragile(Arc::clone(&self.0))) as Arc<dyn DynSink>)
        })
    }
}

/// Only there to parse a configuration.
struct Settings;

impl walgate_sink::SinkFactory for Settings {
    const KIND: &'static str = "fragile";
    type Config = serde_json::Map<String, serde_json::Value>;
    type Sink = Fragile;

    async fn connect(_: &Self::Config, _: SinkContext) -> Result<Fragile, SinkError> {
        Ok(Fragile(Arc::default()))
    }
}

struct Rig {
    panics: Arc<Panics>,
    handle: LaneHandle,
    end: JoinHandle<LaneEnd>,
    stop: watch::Sender<Option<Instant>>,
    checkpoint: Checkpoint,
}

impl Rig {
    fn start(plan: impl FnOnce(&Panics)) -> Rig {
        let panics = Arc::new(Panics::default());
        plan(&panics);
        let factory = Factory(Arc::clone(&panics));
        let config = Arc::new(factory.parse(serde_json::Value::Null).unwrap());
        let source = SinkSource::factory(Arc::new(factory), config, SinkContext::new("bus", SECOND));
        let checkpoint = Checkpoint::new(Lsn(1));
        checkpoint.with(|ring| ring.begin(Lsn(1)));
        let (stop, stopped) = watch::channel(None);
        let (handle, end) =
            spawn("bus", source, LaneSettings::default(), None, checkpoint.clone(), Arc::new(()), stopped);
        Rig { panics, handle, end, stop, checkpoint }
    }

    fn push(&self, events: u64) {
        for number in 1..=events {
            let ticket = self.checkpoint.with(|ring| ring.track(NonZeroU32::MIN, 100));
            self.handle.push(work(number, "k", 0, ticket));
        }
    }

    async fn settled(&self) {
        for _ in 0..1_000_000 {
            if self.checkpoint.with(|ring| ring.unsettled_events()) == 0 {
                return;
            }
            sleep(Duration::from_millis(1)).await;
        }
        panic!("waited for 1000 s in vain: {:?}", self.handle.status());
    }

    async fn stop(self) -> LaneEnd {
        self.stop.send_replace(Some(Instant::now() + SECOND));
        self.end.await.expect("the lane itself does not panic")
    }
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_panics_while_it_is_made_is_made_again() {
    let places: [fn(&Panics) -> &AtomicUsize; 2] = [|panics| &panics.connect, |panics| &panics.capabilities];
    for place in places {
        let rig = Rig::start(|panics| place(panics).store(7, SeqCst));
        rig.push(3);
        rig.settled().await;
        assert_eq!(rig.panics.taken.load(SeqCst), 3);
        let error = rig.handle.status().last_error.expect("it is shown").message;
        assert!(error.contains("a fault in the sink"), "{error}");
        assert_eq!(rig.stop().await, LaneEnd::Stopped);
    }
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_panics_with_every_batch_for_a_while_delivers_everything_in_the_end() {
    let rig = Rig::start(|panics| {
        panics.deliver.store(21, SeqCst);
        panics.check.store(3, SeqCst);
    });
    rig.push(10);
    rig.settled().await;
    assert_eq!(rig.panics.taken.load(SeqCst), 10);
    assert_eq!(rig.handle.status().state, LaneState::Up);
    assert_eq!(rig.stop().await, LaneEnd::Stopped);
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_always_panics_holds_no_other_and_a_panic_at_the_end_hides_nothing() {
    let sick = Rig::start(|panics| panics.deliver.store(usize::MAX, SeqCst));
    let well = Rig::start(|panics| panics.close.store(1, SeqCst));
    sick.push(2);
    for _ in 0..100 {
        well.push(1);
        well.settled().await;
        sleep(SECOND).await;
    }
    let status = sick.handle.status();
    assert_eq!(status.unsettled, 2);
    assert!(status.last_error.is_some() && status.stalled_seconds > 0.0, "{status:?}");
    let turns = sick.handle.turns();
    sick.handle.nudge();
    sleep(SECOND).await;
    assert!(sick.handle.turns() > turns && !sick.handle.has_ended(), "its lane lives");
    assert_eq!((well.stop().await, sick.stop().await), (LaneEnd::Stopped, LaneEnd::Stopped));
}
